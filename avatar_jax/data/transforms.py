"""From one record to one training example: a window in time, then what is told of it.

The reference, which is cut from other records, is added by `references.py`.

A clip of F' >= F latents gives one of two kinds of example:

  start:   latents 0 .. F-1, the first of them a single frame; the still is latent 0, or
           dropped
  prefix:  latents s .. s+F-1 with s > 0, so that the first two are ordinary ones, given
           clean as prefix; the still is the long clip's latent 0, the anchor

The still of a start may have its person blanked. Prefix and anchor may be given with
light noise, against drift: at sampling they are the network's own. Latent s comes with
audio rows and motion codes 4s .. 4s + 4(F-1).
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float16

from avatar_jax.types import Clip, Conditions, InputError, VideoMotion, count_frames

PREFIX = 2  # latents


@dataclasses.dataclass(frozen=True)
class ConditionRates:
    """Probabilities per example.

    Attributes:
      audio_dropout: of driving and reference speech together.
      still_dropout: of examples without prefix.
      blank_still: the still's person is blanked, of examples without prefix.
      context_noise: largest sigma of the noise on prefix and anchor, drawn evenly.
    """

    text_dropout: float = 0.1
    audio_dropout: float = 0.1
    still_dropout: float = 0.25
    prefix_probability: float = 0.5
    motion_dropout: float = 0.0
    blank_still: float = 0.0
    context_noise: float = 0.0


@dataclasses.dataclass(frozen=True)
class Draws:
    """Uniform numbers in [0, 1), one per decision of an example."""

    text: float
    audio: float
    still: float
    prefix: float
    start: float
    motion: float
    blank: float
    noise: float


@dataclasses.dataclass(frozen=True)
class Record:
    """One clip as it is stored."""

    key: str
    latents: Float16[np.ndarray, "F H W C"]
    mouth_mask: Float16[np.ndarray, "F H W"]
    speech: Float16[np.ndarray, "frames Da"]
    text: Float16[np.ndarray, "L Dt"]
    motion: Float[np.ndarray, "frames Dm"] | None = None  # normalised
    motion_read: Float[np.ndarray, "frames Dm"] | None = None  # off the frames
    identity: Float[np.ndarray, " I"] | None = None
    face_mask: Float16[np.ndarray, "F H W"] | None = None
    still: Float16[np.ndarray, "1 H W C"] | None = None  # frame 0, the person blanked
    still_mask: Float16[np.ndarray, "H W"] | None = None  # 1: all blank
    faces: Float16[np.ndarray, "crops Hf Wf C"] | None = None


def draw(rng: np.random.Generator) -> Draws:
    """Make the draws of one example."""
    return Draws(*rng.random(len(dataclasses.fields(Draws))).tolist())


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
    rng: np.random.Generator,
    rates: ConditionRates,
    *,
    num_latents: int,
    patch: int,
) -> Clip:
    """Cut a window and drop conditions; arrays are float32 without a batch axis."""
    draws = draw(rng)
    start = choose_start(
        draws, len(record.latents), num_latents, rates.prefix_probability
    )
    window = slice(start, start + num_latents)
    latents = record.latents[window].astype(np.float32)
    codes = cut_frames(record, "motion", start, num_latents)
    has_audio = draws.audio >= rates.audio_dropout
    text = null_text if draws.text < rates.text_dropout else record.text
    told = Conditions(
        text=text.astype(np.float32),
        null_text=null_text.astype(np.float32),
        audio=keep(cut_frames(record, "speech", start, num_latents), has_audio),
        audio_valid=np.bool_(has_audio),
        motion_valid=np.bool_(
            codes is not None and draws.motion >= rates.motion_dropout
        ),
    )
    told = _add_still(told, record, draws, rates, start=start, patch=patch)
    told = _add_prefix(told, latents, codes, start=start)
    if rates.context_noise:
        told = _disturb(told, rates.context_noise * draws.noise, rng, start=start)
    masks = (record.mouth_mask, record.face_mask)
    mouth, face = (m if m is None else m[window].astype(np.float32) for m in masks)
    return Clip(
        target=VideoMotion(latents=latents, motion=codes),
        conditions=told,
        mouth_mask=mouth,
        face_mask=face,
    )


def _add_still(
    told: Conditions,
    record: Record,
    draws: Draws,
    rates: ConditionRates,
    *,
    start: int,
    patch: int,
) -> Conditions:
    """Add the still of a start, whole, blank or dropped, or the anchor of a prefix."""
    still, shown = record.latents[:1], start > 0 or draws.still >= rates.still_dropout
    valid = patch_mask(still, shown, patch)
    if shown and not start and draws.blank < rates.blank_still:
        still = record.still
        valid = patch_cells(record.still_mask < 1, patch)
    still = keep(still.astype(np.float32), shown)
    return told.replace(still=still, still_valid=valid)


def _add_prefix(
    told: Conditions,
    latents: Float[np.ndarray, "F H W C"],
    codes: Float[np.ndarray, "frames Dm"] | None,
    *,
    start: int,
) -> Conditions:
    has_prefix = start > 0
    motion = None if codes is None else keep(codes[: count_frames(PREFIX)], has_prefix)
    return told.replace(
        prefix=keep(latents[:PREFIX], has_prefix),
        prefix_motion=motion,
        prefix_valid=np.bool_(has_prefix),
    )


def _disturb(
    told: Conditions, sigma: float, rng: np.random.Generator, *, start: int
) -> Conditions:
    """Add noise to prefix and anchor, the conditions that sampling makes itself."""
    if not start:
        return told

    def add(leaf: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        return leaf + sigma * rng.standard_normal(leaf.shape, np.float32)

    motion = told.prefix_motion
    return told.replace(
        prefix=add(told.prefix),
        still=add(told.still),
        prefix_motion=None if motion is None else add(motion),
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


def patch_cells(
    cells: Bool[np.ndarray, "... H W"], patch: int
) -> Bool[np.ndarray, "... h w"]:
    """Return which patches have any of their cells marked."""
    *lead, rows, columns = cells.shape
    blocks = cells.reshape(*lead, rows // patch, patch, columns // patch, patch)
    return blocks.any(axis=(-3, -1))
