"""Integrated loudness after ITU-R BS.1770-5 (EBU R 128), and normalisation to it.

    L = -0.691 + 10 log10(mean square of the K-weighted signal)                     (1)

over 400 ms blocks with 75 % overlap, of which those above -70 LUFS and then those above
the mean of the rest - 10 LU are kept. The recommendation tabulates the K-weighting for
48 kHz only; `_k_weighting` gives the analogue filters behind that table by the bilinear
transform at any rate (the parameters of libebur128). At 48 kHz that is the table; at
16 kHz the response stays within 0.1 dB of it over the whole band.
"""

import numpy as np
from jaxtyping import Float
from scipy import signal

from avatar_jax.types import SAMPLE_RATE

TARGET_LUFS = -16.0
_ABSOLUTE_GATE, _RELATIVE_GATE = -70.0, -10.0  # LUFS, LU
_BLOCK, _HOP = 0.4, 0.1  # seconds


def normalise(
    wave: Float[np.ndarray, " samples"], target_lufs: float = TARGET_LUFS
) -> Float[np.ndarray, " samples"]:
    """Scale speech to an integrated loudness; silence (<= -70 LUFS) is left as it is.

    Peaks are not limited and may leave [-1, 1]: this is for features, not for playing.
    """
    loudness = measure_loudness(wave)
    if loudness <= _ABSOLUTE_GATE:
        return wave
    return wave * wave.dtype.type(10 ** ((target_lufs - loudness) / 20))


def measure_loudness(
    wave: Float[np.ndarray, " samples"], rate: int = SAMPLE_RATE
) -> float:
    """Measure the integrated loudness of a mono signal in LUFS; -inf for silence.

    Choice: a signal shorter than one block of 400 ms is one block.
    """
    if not wave.size:
        return -np.inf
    for b, a in _k_weighting(rate):
        wave = signal.lfilter(b, a, wave)
    block, hop = min(len(wave), round(_BLOCK * rate)), round(_HOP * rate)
    energy = np.concatenate([[0.0], np.cumsum(np.square(wave, dtype=np.float64))])
    starts = np.arange(0, len(wave) - block + 1, hop)
    power = (energy[starts + block] - energy[starts]) / block
    power = power[_to_lufs(power) > _ABSOLUTE_GATE]
    if not power.size:
        return -np.inf
    power = power[_to_lufs(power) > _to_lufs(power.mean()) + _RELATIVE_GATE]
    return float(_to_lufs(power.mean()))


def _to_lufs(power):
    """Apply (1) to a mean square."""
    return -0.691 + 10 * np.log10(np.maximum(power, 1e-12))


def _k_weighting(rate: int):
    """Return (b, a) of the high shelf (head) and of the high pass (RLB) at a rate."""
    k, q = np.tan(np.pi * 1681.974450955533 / rate), 0.7071752369554196
    high = 10 ** (3.999843853973347 / 20)
    band = high**0.4996667741545416
    shelf = [high + band * k / q + k * k, 2 * (k * k - high)]
    shelf.append(high - band * k / q + k * k)
    shelf_scale, shelf_poles = _poles(k, q)
    k, q = 38.13547087602444 * np.pi / rate, 0.5003270373238773
    scale, poles = _poles(np.tan(k), q)
    table_scale, _ = _poles(np.tan(k * rate / 48_000), q)
    # The table's high pass has the numerator 1, -2, 1 at 48 kHz: keep that gain.
    high_pass = np.array([1.0, -2.0, 1.0]) * table_scale / scale
    return (np.array(shelf) / shelf_scale, shelf_poles), (high_pass, poles)


def _poles(k: float, q: float) -> tuple[float, Float[np.ndarray, " 3"]]:
    scale = 1 + k / q + k * k
    return scale, np.array([1.0, 2 * (k * k - 1) / scale, (1 - k / q + k * k) / scale])
