"""What the kernels are given: queries, and one or two sources of keys and values."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from avatar_kernels.reference_attention import visits
from avatar_kernels.reference_attention.reference import LocalWindow

# (queries per block, keys per block) -> which blocks see which: some, full; B i j, with
# i = 1 where all blocks of queries see the same.
See = Callable[[int, int], tuple[Bool[Array, "B i j"], Bool[Array, "B i j"]]]


class Source(NamedTuple):
    """Keys and values, and who sees them; the integers are those of `visits`."""

    k: Float[Array, "B S N K"]
    v: Float[Array, "B S N K"]
    key_meta: Int[Array, "B m S"]  # m = 1 + n: valid, then n coordinates
    query_meta: Int[Array, "B n T"]
    reach: tuple[int, ...]  # n
    see: See
    window: LocalWindow | None = None

    def longest(self, q: int, kv: int) -> tuple[int, int]:
        """Return how many blocks one of queries visits at most, and one of keys."""
        rows, keys = self.query_meta.shape[-1], self.k.shape[1]
        if self.window is None:
            return visits.divide(keys, kv), visits.divide(rows, q)
        near, _ = visits.by_window(self.window, rows, q=q, kv=kv)
        return int(near.sum(1).max()), int(near.sum(0).max())


def plain(
    k: Float[Array, "B S N K"],
    v: Float[Array, "B S N K"],
    valid: Bool[Array, "B S"],
    *,
    queries: int,
) -> Source:
    """All queries see all valid keys."""

    def see(q: int, kv: int) -> tuple[Array, Array]:
        some, full = visits.by_validity(valid, kv)
        return some[:, None], full[:, None]

    none = jnp.zeros((len(k), 0, queries), jnp.int32)
    return Source(k, v, valid[:, None].astype(jnp.int32), none, (), see)


def windowed(
    k: Float[Array, "B T N K"],
    v: Float[Array, "B T N K"],
    valid: Bool[Array, "B T"],
    window: LocalWindow,
) -> Source:
    """Queries see valid keys inside the window."""
    batch, rows = valid.shape
    query, key = window.coordinates(rows)

    def see(q: int, kv: int) -> tuple[Array, Array]:
        some, full = visits.by_validity(valid, kv)
        near, inside = visits.by_window(window, rows, q=q, kv=kv)
        return some[:, None] & near[None], full[:, None] & inside[None]

    query_meta = jnp.broadcast_to(query, (batch, *query.shape))
    key = jnp.broadcast_to(key, (batch, *key.shape))
    key_meta = jnp.concatenate([valid[:, None].astype(jnp.int32), key], 1)
    return Source(k, v, key_meta, query_meta, window.reach, see, window)


def segments(
    k: Float[Array, "B R N K"],
    v: Float[Array, "B R N K"],
    valid: Bool[Array, "B R"],
    segment_ids: Int[Array, "B R"],
) -> Source:
    """Queries see valid keys of their own segment."""
    ids = (segment_ids - segment_ids.min())[:, None].astype(jnp.int32)  # 0 or more

    def see(q: int, kv: int) -> tuple[Array, Array]:
        return visits.by_segment(valid, segment_ids, q=q, kv=kv)

    key_meta = jnp.concatenate([valid[:, None].astype(jnp.int32), ids], 1)
    return Source(k, v, key_meta, ids, (0,), see)
