"""Sparse Reference Attention on TPU, forward (Mosaic TPU).

One online softmax runs over both sources. The grid is (batch, pair of heads, block of
queries, step); steps walk the lists of `visits`, first the own keys', then the
reference's. Both sources have their own block specs: while one is walked the other's
index stands still, so that nothing of it is loaded, and nothing is ever concatenated.
The number of steps is the longest list, known at run time: padding costs nothing.

Scores are kept transposed, keys in sublanes and queries in lanes: maximum and sum over
keys are then plain vector operations, per-query statistics are one lane vector, and the
log-sum-exp is written as it lies. With s_t = c k q^T, c = log2(e) / sqrt(K):

  m' = max(m, max_keys s_t)        p = 2^(s_t - m')        a = 2^(m - m')
  l' = a l + sum_keys p            acc' = a acc + v^T p    o = (acc / l)^T

Rows come as `B T (N K)`, the layout of the projections, in blocks of 128 lanes: one
head of 128 or two of 64. VMEM (bytes, bf16 rows, q and kv per block): 2 x 2 x 128
(2 q + 2 S kv) for S sources and the double buffer, 4 x 128 q for acc, and about
10 x q x kv_compute for scores and weights on their way.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from avatar_kernels.reference_attention import tpu_walks, visits
from avatar_kernels.reference_attention.block_sizes import BlockSizes
from avatar_kernels.reference_attention.products import (
    KEYS_LAST,
    LOG2_E,
    ROWS_FIRST,
    dot,
)
from avatar_kernels.reference_attention.reference import MASKED
from avatar_kernels.reference_attention.sources import Source
from avatar_kernels.reference_attention.tpu_walks import Ref, Walk
from avatar_kernels.tpu import LANES


def forward(
    q: Float[Array, "B T N K"], sources: list[Source], sizes: BlockSizes
) -> tuple[Float[Array, "B T N K"], Float[Array, "B T N"]]:
    """Return output and log-sum-exp (-1e30 where nothing is seen)."""
    batch, rows, heads, width = q.shape
    block_q = sizes.q
    groups, per_group = group_heads(heads, width)
    walks = tpu_walks.walk_keys(sources, sizes)
    starts = tpu_walks.place_walks(walks)
    grid = (batch, groups, visits.divide(rows, block_q), starts[-1])
    in_specs = [row_spec(block_q, lambda b, g, i, j, *_: (b, i, g))]
    operands = [fold(q)]
    for index, (walk, source) in enumerate(zip(walks, sources, strict=True)):
        specs, arrays = key_specs(index, walk, source, sizes)
        in_specs, operands = in_specs + specs, operands + arrays
    scalars = [starts, *(leaf for walk in walks for leaf in walk.arrays)]
    tpu_walks.check_scalars(scalars)
    kernel = functools.partial(
        _kernel, walks=walks, sources=sources, sizes=sizes, width=width
    )
    stats = pl.BlockSpec(
        (1, per_group, block_q), lambda b, g, i, j, *_: (b * groups + g, 0, i)
    )
    out, lse = pl.pallas_call(
        kernel,
        out_shape=(
            jax.ShapeDtypeStruct(operands[0].shape, q.dtype),
            jax.ShapeDtypeStruct((batch * groups, per_group, rows), jnp.float32),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=grid,
            in_specs=in_specs,
            out_specs=(row_spec(block_q, lambda b, g, i, j, *_: (b, i, g)), stats),
            scratch_shapes=[
                pltpu.VMEM((per_group, block_q), jnp.float32),
                pltpu.VMEM((per_group, block_q), jnp.float32),
                pltpu.VMEM((LANES, block_q), jnp.float32),
            ],
        ),
        compiler_params=compiler_params(sizes),
        name="reference_attention_forward",
    )(*scalars, *operands)
    return unfold(out, q.shape), unfold_stats(lse, batch, heads)


def _kernel(starts: Ref, *refs: Ref, walks, sources, sizes, width) -> None:
    """One step: a block of queries against a block of keys of one source."""
    scalars, refs = refs[: 2 * len(walks)], refs[2 * len(walks) :]
    q, refs = refs[0], refs[1:]
    step = pl.program_id(3)
    *keys, out, lse, peak, total, mixed = refs

    @pl.when(step == 0)
    def _():
        peak[...] = jnp.full_like(peak, MASKED)
        total[...] = jnp.zeros_like(total)
        mixed[...] = jnp.zeros_like(mixed)

    def visit(source: Source, rows: Sequence[Ref], masked: bool) -> None:
        _accumulate(
            q,
            rows,
            (peak, total, mixed),
            reach=source.reach,
            masked=masked,
            compute=sizes.kv_compute,
            width=width,
        )

    tpu_walks.walk_sources(starts, scalars, keys, walks, sources, visit)

    @pl.when(step == pl.num_programs(3) - 1)
    def _():
        _finish(out, lse, peak, total, mixed, width)


def _accumulate(
    q: Ref,
    rows: Sequence[Ref],
    state: tuple[Ref, Ref, Ref],
    *,
    reach: tuple[int, ...],
    masked: bool,
    compute: int,
    width: int,
) -> None:
    """Take one block of keys into the softmax, `compute` keys at a time."""
    k, v, key_meta, *query_meta = rows
    peak, total, mixed = state

    @pl.loop(0, k.shape[1] // compute, unroll=True)
    def _(part):
        some = pl.ds(part * compute, compute)
        seen = find_seen(key_meta[0, :, some], query_meta, reach) if masked else None
        for head in range(LANES // width):
            lanes = pl.ds(head * width, width)
            line = pl.ds(head, 1)
            values = v[0, some, lanes]
            s = dot(k[0, some, lanes], q[0, :, lanes], KEYS_LAST)
            s = s * (LOG2_E * width**-0.5)
            if masked:
                s = jnp.where(seen, s, MASKED)
                values = zero_rows(values, key_meta[0, :, some])
            before = peak[line]
            after = jnp.maximum(before, s.max(0, keepdims=True))
            p = jnp.exp2(s - after)
            if masked:
                p = jnp.where(seen, p, 0.0)
            shrink = jnp.exp2(before - after)
            peak[line] = after
            total[line] = total[line] * shrink + p.sum(0, keepdims=True)
            added = dot(values, p.astype(values.dtype), ROWS_FIRST)
            mixed[lanes] = mixed[lanes] * shrink + added


def _finish(out, lse, peak, total, mixed, width: int) -> None:
    seen = total[...] > 0
    safe = jnp.where(seen, total[...], 1.0)
    lse[0] = jnp.where(seen, peak[...] / LOG2_E + jnp.log(safe), MASKED)
    for head in range(LANES // width):
        lanes = pl.ds(head * width, width)
        mixed[lanes] = mixed[lanes] / safe[head : head + 1]
    out[0] = mixed[...].T.astype(out.dtype)


def find_seen(
    key_meta: Array, query_meta: Sequence[Ref], reach: tuple[int, ...]
) -> Array:
    """Return who sees whom, keys by queries (or by 1)."""
    columns = stand(key_meta)  # keys m
    seen = columns[:, :1] > 0
    for axis, limit in enumerate(reach):
        key, query = columns[:, axis + 1 : axis + 2], query_meta[0][0, axis][None]
        seen = seen & ((jnp.abs(key - query) <= limit) | (key < 0))
    return seen


def stand(meta: Array) -> Array:
    """Turn lane vectors `m keys` into columns `keys m`."""
    rows = jnp.concatenate(
        [meta, jnp.zeros((8 - len(meta), meta.shape[1]), meta.dtype)]
    )
    return rows.T


def zero_rows(values: Array, key_meta: Array) -> Array:
    """Zero the rows that are not valid: beyond the end lies anything, NaN too."""
    return jnp.where(stand(key_meta)[:, :1] > 0, values, jnp.zeros_like(values))


def row_spec(block: int, index_map) -> pl.BlockSpec:
    """Return the spec of a block of rows of one group of heads."""
    return pl.BlockSpec((1, block, LANES), index_map)


def key_specs(
    index: int, walk: Walk, source: Source, sizes: BlockSizes
) -> tuple[list[pl.BlockSpec], list[Array]]:
    """Return specs and operands of a source's keys, values and integers."""

    def block(b, i, j, starts, *scalars):
        return walk.block(scalars[2 * index + 1], b, i, j - starts[index])

    def rows(b, g, i, j, *scalars):
        return b, block(b, i, j, *scalars), g

    def meta(b, g, i, j, *scalars):
        return b, 0, block(b, i, j, *scalars)

    kinds, block_kv = source.key_meta.shape[1], sizes.kv
    specs = [
        row_spec(block_kv, rows),
        row_spec(block_kv, rows),
        pl.BlockSpec((1, kinds, block_kv), meta),
    ]
    operands = [
        fold(source.k),
        fold(source.v),
        visits.pad_rows(source.key_meta, block_kv),
    ]
    if source.reach:
        specs.append(
            pl.BlockSpec(
                (1, len(source.reach), sizes.q), lambda b, g, i, j, *_: (b, 0, i)
            )
        )
        operands.append(source.query_meta)
    return specs, operands


