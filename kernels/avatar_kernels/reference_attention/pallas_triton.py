"""Sparse Reference Attention on GPUs from sm_80 on, forward (Triton lowering).

One program takes a block of queries of one head and runs one online softmax over both
sources, first the own keys, then the reference's; they are never concatenated. Of each
source it walks the list of `visits`, those blocks first in which everything is seen:
their loop holds no mask and no branch, so that loads are pipelined. With
c = log2(e) / sqrt(K):

  m' = max(m, max_keys c q k^T)    p = 2^(c q k^T - m')    a = 2^(m - m')
  l' = a l + sum_keys p            acc' = a acc + p v      o = acc / l

Rows are read where they lie, `B T N K`, a block of one head at a time; those beyond the
end, or not valid, are not loaded but taken as zero. Shared memory (bytes, rows of K
numbers of b bytes): b K (q + 4 kv).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float

from avatar_kernels.reference_attention import visits
from avatar_kernels.reference_attention.block_sizes import BlockSizes
from avatar_kernels.reference_attention.products import KEYS_LAST, LOG2_E, PLAIN, dot
from avatar_kernels.reference_attention.reference import MASKED
from avatar_kernels.reference_attention.sources import Source

STAGES = 3  # of the loops' pipeline: two blocks on their way while one is used


def forward(
    q: Float[Array, "B T N K"],
    sources: list[Source],
    sizes: BlockSizes,
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "B T N K"], Float[Array, "B T N"]]:
    """Return output and log-sum-exp (-1e30 where nothing is seen)."""
    sizes = fit(sizes, q)
    batch, rows, heads, width = q.shape
    in_specs, operands = [row_spec(sizes.q, width)], [q]
    for source in sources:
        specs, arrays = key_specs(source, sizes)
        in_specs, operands = in_specs + specs, operands + arrays
    kernel = functools.partial(_kernel, sources=sources, sizes=sizes, rows=rows)
    out, lse = pl.pallas_call(
        kernel,
        out_shape=(
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((batch, heads, rows), jnp.float32),
        ),
        grid=(visits.divide(rows, sizes.q), heads, batch),
        in_specs=in_specs,
        out_specs=(row_spec(sizes.q, width), stat_spec(sizes.q)),
        compiler_params=compiler_params(q),
        interpret=interpret,
        name="reference_attention_forward",
    )(*operands)
    return out, jnp.swapaxes(lse, 1, 2)


def _kernel(q, *refs, sources: list[Source], sizes: BlockSizes, rows: int) -> None:
    """Let a block of queries of one head walk the blocks of keys it sees."""
    *keys, out, lse = refs
    inside = find_inside(rows, pl.program_id(0), sizes.q)
    queries = load_rows(q, inside)  # q K
    peak = jnp.full((sizes.q,), MASKED, jnp.float32)
    state = peak, jnp.zeros_like(peak), jnp.zeros(queries.shape, jnp.float32)
    for source, walk, parts in split_sources(keys, sources):
        visit = functools.partial(_accumulate, queries, parts, source.reach, sizes.kv)
        filled = source.k.shape[1] >= sizes.kv
        state = walk_blocks(walk, visit, state, filled=filled)
    peak, total, mixed = state
    safe = jnp.where(total > 0, total, 1.0)
    line = jnp.where(total > 0, peak / LOG2_E + jnp.log(safe), MASKED)
    triton.store(lse, line, mask=inside)
    store_rows(out, mixed / safe[:, None], inside)


def _accumulate(
    queries: Array,
    parts: tuple,
    reach: tuple[int, ...],
    size: int,
    block: Array,
    state: tuple[Array, Array, Array],
    *,
    masked: bool,
) -> tuple[Array, Array, Array]:
    """Take one block of keys into the softmax."""
    k, v, key_meta, *query_meta = parts
    before, total, mixed = state
    some = pl.ds(block * size, size)
    valid = find_valid(key_meta, some) if masked else None
    s = dot(queries, load_rows(k.at[some], valid), KEYS_LAST)  # q kv
    s = s * (LOG2_E * queries.shape[1] ** -0.5)
    seen = None
    if masked:
        seen = find_seen(valid[None], key_meta, some, query_meta, reach, keys_axis=1)
        s = jnp.where(seen, s, MASKED)
    after = jnp.maximum(before, s.max(1))
    p = jnp.exp2(s - after[:, None])
    if masked:
        p = jnp.where(seen, p, 0.0)
    shrink = jnp.exp2(before - after)
    values = load_rows(v.at[some], valid)  # kv K
    mixed = mixed * shrink[:, None] + dot(p.astype(values.dtype), values, PLAIN)
    return after, total * shrink + p.sum(1), mixed


def walk_blocks(
    walk: tuple, visit: Callable[..., Any], state: tuple[Array, ...], *, filled: bool
) -> tuple[Array, ...]:
    """Visit the blocks where all is seen, then the others, under a mask.

    Args:
      filled: whether there are rows enough to fill a block; otherwise none is whole.
    """
    ends, blocks = walk
    whole, count = ends[0], ends[1]
    parts = ((0, whole, False), (whole, count, True))
    for start, stop, masked in parts if filled else parts[1:]:

        def step(j: Array, state: tuple, masked: bool = masked) -> tuple:
            return visit(blocks[j], state, masked=masked)

        state = jax.lax.fori_loop(start, stop, step, state)
    return state


def split_sources(
    refs: list, sources: list[Source]
) -> Iterator[tuple[Source, tuple, tuple]]:
    """Return each source with its walk, and with its keys, values and integers."""
    for source in sources:
        parts = 5 + bool(source.reach)
        yield source, tuple(refs[:2]), tuple(refs[2:parts])
        refs = refs[parts:]


def find_inside(rows: int, block: Array, size: int) -> Bool[Array, " rows"]:
    """Return which rows of a block exist."""
    return jnp.arange(size, dtype=jnp.int32) < rows - block * size


def find_valid(key_meta, some: pl.Slice) -> Bool[Array, " keys"]:
    """Return which keys may be seen by any query; none beyond the end."""
    return key_meta[0, some] > 0


def find_seen(
    seen: Bool[Array, "a b"],
    key_meta,
    some: pl.Slice,
    query_meta: list,
    reach: tuple[int, ...],
    *,
    keys_axis: int,
    queries: pl.Slice | None = None,
) -> Bool[Array, "c d"]:
    """Narrow who sees whom by the coordinates.

    Args:
      seen: what is known; one of its axes may be 1.
      key_meta: the integers of all keys.
      some: which keys.
      query_meta: the integers of queries, where there is a reach.
      reach: how far along each coordinate.
      keys_axis: the axis of `seen` on which keys lie.
      queries: which queries; all that `query_meta` holds if None.
    """
    chosen = slice(None) if queries is None else queries
    for axis, limit in enumerate(reach):
        key = jnp.expand_dims(key_meta[axis + 1, some], 1 - keys_axis)
        query = jnp.expand_dims(query_meta[0][axis, chosen], keys_axis)
        seen = seen & ((jnp.abs(key - query) <= limit) | (key < 0))
    return seen


def load_rows(rows, keep: Bool[Array, " rows"] | None) -> Array:
    """Load rows of one head, zeros for those that are not to be kept."""
    if keep is None:
        return rows[...]
    return triton.load(rows, mask=keep[:, None], other=0.0)


def store_rows(rows, values: Array, keep: Bool[Array, " rows"]) -> None:
    """Store rows of one head."""
    triton.store(rows, values.astype(rows.dtype), mask=keep[:, None])


def row_spec(block: int | None, width: int, rows: int = 0) -> pl.BlockSpec:
    """Return the spec of the program's block of rows, or of all rows if None."""
    if block is None:
        return pl.BlockSpec((None, rows, None, width), lambda i, h, b: (b, 0, h, 0))
    return pl.BlockSpec((None, block, None, width), lambda i, h, b: (b, i, h, 0))


