"""Speech features of wav2vec 2.0 at 25 Hz, for driving speech and for the reference's.

Two rows of 50 Hz, each of the chosen layers, make one row of 25 Hz; an odd last row is
dropped. The wave is brought to zero mean and unit variance over the whole clip, then
encoded in windows of 30 s that overlap by 2 s and are joined in the middle of it: one
compiled shape, whatever the length. What is shorter is padded and loses nothing by it.

  driving    layers 0, 8, 16, 24 of the speech with 0.2 s of silence behind it, brought
             to an even loudness; then those of digital silence as long as the speech
  reference  the last layer of the clip as it is, the learned null where it is too
             short; 3 copies of row 0 in front, which is how TAVR was trained: its
             reference speech runs 3 frames ahead of the pictures
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int, Shaped

from avatar_jax.media import piecewise_loudness
from avatar_jax.models import wav2vec2
from avatar_jax.types import (
    FRAMES_PER_LATENT,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    InputError,
    count_frames,
)

DRIVING_LAYERS = (0, 8, 16, 24)
REFERENCE_LAYERS = (-1,)
REFERENCE_LEAD = 3  # copies of the first row in front of a reference track
TAIL_SECONDS = 0.2  # of silence behind driving speech
PAIR = 2  # rows of 50 Hz in one of 25 Hz

Wave = Float[np.ndarray, " samples"]
Encode = Callable[[np.ndarray], np.ndarray]  # a wave to its rows at 25 Hz


@dataclasses.dataclass(frozen=True)
class Wav2Vec2Encoder:
    """Waves of any length to hidden states at 50 Hz.

    Attributes:
      params: of `wav2vec2.Wav2Vec2`, on the device that is to encode.
      window_seconds: of one window, the one compiled shape.
      overlap_seconds: of neighbouring windows.
    """

    cfg: wav2vec2.Wav2Vec2Config
    params: dict
    window_seconds: float = 30.0
    overlap_seconds: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.overlap < self.window:
            raise ValueError(
                f"window_seconds={self.window_seconds}, overlap_seconds="
                f"{self.overlap_seconds}; use windows longer than their overlap."
            )

    @property
    def window(self) -> int:
        """Samples of a window, a whole number of rows."""
        return self._whole(self.window_seconds)

    @property
    def overlap(self) -> int:
        """Samples that neighbouring windows share, a whole number of rows."""
        return self._whole(self.overlap_seconds)

    def __call__(
        self, wave: Wave, layers: tuple[int, ...]
    ) -> Float[np.ndarray, "rows features"]:
        """Return the rows of a clip, the chosen layers side by side in each."""
        wave, rows = standardise(wave), self.cfg.count_rows(len(wave))
        if rows < 1:
            return np.zeros((0, len(layers) * self.cfg.width), np.float32)
        starts = self._window_starts(len(wave))
        parts = [self._encode(wave[s : s + self.window], layers) for s in starts]
        first = [start // self.cfg.stride for start in starts]
        # A seam is in the middle of what both windows cover.
        seams = [
            (late + early + len(part)) // 2
            for early, part, late in zip(first, parts, first[1:], strict=False)
        ]
        edges = zip([0, *seams], [*seams, rows], first, parts, strict=True)
        kept = [part[begin - f : end - f] for begin, end, f, part in edges]
        return np.concatenate(kept)

    def _whole(self, seconds: float) -> int:
        return round(seconds * SAMPLE_RATE / self.cfg.stride) * self.cfg.stride

    def _window_starts(self, samples: int) -> list[int]:
        """Start windows at whole rows; the last one is full too and ends the clip."""
        last = max(0, -(-(samples - self.window) // self.cfg.stride) * self.cfg.stride)
        return [*range(0, last, self.window - self.overlap), last]

    def _encode(
        self, wave: Wave, layers: tuple[int, ...]
    ) -> Float[np.ndarray, "rows features"]:
        padded = np.pad(wave, (0, self.window - len(wave)))
        length = np.array([len(wave)], np.int32)
        states = encode_window(self.cfg, self.params, padded[None], length, layers)
        rows = np.asarray(states)[:, 0, : self.cfg.count_rows(len(wave))]
        return rearrange(rows, "layers T D -> T (layers D)")


@functools.partial(jax.jit, static_argnums=(0, 4))
def encode_window(
    cfg: wav2vec2.Wav2Vec2Config,
    params: dict,
    wave: Float[Array, "B samples"] | Float[np.ndarray, "B samples"],
    length: Int[Array, " B"] | Int[np.ndarray, " B"],
    layers: tuple[int, ...],
) -> Float[Array, "layers B T D"]:
    """Run the network, compiled once per shape and choice of layers."""
    model = wav2vec2.Wav2Vec2(cfg)
    return model.apply({"params": params}, wave, length, layers)


@dataclasses.dataclass(frozen=True)
class DrivingTrack:
    """Rows of driving speech and of the silence behind it."""

    rows: Float[np.ndarray, "rows width"]
    frames: int  # of 25 fps video to generate: the speech, in whole latents


@dataclasses.dataclass(frozen=True)
class DrivingSpeech:
    """Rows of driving speech: a `speech.SpeechEncoder`.

    Loudness is evened out here, piece by piece; a gain before it changes little.
    """

    encoder: Wav2Vec2Encoder
    layers: tuple[int, ...] = DRIVING_LAYERS

    @property
    def width(self) -> int:
        return PAIR * len(self.layers) * self.encoder.cfg.width

    def __call__(self, wave: Wave, frames: int) -> Float[np.ndarray, "frames width"]:
        return cut_rows(self.track(wave).rows, 0, frames)

    def track(self, wave: Wave) -> DrivingTrack:
        """Return all rows and how long the video is to be.

        Choice: of speech longer than a window, the silence behind is one window; the
        release takes up to 30 s of speech and as much silence.
        """
        encode = functools.partial(self.encoder, layers=self.layers)
        return driving_track(
            wave, lambda part: pair_rows(encode(part)), longest=self.encoder.window
        )


@dataclasses.dataclass(frozen=True)
class ReferenceSpeech:
    """Rows of the speech of a reference clip: a `speech.SpeechEncoder`.

    Attributes:
      null: the model's learned row for frames without speech; None: zeros.
    """

    encoder: Wav2Vec2Encoder
    null: Float[np.ndarray, " width"] | None = None
    layers: tuple[int, ...] = REFERENCE_LAYERS

    @property
    def width(self) -> int:
        return PAIR * len(self.layers) * self.encoder.cfg.width

    def __call__(self, wave: Wave, frames: int) -> Float[np.ndarray, "frames width"]:
        rows = pair_rows(self.encoder(wave, self.layers))
        null = np.zeros(self.width, np.float32) if self.null is None else self.null
        return reference_track(rows, frames, null)[:frames]


def standardise(wave: Wave) -> Float[np.ndarray, " samples"]:
    """Return the wave with zero mean and unit variance; digital silence stays zero."""
    if not wave.size:
        return wave.astype(np.float32)
    wave = wave.astype(np.float64) - wave.mean(dtype=np.float64)
    return (wave / np.sqrt(np.square(wave).mean() + 1e-7)).astype(np.float32)


def pair_rows(
    rows: Shaped[np.ndarray, "rows features"],
) -> Shaped[np.ndarray, "pairs both"]:
    """Put two rows of 50 Hz side by side, the earlier one first; drop an odd one."""
    whole = rows[: len(rows) // PAIR * PAIR]
    return rearrange(whole, "(rows pair) D -> rows (pair D)", pair=PAIR)


def driving_track(
    wave: Wave, encode: Encode, *, longest: int | None = None
) -> DrivingTrack:
    """Encode speech with its tail, then digital silence as long as the speech.

    Args:
      longest: samples of silence at most; what is left out still counts as frames.

    Raises:
      InputError: no samples.
    """
    if not wave.size:
        raise InputError("expected driving speech, came 0 samples; check the track.")
    tail = np.zeros(int(TAIL_SECONDS * SAMPLE_RATE))
    speech = encode(piecewise_loudness.normalise(np.concatenate([wave, tail])))
    silent = len(wave) if longest is None else min(len(wave), longest)
    silence = encode(np.zeros(silent, np.float32))
    left_out = (len(wave) - silent) // SAMPLES_PER_FRAME
    frames = count_video_frames(len(speech) + len(silence) + left_out)
    return DrivingTrack(np.concatenate([speech, silence]), frames)


def count_video_frames(rows: int) -> int:
    """Count the frames that `rows` of speech and silence drive: half, in latents."""
    return count_frames(-(-(rows // 2) // FRAMES_PER_LATENT) + 1)


def reference_track(
    rows: Float[np.ndarray, "rows width"],
    frames: int,
    null: Float[np.ndarray, " width"],
) -> Float[np.ndarray, "track width"]:
    """Cut or fill rows to `frames` and put 3 copies of the first one in front.

    A window from frame s on takes rows s, s + 1, ... of the result: those of frames
    s - 3, s - 2, ...
    """
    missing = np.repeat(null[None].astype(rows.dtype), max(0, frames - len(rows)), 0)
    rows = np.concatenate([rows[:frames], missing])
    return np.concatenate([np.repeat(rows[:1], REFERENCE_LEAD, 0), rows])


def cut_rows(
    rows: Float[np.ndarray, "rows width"], start: int, count: int
) -> Float[np.ndarray, "count width"]:
    """Cut `count` rows from `start` on; the last row is held where they end early."""
    return rows[np.minimum(np.arange(start, start + count), len(rows) - 1)]