def group_heads(heads: int, width: int) -> tuple[int, int]:
    """Return groups of heads that fill 128 lanes, and heads per group."""
    per_group = LANES // width
    return visits.divide(heads, per_group), per_group


def fold(x: Float[Array, "B T N K"]) -> Float[Array, "B T lanes"]:
    """Lay heads side by side; an odd head of 64 gets an empty neighbour."""
    batch, rows, heads, width = x.shape
    missing = -heads % (LANES // width)
    if missing:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, missing), (0, 0)))
    return x.reshape(batch, rows, -1)


def unfold(
    x: Float[Array, "B T lanes"], shape: tuple[int, ...]
) -> Float[Array, "B T N K"]:
    """Undo `fold`."""
    batch, rows, heads, width = shape
    return x[..., : heads * width].reshape(batch, rows, heads, width)


def unfold_stats(
    stats: Float[Array, "groups heads T"], batch: int, heads: int
) -> Float[Array, "B T N"]:
    """Return one number for each query and head."""
    lines = stats.reshape(batch, -1, stats.shape[-1])[:, :heads]
    return jnp.swapaxes(lines, 1, 2)


def compiler_params(sizes: BlockSizes) -> pltpu.CompilerParams:
    """Return what all of these kernels ask of the compiler."""
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
        vmem_limit_bytes=sizes.vmem_limit_bytes,
        fuse_transposed_lhs_in_matmul=True,
    )