def stat_spec(block: int | None, rows: int = 0) -> pl.BlockSpec:
    """Return the same for one number per row, `B N T`."""
    if block is None:
        return pl.BlockSpec((None, None, rows), lambda i, h, b: (b, h, 0))
    return pl.BlockSpec((None, None, block), lambda i, h, b: (b, h, i))


def meta_spec(kinds: int, block: int | None, rows: int = 0) -> pl.BlockSpec:
    """Return the same for the integers, `B m T`."""
    if block is None:
        return pl.BlockSpec((None, kinds, rows), lambda i, h, b: (b, 0, 0))
    return pl.BlockSpec((None, kinds, block), lambda i, h, b: (b, 0, i))


def walk_specs(walk: visits.Order) -> list[pl.BlockSpec]:
    """Return the specs of the program's list."""
    shared = walk.ends.shape[1] == 1
    return [
        pl.BlockSpec(
            (None, None, leaf.shape[2]), lambda i, h, b: (b, 0 if shared else i, 0)
        )
        for leaf in walk
    ]


def key_specs(
    source: Source, sizes: BlockSizes
) -> tuple[list[pl.BlockSpec], list[Array]]:
    """Return specs and operands: walk, keys, values and integers of a source."""
    walk = visits.order_visits(*source.see(sizes.q, sizes.kv))
    rows, width = source.k.shape[1], source.k.shape[3]
    key_meta = visits.pad_rows(source.key_meta, sizes.kv)
    specs = [
        *walk_specs(walk),
        row_spec(None, width, rows),
        row_spec(None, width, rows),
        meta_spec(key_meta.shape[1], None, key_meta.shape[2]),
    ]
    operands = [*walk, source.k, source.v, key_meta]
    if source.reach:
        specs.append(meta_spec(len(source.reach), sizes.q))
        operands.append(visits.pad_rows(source.query_meta, sizes.q))
    return specs, operands


def fit(sizes: BlockSizes, q: Float[Array, "B T N K"]) -> BlockSizes:
    """Return the blocks for rows of this dtype; float32 takes half as many rows."""
    if q.dtype != jnp.float32:
        return sizes
    half = {name: getattr(sizes, name) // 2 for name in ("q", "kv", "kv_compute")}
    return dataclasses.replace(sizes, **half)


def compiler_params(q: Float[Array, "B T N K"]) -> triton.CompilerParams:
    """Return what all of these kernels ask of the compiler.

    Eight warps keep an accumulator of 128 x 128 in registers. Float32 products do not
    use tensor cores, so there is nothing to hide loads behind.
    """
    return triton.CompilerParams(
        num_warps=8 if q.shape[-1] > 64 else 4,
        num_stages=1 if q.dtype == jnp.float32 else STAGES,
    )
