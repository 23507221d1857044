"""A source-filter synthesiser: articulation tracks -> 16 kHz speech.

Every 10 ms the spectrum of the source (glottal pulses, noise) is multiplied by the
response of the vocal tract and the frames are overlap-added:
    Y(f) = a_v P(f) T(f) H(f) + a_n N(f) G(f),
    H(f) = prod_k 1 / ((1 - r_k e^{i(w_k - w)}) (1 - r_k e^{-i(w_k + w)})),
P pulses, T the voice's tilt, H the formant resonators, N noise, G its band.
"""

import numpy as np
import scipy.fft
from jaxtyping import Float

from avatar_jax.data.talking_heads.articulation import HOP_SECONDS, Articulation
from avatar_jax.data.talking_heads.people import Person
from avatar_jax.types import SAMPLE_RATE

_VOICE_STREAM = 31
_HOP = round(HOP_SECONDS * SAMPLE_RATE)
_WINDOW = 2 * _HOP
_FFT = 512
_BANDWIDTHS = (70.0, 100.0, 160.0, 250.0)  # Hz, of the four formants
_FOURTH_FORMANT = 3500.0
_LOUDNESS = 0.25  # of a stressed open vowel, full scale is 1


def synthesise(
    person: Person, articulation: Articulation, utterance: int, num_samples: int
) -> Float[np.ndarray, " samples"]:
    """Say an articulation in the person's voice; float32 in [-1, 1]."""
    rng = np.random.default_rng((person.seed, person.index, utterance, _VOICE_STREAM))
    hops = len(articulation.opening)
    pulses = _make_pulses(person, articulation, rng, hops * _HOP)
    noise = rng.standard_normal(hops * _HOP, dtype=np.float32)
    voiced = _frame_spectra(pulses) * _respond(person, articulation.formants)
    voiced *= articulation.voicing[:, None] * np.float32(_LOUDNESS)
    breathy = articulation.noise + person.voice.breath * articulation.voicing
    band = _noise_band(articulation.noise_low)
    hiss = _frame_spectra(noise) * band * (breathy[:, None] * np.float32(0.12))
    frames = scipy.fft.irfft(voiced + hiss, n=_FFT, axis=1)
    wave = _overlap_add(frames)[:num_samples]
    return np.tanh(wave).astype(np.float32)


def _make_pulses(
    person: Person,
    articulation: Articulation,
    rng: np.random.Generator,
    num_samples: int,
) -> Float[np.ndarray, " samples"]:
    """Put one pulse at every cycle of the pitch, split over two samples."""
    voice, hops = person.voice, len(articulation.opening)
    seconds = np.arange(hops) * HOP_SECONDS
    melody = 0.12 * np.sin(2 * np.pi * seconds / 2.7 + rng.random() * 6)
    melody += voice.intonation * (articulation.stress - 0.3)
    melody += voice.jitter * rng.standard_normal(hops)
    pitch = np.repeat(voice.pitch * np.exp(melody), _HOP)
    cycles = np.cumsum(pitch) / SAMPLE_RATE
    count = int(cycles[-1])
    place = np.interp(np.arange(1, count + 1), cycles, np.arange(num_samples))
    left = np.minimum(place.astype(int), num_samples - 2)
    share = place - left
    pulses = np.zeros(num_samples, np.float32)
    size = np.sqrt(SAMPLE_RATE / pitch[left])  # equal power at every pitch
    np.add.at(pulses, left, (1 - share) * size)
    np.add.at(pulses, left + 1, share * size)
    return pulses


def _frame_spectra(wave: Float[np.ndarray, " samples"]) -> np.ndarray:
    """Cut Hann windows every hop and transform them: complex64 [hops, bins]."""
    padded = np.concatenate([np.zeros(_HOP, np.float32), wave.astype(np.float32)])
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    window = np.hanning(_WINDOW + 1)[:-1].astype(np.float32)
    return scipy.fft.rfft(frames * window, n=_FFT, axis=1)


def _respond(person: Person, formants: Float[np.ndarray, "hops 3"]) -> np.ndarray:
    """Evaluate the tract (formant resonators) and the voice's tilt on the FFT grid."""
    hops, bins = len(formants), _FFT // 2 + 1
    w = (2 * np.pi / _FFT * np.arange(bins)).astype(np.float32)
    unit = np.exp(-1j * w).astype(np.complex64)
    fourth = np.full((hops, 1), _FOURTH_FORMANT)
    centres = np.concatenate([formants, fourth], axis=1) * person.voice.formants
    response = np.ones((hops, bins), np.complex64)
    for k, bandwidth in enumerate(_BANDWIDTHS):
        radius = np.float32(np.exp(-np.pi * bandwidth / SAMPLE_RATE))
        cosine = np.cos(2 * np.pi * centres[:, k : k + 1] / SAMPLE_RATE)
        c1 = (-2 * radius * cosine).astype(np.float32)
        gain = 1 + c1 + radius**2  # unit response at 0 Hz
        response *= gain / (1 + c1 * unit + radius**2 * unit**2)
    octaves = np.log2(np.maximum(np.arange(bins) * SAMPLE_RATE / _FFT, 200) / 200)
    tilt = 10 ** (person.voice.tilt * octaves / 20)
    return response * tilt.astype(np.float32)


def _noise_band(low: Float[np.ndarray, " hops"]) -> Float[np.ndarray, "hops bins"]:
    hertz = np.arange(_FFT // 2 + 1, dtype=np.float32) * (SAMPLE_RATE / _FFT)
    slope = (hertz - low[:, None].astype(np.float32)) / 500
    return 1 / (1 + np.exp(-np.clip(slope, -20, 20)))


def _overlap_add(frames: Float[np.ndarray, "hops fft"]) -> Float[np.ndarray, " n"]:
    hops = len(frames)
    parts = -(-_FFT // _HOP)
    padded = np.zeros((hops, parts * _HOP), np.float32)
    padded[:, :_FFT] = frames
    blocks = padded.reshape(hops, parts, _HOP)
    wave = np.zeros((hops + parts, _HOP), np.float32)
    for part in range(parts):
        wave[part : part + hops] += blocks[:, part]
    return wave.reshape(-1)[_HOP:]
