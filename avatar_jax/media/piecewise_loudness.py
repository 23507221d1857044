"""Loudness normalisation piece by piece, as TAVR prepares driving speech.

Pieces of 1 s, one every 0.9 s, are each brought to -16 LUFS and joined by linear
cross-fades, so that a speaker who fades is heard evenly. Loudness is eq. 1 of
`loudness.py` with what the peer measures by (pyloudnorm): K-weighting by the textbook
biquads of a 4 dB shelf at 1500 Hz and a high pass at 38 Hz instead of the table's, and
a last block of 400 ms that may reach past the end. Everything is float64.
"""

import numpy as np
from jaxtyping import Float
from scipy import signal

from avatar_jax.media.loudness import TARGET_LUFS
from avatar_jax.types import SAMPLE_RATE

_PIECE, _FADE = SAMPLE_RATE, SAMPLE_RATE // 10  # samples
_SHORTEST = SAMPLE_RATE // 10  # samples of a piece; a shorter rest joins the one before
_ABSOLUTE_GATE, _RELATIVE_GATE = -70.0, -10.0  # LUFS, LU
_BLOCK, _STEP = 0.4, 0.25  # seconds, share of a block
_Biquad = tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]


def normalise(wave: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " levelled"]:
    """Bring every second of 16 kHz speech to -16 LUFS; quiet ones stay as they are.

    As released, a rest of under 0.1 s is put behind the piece that holds it already; a
    clip of one piece (0.9 to 1 s) thus comes back longer, by that rest. Choice: pieces
    under 0.4 s, on which the release fails, are measured as one block.
    """
    wave = wave.astype(np.float64)
    pieces: list[np.ndarray] = []
    for start in range(0, len(wave), _PIECE - _FADE):
        piece = wave[start : start + _PIECE]
        if len(piece) >= _SHORTEST:
            pieces.append(_level(piece))
            continue
        if pieces:
            pieces[-1] = np.concatenate([pieces[-1], piece])
        break
    if len(pieces) < 2:
        return pieces[0] if pieces else wave
    return _join(pieces)[: len(wave)]


def _level(piece: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " samples"]:
    loudness = measure(piece)
    if loudness <= _ABSOLUTE_GATE:
        return piece
    return piece * 10 ** ((TARGET_LUFS - loudness) / 20)


def _join(pieces: list[Float[np.ndarray, " _"]]) -> Float[np.ndarray, " samples"]:
    """Fade each piece out while the next one fades in; only the last may be short."""
    hop = _PIECE - _FADE
    joined = np.zeros(hop * (len(pieces) - 1) + len(pieces[-1]))
    rising = np.linspace(0, 1, _FADE)
    for i, piece in enumerate(pieces):
        start = hop * i
        if i:
            joined[start : start + _FADE] *= np.linspace(1, 0, _FADE)
            joined[start : start + _FADE] += piece[:_FADE] * rising
            piece, start = piece[_FADE:], start + _FADE
        joined[start : start + len(piece)] = piece
    return joined


def measure(wave: Float[np.ndarray, " samples"]) -> float:
    """Measure the integrated loudness of 16 kHz mono in LUFS; -inf for silence."""
    for b, a in _k_weighting(SAMPLE_RATE):
        wave = signal.lfilter(b, a, wave)
    size = _BLOCK * SAMPLE_RATE
    if len(wave) < size:
        power = np.array([np.square(wave).mean()]) if wave.size else np.zeros(1)
    else:
        blocks = round((len(wave) / size - 1) / _STEP) + 1
        starts = (np.arange(blocks) * _STEP * size).astype(int)
        cut = (wave[start : start + int(size)] for start in starts)
        power = np.array([np.square(block).sum() for block in cut]) / size
    with np.errstate(divide="ignore"):
        levels = _to_lufs(power)
        heard = levels >= _ABSOLUTE_GATE
        if not heard.any():
            return -np.inf
        gate = _to_lufs(power[heard].mean()) + _RELATIVE_GATE
    kept = power[(levels > gate) & (levels > _ABSOLUTE_GATE)]
    return float(_to_lufs(kept.mean())) if kept.size else -np.inf


def _to_lufs(
    power: Float[np.ndarray, " blocks"] | float,
) -> Float[np.ndarray, " blocks"] | float:
    return -0.691 + 10 * np.log10(power)


def _k_weighting(rate: int) -> tuple[_Biquad, _Biquad]:
    """Return (b, a) of the shelf and of the high pass, by the bilinear transform.

    With w = 2 pi f / rate, c = cos w and e = sin w / (2 q): the usual second-order
    sections of an audio equaliser (Bristow-Johnson).
    """
    gain = 10 ** (4.0 / 40)
    c, e = _turn(1500.0, np.sqrt(0.5), rate)
    root = 2 * np.sqrt(gain) * e
    up, down = gain + 1, gain - 1
    b = gain * np.array(
        [up + down * c + root, -2 * (down + up * c), up + down * c - root]
    )
    a = np.array([up - down * c + root, 2 * (down - up * c), up - down * c - root])
    shelf = b / a[0], a / a[0]
    c, e = _turn(38.0, 0.5, rate)
    b = np.array([(1 + c) / 2, -(1 + c), (1 + c) / 2])
    a = np.array([1 + e, -2 * c, 1 - e])
    return shelf, (b / a[0], a / a[0])


def _turn(hertz: float, q: float, rate: int) -> tuple[float, float]:
    w = 2 * np.pi * hertz / rate
    return float(np.cos(w)), float(np.sin(w) / (2 * q))
