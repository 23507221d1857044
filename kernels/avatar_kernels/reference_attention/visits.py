"""Which blocks of keys each block of queries visits: the plan all kernels follow.

A kernel walks, for block i of queries, a list of blocks of keys that hold at least one
row it may see. Blocks that are not in the list are neither loaded nor computed:
padding at the end of a packed reference, other segments, latents outside a window.
What a row is, besides its values, is told by a few integers:

  key meta    B 1+n S   valid (0 or 1), then n coordinates
  query meta  B n T     the same n coordinates

Query t sees key s where s is valid and for every coordinate |t - s| <= reach, or the
key's coordinate is negative (seen by all). Segments are one coordinate with reach 0, a
window over latents and rows two.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from avatar_kernels.reference_attention.reference import LocalWindow


class Visits(NamedTuple):
    """For each block of one side, the blocks of the other side that it visits.

    Attributes:
      count: how many.
      block: their numbers in order, then the last one again and again, so that a
        pipeline that has run off the list loads nothing new.
      full: 1 where every pair of rows sees each other, so that no mask is needed.
    """

    count: Int[Array, "b i"]
    block: Int[Array, "b i j"]
    full: Int[Array, "b i j"]


def divide(rows: int, block: int) -> int:
    """Return the number of blocks that hold so many rows."""
    return math.ceil(rows / block)


def pad_rows(meta: Int[Array, "B n S"], block: int) -> Int[Array, "B n S2"]:
    """Pad to whole blocks with zeros: rows that are not valid."""
    extra = -meta.shape[-1] % block
    return jnp.pad(meta, ((0, 0), (0, 0), (0, extra)))


def list_visits(
    some: Bool[Array, "b i j"], full: Bool[Array, "b i j"], *, longest: int
) -> Visits:
    """List the blocks j that block i visits.

    Args:
      some: whether any row of i sees any row of j (may say yes too often).
      full: whether all of i see all of j.
      longest: of the lists; blocks per row that can be seen at most.
    """
    count = some.sum(-1, dtype=jnp.int32)
    order = jnp.argsort(~some, axis=-1, stable=True)[..., :longest]
    last = jnp.take_along_axis(order, jnp.maximum(count - 1, 0)[..., None], -1)
    place = jnp.arange(order.shape[-1])[None, None]
    block = jnp.where(place < count[..., None], order, last)
    is_full = jnp.take_along_axis(full, block, -1)
    return Visits(count, block.astype(jnp.int32), is_full.astype(jnp.int32))


class Order(NamedTuple):
    """For each block of one side, those that it visits, without a mask first.

    Attributes:
      ends: where the visits without a mask end, and where all do.
      block: their numbers; beyond the end, any.
    """

    ends: Int[Array, "b i 2"]
    block: Int[Array, "b i j"]


def order_visits(some: Bool[Array, "b i j"], full: Bool[Array, "b i j"]) -> Order:
    """List the blocks for kernels that have a loop of their own for whole ones."""
    full = full & some
    ends = jnp.stack([m.sum(-1, dtype=jnp.int32) for m in (full, some)], -1)
    order = jnp.argsort(2 - full.astype(jnp.int8) - some, axis=-1, stable=True)
    return Order(ends, order.astype(jnp.int32))


def turn_round(
    see: Callable, q: int, kv: int, *, rows: int
) -> tuple[Bool[Array, "B j i"], Bool[Array, "B j i"]]:
    """Say for each block of keys which blocks of queries see it: some, full.

    Args:
      see: of a `sources.Source`: (q, kv) to which blocks see which, some and full.
      q: queries per block; a last block that is not filled is never whole.
      kv: keys per block.
      rows: number of queries.
    """
    some, full = see(q, kv)
    count = divide(rows, q)
    if rows % q:
        full = full & (jnp.arange(count) < count - 1)[None, :, None]
    shape = some.shape[0], count, some.shape[-1]
    some, full = (jnp.swapaxes(jnp.broadcast_to(m, shape), 1, 2) for m in (some, full))
    return some, full


def by_validity(
    valid: Bool[Array, "B S"], block: int
) -> tuple[Bool[Array, "B j"], Bool[Array, "B j"]]:
    """Return which blocks of keys hold any valid row, and which hold nothing else."""
    rows = pad_rows(valid[:, None].astype(jnp.int32), block)
    rows = rows.reshape(len(valid), -1, block) > 0
    return rows.any(-1), rows.all(-1)


def by_segment(
    valid: Bool[Array, "B R"], segment_ids: Int[Array, "B R"], *, q: int, kv: int
) -> tuple[Bool[Array, "B i j"], Bool[Array, "B i j"]]:
    """Return which pairs of blocks share a segment, and which are one segment."""
    some, whole = by_validity(valid, kv)
    q_low, q_high = _extremes(segment_ids, q)
    k_low, k_high = _extremes(segment_ids, kv)
    meet = (q_low[..., None] <= k_high[:, None]) & (k_low[:, None] <= q_high[..., None])
    one = (q_low[..., None] == k_high[:, None]) & (k_low[:, None] == q_high[..., None])
    return meet & some[:, None], one & whole[:, None]


def _extremes(
    ids: Int[Array, "B R"], block: int
) -> tuple[Int[Array, "B i"], Int[Array, "B i"]]:
    rows = jnp.pad(ids, ((0, 0), (0, -ids.shape[1] % block)), mode="edge")
    rows = rows.reshape(len(ids), -1, block)
    return rows.min(-1), rows.max(-1)


def by_window(
    window: LocalWindow, rows: int, *, q: int, kv: int
) -> tuple[Bool[np.ndarray, "i j"], Bool[np.ndarray, "i j"]]:
    """Return the same for a window, from its lines (rows of the picture) alone."""
    lines = window.lines(rows)
    per_line = window.grid[1]
    total = np.zeros((len(lines) + 1,) * 2, np.int64)
    total[1:, 1:] = lines.cumsum(0).cumsum(1)
    q_low, q_high = _line_bounds(rows, q, per_line)
    k_low, k_high = _line_bounds(rows, kv, per_line)
    seen = (
        total[q_high[:, None], k_high]
        - total[q_low[:, None], k_high]
        - total[q_high[:, None], k_low]
        + total[q_low[:, None], k_low]
    )
    area = (q_high - q_low)[:, None] * (k_high - k_low)
    return seen > 0, seen == area


def _line_bounds(rows: int, block: int, per_line: int) -> tuple[np.ndarray, np.ndarray]:
    start = np.arange(0, rows, block)
    return start // per_line, -(-np.minimum(start + block, rows) // per_line)
