"""Shapes at which attention is measured and compiled, and what they cost at least."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from avatar_kernels.reference_attention import (
    LocalWindow,
    segment_attention,
    target_attention,
)
from jaxtyping import Array, Bool

REFERENCES = (0, 5, 12, 24, 48, 96)  # latents, at the size of 480x896
VALIDITIES = (1.0, 0.5, 0.2)
REFERENCE_GRID = (30, 56)  # patches of a 480x896 latent


@dataclasses.dataclass(frozen=True)
class Shape:
    """Generated latents and one still, at a size in pixels (patches of 16).

    Attributes:
      latents: generated.
      grid: rows and columns of patches.
      window: over own rows; None: all see all.
      segment: latents of a segment, for reference rows among themselves.
      heads: on one device.
      width: of a head.
    """

    latents: int
    grid: tuple[int, int]
    window: LocalWindow | None = None
    segment: int | None = None
    heads: int = 40
    width: int = 128

    @property
    def rows(self) -> int:
        """Own rows."""
        return (self.latents + 1) * self.grid[0] * self.grid[1]

    def reference_rows(self, latents: int) -> int:
        """Rows of a reference, which is always of 480x896."""
        return latents * REFERENCE_GRID[0] * REFERENCE_GRID[1]

    def pairs(self, reference: int, validity: float = 1.0) -> int:
        """Pairs of query and key that the operator must look at."""
        own = self.rows**2
        if self.segment is not None:
            return self.rows * self.reference_rows(self.segment)
        if self.window is not None:
            own = int(self.window.lines(self.rows).sum()) * self.grid[1] ** 2
        valid = int(find_valid(reference, validity).sum())
        return own + self.rows * valid

    def flops(self, reference: int, validity: float = 1.0, *, backward: bool) -> int:
        """Useful operations: two products forward, with the backward pass seven."""
        products = 7 if backward else 2
        pairs = self.pairs(reference, validity)
        return 2 * products * pairs * self.heads * self.width


def make_shapes() -> dict[str, Shape]:
    """Return the shapes by name."""
    shapes = {}
    for latents in (21, 41):
        shapes[f"480x896, {latents} latents"] = Shape(latents, REFERENCE_GRID)
        shapes[f"720x1280, {latents} latents"] = Shape(latents, (45, 80))
        grid = (68, 120)
        shapes[f"1088x1920 windowed, {latents} latents"] = Shape(
            latents, grid, LocalWindow(latents=2, rows=12, grid=grid)
        )
    shapes["480x896, 21 latents, 64 wide"] = Shape(
        21, REFERENCE_GRID, heads=12, width=64
    )
    shapes["reference, 48 latents"] = Shape(47, REFERENCE_GRID, segment=12)
    return shapes


def find_valid(reference: int, validity: float) -> Bool[np.ndarray, " R"]:
    """Return which rows of a packed reference are valid: a face box in each latent.

    The box has the share `validity` of the patches; valid rows lie first, as the model
    packs them.
    """
    rows, columns = REFERENCE_GRID
    box_rows = round(rows * validity**0.5)
    box_columns = round(rows * columns * validity / box_rows)
    length = reference * rows * columns
    return np.arange(length) < reference * box_rows * box_columns


def describe_arrays(
    shape: Shape, reference: int, *, backward: bool, **keywords
) -> list[jax.ShapeDtypeStruct]:
    """Return the arguments of `make_operator`, rows as projections leave them."""
    lanes = shape.heads * shape.width
    rows, extra = shape.rows, shape.reference_rows(reference)

    def array(length: int, *rest: int, dtype=jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, length, *rest), dtype, **keywords)

    arrays = [array(rows, lanes)] * 3 + [array(extra, lanes)] * 2
    arrays += [array(rows, dtype=jnp.bool_), array(extra, dtype=jnp.bool_)]
    return [*arrays, array(rows, lanes)] if backward else arrays


def make_operator(shape: Shape, *, backward: bool, attend=target_attention, **chosen):
    """Return a function of q, k, v, reference k and v, both validities (and d_out)."""

    def split(x: Array) -> Array:
        return x.reshape(*x.shape[:2], shape.heads, shape.width)

    def forward(valid, reference_valid, *rows):
        if shape.segment is not None:
            length = shape.reference_rows(shape.segment)
            ids = jnp.arange(shape.rows, dtype=jnp.int32)[None] // length
            rows = map(split, rows[:3])
            out = segment_attention(*rows, valid=valid, segment_ids=ids, **chosen)
            return out.reshape(*out.shape[:2], -1)
        out = attend(
            *map(split, rows),
            valid=valid,
            reference_valid=reference_valid,
            window=shape.window,
            **chosen,
        )
        return out.reshape(rows[0].shape)

    def run(*arrays):
        rows, (valid, reference_valid), d_out = arrays[:5], arrays[5:7], arrays[7:]
        call = functools.partial(forward, valid, reference_valid)
        if not backward:
            return call(*rows)
        return jax.vjp(call, *rows)[1](*d_out)

    return run
