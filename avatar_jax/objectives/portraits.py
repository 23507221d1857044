"""The square of a picture that judges see: a portrait of the face, cut from latents.

Of each clip a run of latents is decoded, of those only a square of cells around the
face. Judges see a larger square, which the edges of the decoded one fill.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from avatar_jax.models import judges
from avatar_jax.types import InputError, Leaf


@struct.dataclass
class View:
    """Where the decoded squares lie: cells of the latents, pixels of the view."""

    first: Leaf  # B int, first latent of the run
    row: Leaf  # B int, of the decoded square in the picture
    column: Leaf
    view_row: Leaf  # B int, of the decoded square in the view
    view_column: Leaf
    latents: int = struct.field(pytree_node=False)  # of the run
    side: int = struct.field(pytree_node=False)  # cells, of what judges see
    crop: int = struct.field(pytree_node=False)  # cells, of what is decoded


LARGEST_PORTRAIT = 32  # cells; of what is larger the face is a small part


def choose_sides(side: int, crop: int, picture: tuple[int, int]) -> tuple[int, int]:
    """Return the sides of view and crop; 0 and 0 make the picture the view.

    Args:
      side: of the view, cells.
      crop: side of the part of it that is decoded, cells.
      picture: height and width, cells.

    Raises:
      InputError: the crop is larger than the picture, or neither is given for one that
        is too large to be a portrait.
    """
    shorter = min(picture)
    if not side and shorter > LARGEST_PORTRAIT:
        raise InputError(
            f"expected human.view and human.crop for pictures of {picture[0]} x "
            f"{picture[1]} cells, as the face is a part of them; came 0. Give the "
            "sides of a portrait in cells, as 24 and 18."
        )
    if not side:
        most = 3 * shorter // 4
        whole = (c for c in range(1, most + 1) if judges.VIEW * c % shorter == 0)
        return shorter, max(whole, default=shorter)
    if crop > shorter:
        raise InputError(
            f"expected human.crop of at most a picture of {picture[0]} x {picture[1]} "
            f"cells, came {crop}; use smaller ones for human.crop and human.view, or "
            "0 for both."
        )
    return side, crop


def locate(
    face_mask: Float[Array, "B F H W"],
    first: Int[Array, " B"],
    *,
    latents: int,
    side: int,
    crop: int,
) -> View:
    """Centre both squares on the face, inside the picture.

    Args:
      face_mask: share of each cell that lies in the face's box.
      first: latent at which each clip's run begins.
      latents: of a run.
      side: of what judges see, cells.
      crop: side of what is decoded, cells.
    """
    mask = jax.vmap(lambda m, f: take_run(m, f, latents))(face_mask, first).sum(1)
    places = []
    for axis, length in enumerate(mask.shape[1:]):
        share = mask.sum(2 - axis)
        total = jnp.maximum(share.sum(1), 1e-6)
        centre = (share * (jnp.arange(length) + 0.5)[None]).sum(1) / total
        places += [_place(centre, length, extent) for extent in (side, crop)]
    view_row, row, view_column, column = places
    inside = (row - view_row, column - view_column)
    pixels = (cells * judges.VIEW // side for cells in inside)
    return View(first, row, column, *pixels, latents=latents, side=side, crop=crop)


def take_run(leaf: Float[Array, "F ..."], first: Int[Array, ""], count: int) -> Array:
    """Return `count` rows from a place on."""
    return jax.lax.dynamic_slice_in_dim(leaf, first, count)


def cut(leaf: Float[Array, "B F H W ..."], view: View) -> Float[Array, "B F2 Y X ..."]:
    """Cut the run of latents (F2) and the square of cells (Y X) that is decoded."""

    def one(leaf: Array, first: Array, row: Array, column: Array) -> Array:
        rest = (jnp.zeros((), int),) * (leaf.ndim - 3)
        sizes = (view.latents, view.crop, view.crop, *leaf.shape[3:])
        return jax.lax.dynamic_slice(leaf, (first, row, column, *rest), sizes)

    return jax.vmap(one)(leaf, view.first, view.row, view.column)


def show(
    video: Float[Array, "B frames Y X c"], view: View
) -> Float[Array, "B frames 64 64 c"]:
    """Scale the decoded square to the view and repeat its edges up to the view's.

    Args:
      video: the decoded square, of any scale: pixels, or cells of a mask.
    """
    side = judges.VIEW * view.crop // view.side
    batch, frames, *_, channels = video.shape
    small = jax.image.resize(video, (batch, frames, side, side, channels), "linear")
    index = jnp.arange(judges.VIEW)

    def one(video: Array, row: Array, column: Array) -> Array:
        rows = jnp.clip(index - row, 0, side - 1)
        columns = jnp.clip(index - column, 0, side - 1)
        return video[:, rows][:, :, columns]

    return jax.vmap(one)(small, view.view_row, view.view_column)


def _place(centre: Float[Array, " B"], length: int, extent: int) -> Int[Array, " B"]:
    start = jnp.round(centre - extent / 2).astype(int)
    return jnp.clip(start, 0, max(length - extent, 0))
