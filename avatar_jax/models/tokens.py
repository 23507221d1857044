"""Rows of the transformer: patches, positions, roles, and the packing of references.

Generated rows come first, then the still's, frame by frame, patch row by patch row.
Reference rows travel apart as `ReferenceRows`; packing moves the valid ones to the
front and keeps a static number: invalid rows cost nothing and shapes stay static.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from avatar_jax.nn import rotary
from avatar_jax.types import Conditions, Reference

REFERENCE_TIME = 256  # temporal position at which every reference segment restarts
FACE_TIME = 512  # temporal position of the first face crop


@struct.dataclass
class ReferenceRows:
    """Reference and face rows, packed; every field is gathered by the same order."""

    patches: Array  # B R P, raw patches, flags included
    turn: Array  # B R pairs, rotary angles
    latent: Array  # B R int, index of the row's latent: its audio and motion tokens
    segment_ids: Array  # B R int
    is_face: Array  # B R bool
    valid: Array  # B R bool


def patchify(
    latents: Float[Array, "B F H W C"], patch: int
) -> Float[Array, "B F h w P"]:
    """Cut each latent frame into patch x patch cells; order (row, column, channel)."""
    if latents.shape[2] % patch or latents.shape[3] % patch:
        raise ValueError(
            f"Latents of {latents.shape[2]} x {latents.shape[3]} do not divide into "
            f"{patch} x {patch} patches; use sizes that do."
        )
    return rearrange(latents, "B F (h p) (w q) C -> B F h w (p q C)", p=patch, q=patch)


def unpatchify(
    patches: Float[Array, "B F h w P"], patch: int
) -> Float[Array, "B F H W C"]:
    """Undo `patchify`."""
    return rearrange(patches, "B F h w (p q C) -> B F (h p) (w q) C", p=patch, q=patch)


def add_flags(
    latents: Float[Array, "B F H W C"],
    *,
    reference: float,
    motion_frame: Bool[Array, "B F"] | None = None,
    still: Float[Array, "B 1 H W C"] | None = None,
) -> Float[Array, "B F H W X"]:
    """Append TAVR's two mask channels, and the still's latents where the model asks.

    Args:
      latents: of one role.
      reference: 1 on the still and on all reference rows, else 0.
      motion_frame: true on clean prefix latents.
      still: repeated beside every frame; None adds no channels.
    """
    flag = jnp.full_like(latents[..., :1], reference)
    motion = jnp.zeros_like(flag)
    if motion_frame is not None:
        motion = motion + motion_frame[:, :, None, None, None]
    parts = [latents, flag, motion]
    if still is not None:
        parts.append(jnp.broadcast_to(still, latents.shape))
    return jnp.concatenate(parts, -1)


def reference_rows(
    reference: Reference,
    *,
    patch: int,
    scale: float,
    face_scale: float,
    head_dim: int,
    extra_channels: int,
) -> ReferenceRows:
    """Turn a reference into packed rows.

    Args:
      reference: latents and validity; `capacity` is the static number of rows kept.
      patch: side of a patch in latent cells.
      scale: stretch of rows and columns, as in `rotary.grid_angles`.
      face_scale: the same for face crops, which have a size of their own.
      head_dim: channels per head.
      extra_channels: zeros in place of the still's channels on generated rows.
    """
    parts = [_video_rows(reference, patch, scale, head_dim, extra_channels)]
    if reference.faces is not None:
        parts.append(_face_rows(reference, patch, face_scale, head_dim, extra_channels))
    rows = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, 1), *parts)
    return rows if reference.capacity is None else pack(rows, reference.capacity)


def choose_capacity(reference: Reference, patch: int) -> int:
    """Return a number of rows that holds the valid ones of every sample.

    An eighth of all rows or a multiple of it, so that few shapes are compiled.

    Args:
      reference: of concrete arrays that this process holds whole.
      patch: side of a patch, cells.
    """
    valid, total = np.asarray(reference.valid), reference.valid[0].size
    used = valid.sum((1, 2, 3))
    if reference.faces is not None:
        crops, height, width = reference.faces.shape[1:4]
        cells = height * width // patch**2
        total += crops * cells
        shown = reference.faces_valid
        used = used + cells * (crops if shown is None else np.asarray(shown).sum(1))
    step = -(-total // 8)
    return min(total, step * max(1, -(-int(used.max()) // step)))


def pack(rows: ReferenceRows, capacity: int) -> ReferenceRows:
    """Move valid rows to the front, in order, and keep `capacity` of them.

    Rows that are not valid get the segment of the last that is. The caller chooses a
    capacity of at least the number of valid rows.
    """
    order = jnp.argsort(~rows.valid, axis=1, stable=True)[:, :capacity]

    def gather(leaf: Array) -> Array:
        index = order.reshape(order.shape + (1,) * (leaf.ndim - 2))
        return jnp.take_along_axis(leaf, index, axis=1)

    packed = jax.tree.map(gather, rows)
    # What is not valid counts as the last valid row's segment: kernels skip by segment.
    last = jnp.max(jnp.where(packed.valid, packed.segment_ids, 0), 1, keepdims=True)
    ids = jnp.where(packed.valid, packed.segment_ids, last)
    return packed.replace(segment_ids=ids)


def _video_rows(
    reference: Reference, patch: int, scale: float, head_dim: int, extra: int
) -> ReferenceRows:
    patches = patchify(_reference_channels(reference.latents, extra), patch)
    batch, frames, rows, columns = patches.shape[:4]
    index = jnp.broadcast_to(jnp.arange(frames)[None], (batch, frames))
    ids = reference.segment_ids
    is_first = jnp.concatenate(
        [jnp.ones_like(index[:, :1]), ids[:, 1:] != ids[:, :-1]], 1
    )
    starts = jax.lax.cummax(jnp.where(is_first > 0, index, 0), axis=1)
    times = rotary.angles(REFERENCE_TIME + np.arange(frames), rotary.TIME, head_dim)
    times = jnp.asarray(times)[index - starts]  # B F time

    def spread(values: Int[Array, "B F"]) -> Int[Array, "B R"]:
        return repeat(values, "B F -> B (F cells)", cells=rows * columns)

    valid = rearrange(reference.valid, "B F h w -> B (F h w)")
    return ReferenceRows(
        patches=rearrange(patches, "B F h w P -> B (F h w) P"),
        turn=rotary.grid_angles(times, rows, columns, scale, head_dim),
        latent=spread(index),
        segment_ids=spread(reference.segment_ids),
        is_face=jnp.zeros_like(valid),
        valid=valid,
    )


def _face_rows(
    reference: Reference, patch: int, scale: float, head_dim: int, extra: int
) -> ReferenceRows:
    patches = patchify(_reference_channels(reference.faces, extra), patch)
    batch, crops, rows, columns = patches.shape[:4]
    cells = rows * columns
    times = rotary.angles(FACE_TIME + np.arange(crops), rotary.TIME, head_dim)
    turn = rotary.grid_angles(times, rows, columns, scale, head_dim)
    index = jnp.repeat(jnp.arange(crops), cells)[None]
    # Segments of their own, after every segment that video frames can have.
    segments = jnp.broadcast_to(
        reference.latents.shape[1] + index, (batch, crops * cells)
    )
    valid = jnp.ones((batch, crops), bool)
    if reference.faces_valid is not None:
        valid = reference.faces_valid
    valid = repeat(valid, "B crops -> B (crops cells)", cells=cells)
    return ReferenceRows(
        patches=rearrange(patches, "B F h w P -> B (F h w) P"),
        turn=jnp.broadcast_to(turn[None], (batch, *turn.shape)),
        latent=jnp.zeros_like(segments),
        segment_ids=segments.astype(reference.segment_ids.dtype),
        is_face=jnp.ones_like(valid),
        valid=valid,
    )


def _reference_channels(
    latents: Float[Array, "B F H W C"], extra: int
) -> Float[Array, "B F H W X"]:
    flagged = add_flags(latents, reference=1.0)
    return jnp.pad(flagged, ((0, 0),) * 4 + ((0, extra),))


def place_prefix(
    latents: Float[Array, "B F H W C"], conditions: Conditions
) -> tuple[Float[Array, "B F H W C"], Bool[Array, "B F"]]:
    """Put the clean prefix at the first positions; say which frames it fills."""
    batch, frames = latents.shape[:2]
    if conditions.prefix is None:
        return latents, jnp.zeros((batch, frames), bool)
    length = conditions.prefix.shape[1]
    is_clean = _has_prefix(conditions) & (jnp.arange(frames) < length)[None]
    tail = ((0, 0), (0, frames - length), (0, 0), (0, 0), (0, 0))
    prefix = jnp.pad(conditions.prefix, tail)
    return jnp.where(is_clean[..., None, None, None], prefix, latents), is_clean


def place_prefix_codes(
    codes: Float[Array, "B frames Dm"], conditions: Conditions
) -> Float[Array, "B frames Dm"]:
    """Put the prefix's clean motion codes, where there are any, at the first frames."""
    if conditions.prefix is None or conditions.prefix_motion is None:
        return codes
    frames, length = codes.shape[1], conditions.prefix_motion.shape[1]
    prefix = jnp.pad(conditions.prefix_motion, ((0, 0), (0, frames - length), (0, 0)))
    is_clean = _has_prefix(conditions) & (jnp.arange(frames) < length)[None]
    return jnp.where(is_clean[..., None], prefix, codes)


def place_codes(
    noisy: Float[Array, "B frames Dm"], conditions: Conditions
) -> tuple[Float[Array, "B frames Dm"], Float[Array, "B frames Dm"]]:
    """Return noisy codes and their estimate, with the prefix's clean codes in both.

    Codes that equal their estimate are clean, as those of reference rows are.
    """
    estimate = conditions.motion
    estimate = jnp.zeros_like(noisy) if estimate is None else estimate
    return (
        place_prefix_codes(noisy, conditions),
        place_prefix_codes(estimate, conditions),
    )


def _has_prefix(conditions: Conditions) -> Bool[Array, "B 1"]:
    valid = conditions.prefix_valid
    if valid is None:
        valid = jnp.ones((conditions.prefix.shape[0],), bool)
    return valid[:, None]
