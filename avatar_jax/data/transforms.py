"""From one record to one training example: a window in time, then what is told of it.

A clip of F' >= F latents gives one of two kinds of example:

  start:   latents 0 .. F-1, the first of them a single frame; the still is latent 0, or
           dropped
  prefix:  latents s .. s+F-1 with s > 0, so that the first two are ordinary ones, given
           clean as prefix; the still is the long clip's latent 0, the anchor

Latent s comes with audio rows and motion codes 4s .. 4s + 4(F-1).
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float16

from avatar_jax.types import Clip, Conditions, InputError, VideoMotion, count_frames

PREFIX = 2  # latents


@dataclasses.dataclass(frozen=True)
class ConditionRates:
    """Probabilities per example; `still_dropout` is that of examples without prefix."""

    text_dropout: float = 0.1
    audio_dropout: float = 0.1
    still_dropout: float = 0.25
    prefix_probability: float = 0.5


@dataclasses.dataclass(frozen=True)
class Draws:
    """Uniform numbers in [0, 1), one per decision of an example."""

    text: float
    audio: float
    still: float
    prefix: float
    start: float


@dataclasses.dataclass(frozen=True)
class Record:
    """One clip as it is stored."""

    key: str
    latents: Float16[np.ndarray, "F H W C"]
    mouth_mask: Float16[np.ndarray, "F H W"]
    speech: Float16[np.ndarray, "frames Da"]
    text: Float16[np.ndarray, "L Dt"]
    motion: Float[np.ndarray, "frames Dm"] | None = None


def draw(seed: tuple[int, ...]) -> Draws:
    """Make the draws of one example from the integers that name it."""
    return Draws(*np.random.default_rng(seed).random(5).tolist())


def choose_start(
    draws: Draws, length: int, num_latents: int, prefix_probability: float
) -> int:
    """Choose the first latent of the window; above 0 means an example with prefix."""
    choices = length - num_latents
    if choices < 1 or num_latents <= PREFIX or draws.prefix >= prefix_probability:
        return 0
    return 1 + int(draws.start * choices)


def make_clip(
    record: Record,
    null_text: Float16[np.ndarray, "L Dt"],
    draws: Draws,
    rates: ConditionRates,
    *,
    num_latents: int,
    patch: int,
) -> Clip:
    """Cut a window and drop conditions; arrays are float32 without a batch axis."""
    start = choose_start(
        draws, len(record.latents), num_latents, rates.prefix_probability
    )
    has_prefix = start > 0
    has_still = has_prefix or draws.still >= rates.still_dropout
    has_audio = draws.audio >= rates.audio_dropout
    text = null_text if draws.text < rates.text_dropout else record.text
    latents = record.latents[start : start + num_latents].astype(np.float32)
    motion = cut_frames(record, "motion", start, num_latents)
    return Clip(
        target=VideoMotion(latents=latents, motion=motion),
        conditions=Conditions(
            text=text.astype(np.float32),
            null_text=null_text.astype(np.float32),
            audio=keep(cut_frames(record, "speech", start, num_latents), has_audio),
            audio_valid=np.bool_(has_audio),
            still=keep(record.latents[:1].astype(np.float32), has_still),
            still_valid=patch_mask(latents, has_still, patch),
            prefix=keep(latents[:PREFIX], has_prefix),
            prefix_valid=np.bool_(has_prefix),
        ),
        mouth_mask=record.mouth_mask[start : start + num_latents].astype(np.float32),
    )


def cut_frames(
    record: Record, name: str, start: int, num_latents: int
) -> Float[np.ndarray, "frames D"] | None:
    """Cut the rows that run at the frame rate; None where the record has none."""
    rows: Any = getattr(record, name)
    if rows is None:
        return None
    first, frames = 4 * start, count_frames(num_latents)
    if first + frames > len(rows):
        raise InputError(
            f"clip {record.key} has {len(rows)} rows of {name} for "
            f"{count_frames(len(record.latents))} frames: prepare it again."
        )
    return rows[first : first + frames].astype(np.float32)


def keep(values: Float[np.ndarray, "..."], kept: bool) -> Float[np.ndarray, "..."]:
    """Return the values, or zeros of their shape for what is dropped."""
    return values if kept else np.zeros_like(values)


def patch_mask(
    latents: Float[np.ndarray, "F H W C"], valid: bool, patch: int
) -> Bool[np.ndarray, "h w"]:
    """Return one mask for all patches of a latent frame."""
    _, rows, columns, _ = latents.shape
    return np.full((rows // patch, columns // patch), valid)
