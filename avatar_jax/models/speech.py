"""Speech encoders: what every encoder offers, and one that needs no weights."""

import dataclasses
import functools
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from avatar_jax.types import SAMPLE_RATE, SAMPLES_PER_FRAME, InputError

BANDS = 40
PARTS = 4  # of a frame, 10 ms each
HOP = SAMPLES_PER_FRAME // PARTS
WINDOW = 400  # samples, 25 ms
POINTS = 512  # of the Fourier transform
LOWEST, HIGHEST = 60.0, 7600.0  # Hz
PRE_EMPHASIS = 0.97
QUIETEST = 1e-8  # band power; a clip that never exceeds it stays silence
FLOOR = 1e-5  # of the mean band power while somebody speaks
LOG_MEAN, LOG_STD = (
    -3.0,
    1.5,
)  # of log10 of relative band power, 25 clips of real speech


@runtime_checkable
class SpeechEncoder(Protocol):
    """A frozen encoder of 16 kHz mono speech; one row per frame of 25 fps video."""

    @property
    def width(self) -> int:
        """Give the width of a row."""

    def __call__(
        self, wave: Float[np.ndarray, " samples"], frames: int
    ) -> Float[np.ndarray, "frames width"]:
        """Encode `frames` rows, row j centred on frame j; silence after the end."""


@dataclasses.dataclass(frozen=True)
class LogMel:
    """Four log-mel spectra per frame, 10 ms apart, about zero mean and unit scale.

    Levels are relative to the clip's own speech, so that loudness changes nothing.
    A row sees its frame and 7.5 ms on either side.
    """

    @property
    def width(self) -> int:
        return PARTS * BANDS

    def __call__(
        self, wave: Float[np.ndarray, " samples"], frames: int
    ) -> Float[np.ndarray, "frames width"]:
        if wave.size == 0 or frames < 1:
            raise InputError(
                f"LogMel expects sound, came {wave.size} samples for {frames} frames; "
                "check the audio track."
            )
        spectra = power_spectra(emphasise(wave), frames * PARTS)
        power = spectra @ mel_filters().T
        level = speech_level(power.mean(axis=1))
        relative = power / max(level, QUIETEST)
        logs = (np.log10(np.maximum(relative, FLOOR)) - LOG_MEAN) / LOG_STD
        return logs.reshape(frames, self.width).astype(np.float32)


def emphasise(wave: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " samples"]:
    """Lift high frequencies, which in speech are weak."""
    wave = wave - wave.mean(dtype=np.float32)
    return wave - PRE_EMPHASIS * np.concatenate([wave[:1], wave[:-1]])


def speech_level(power: Float[np.ndarray, " rows"]) -> float:
    """Return the power while somebody speaks: its power-weighted mean.

    Silence weighs nothing, so that pauses and padding leave the level alone.
    """
    return float((power**2).sum() / max(power.sum(), 1e-20))


def power_spectra(
    wave: Float[np.ndarray, " samples"], rows: int
) -> Float[np.ndarray, "rows bins"]:
    """Return the power of windows centred on 80, 240 ... samples; 1 = full scale."""
    lead = (WINDOW - HOP) // 2
    needed = lead + (rows - 1) * HOP + WINDOW
    padded = np.pad(wave[: needed - lead], (lead, max(0, needed - lead - wave.size)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:rows]
    taper = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    spectrum = np.fft.rfft(windows * (taper / taper.sum() * 2), POINTS)
    return np.abs(spectrum).astype(np.float32) ** 2


@functools.cache
def mel_filters() -> Float[np.ndarray, "bands bins"]:
    """Build triangles evenly spaced on the mel scale, 2595 log10(1 + f/700)."""
    mel_low, mel_high = (2595 * np.log10(1 + f / 700) for f in (LOWEST, HIGHEST))
    edges = 700 * (10 ** (np.linspace(mel_low, mel_high, BANDS + 2) / 2595) - 1)
    bins = np.arange(POINTS // 2 + 1) * SAMPLE_RATE / POINTS
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
    return np.maximum(np.minimum(rising, falling), 0).astype(np.float32)
