"""Sparse Reference Attention on TPU, backward (Mosaic TPU).

Two kernels, both in the transposed form of the forward kernel (keys in sublanes,
queries in lanes) and along the same lists. With the saved log-sum-exp L,
D = rowsum(do * o) - dL and p = exp(s_t / sqrt(K) - L), which both kernels make again:

  ds_t = p (v do^T - D) / sqrt(K)
  backward_q    dq^T = sum_keys k^T ds_t          grid and sources as in the forward
  backward_kv   dk = ds_t q,  dv = p do           once per source: a block of keys walks
                                                  the queries that see it

Seven products instead of five, no atomic sums, nothing of the size of the scores in
memory. `backward_q` also makes D, by a product with ones that leaves it in lanes. VMEM
as in the forward kernel, with `o` and `do` beside q and two scores in flight.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from avatar_kernels.reference_attention import pallas_tpu, tpu_walks, visits
from avatar_kernels.reference_attention.block_sizes import BlockSizes
from avatar_kernels.reference_attention.products import (
    KEYS_LAST,
    LOG2_E,
    PLAIN,
    ROWS_FIRST,
    dot,
)
from avatar_kernels.reference_attention.sources import Source
from avatar_kernels.reference_attention.tpu_walks import Ref
from avatar_kernels.tpu import LANES


def backward_q(
    q: Float[Array, "B T N K"],
    sources: list[Source],
    out: Float[Array, "B T N K"],
    d_out: Float[Array, "B T N K"],
    lse: Float[Array, "B T N"],
    d_lse: Float[Array, "B T N"],
    sizes: BlockSizes,
) -> tuple[Float[Array, "B T N K"], Float[Array, "B T N"]]:
    """Return the gradient of the queries, and D; arguments: `vjp.Kernels`."""
    batch, rows, heads, width = q.shape
    groups, per_group = pallas_tpu.group_heads(heads, width)
    walks = tpu_walks.walk_keys(sources, sizes)
    starts = tpu_walks.place_walks(walks)
    by_query = pallas_tpu.row_spec(sizes.q, lambda b, g, i, j, *_: (b, i, g))
    stats = pl.BlockSpec(
        (1, per_group, sizes.q), lambda b, g, i, j, *_: (b * groups + g, 0, i)
    )
    in_specs = [by_query, by_query, by_query, stats, stats]
    operands = [pallas_tpu.fold(a) for a in (q, out, d_out)]
    operands += [fold_stats(a, per_group) for a in (lse, d_lse)]
    for index, (walk, source) in enumerate(zip(walks, sources, strict=True)):
        specs, arrays = pallas_tpu.key_specs(index, walk, source, sizes)
        in_specs, operands = in_specs + specs, operands + arrays
    scalars = [starts, *(leaf for walk in walks for leaf in walk.arrays)]
    tpu_walks.check_scalars(scalars)
    kernel = functools.partial(
        _kernel_q, walks=walks, sources=sources, sizes=sizes, width=width
    )
    dq, delta = pl.pallas_call(
        kernel,
        out_shape=(
            jax.ShapeDtypeStruct(operands[0].shape, q.dtype),
            jax.ShapeDtypeStruct(operands[3].shape, jnp.float32),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(batch, groups, visits.divide(rows, sizes.q), starts[-1]),
            in_specs=in_specs,
            out_specs=(by_query, stats),
            scratch_shapes=[pltpu.VMEM((LANES, sizes.q), jnp.float32)],
        ),
        compiler_params=pallas_tpu.compiler_params(sizes),
        name="reference_attention_backward_q",
    )(*scalars, *operands)
    delta = pallas_tpu.unfold_stats(delta, batch, heads)
    return pallas_tpu.unfold(dq, q.shape), delta


def _kernel_q(starts, *refs, walks, sources, sizes, width) -> None:
    """One step: a block of queries against a block of keys of one source."""
    scalars, refs = refs[: 2 * len(walks)], refs[2 * len(walks) :]
    q, out, d_out, lse, d_lse, *keys, dq, delta, total = refs
    queries = q, d_out, lse, delta
    step = pl.program_id(3)

    @pl.when(step == 0)
    def _():
        total[...] = jnp.zeros_like(total)
        ones = jnp.ones((8, width), jnp.float32)
        for head in range(LANES // width):
            lanes, line = pl.ds(head * width, width), pl.ds(head, 1)
            products = d_out[0, :, lanes].astype(jnp.float32) * out[0, :, lanes]
            delta[0, line] = dot(ones, products, KEYS_LAST)[:1] - d_lse[0, line]

    def visit(source: Source, rows: Sequence[Ref], masked: bool) -> None:
        k, _, key_meta, *_ = rows

        @pl.loop(0, sizes.kv // sizes.kv_compute, unroll=True)
        def _(part):
            some = pl.ds(part * sizes.kv_compute, sizes.kv_compute)
            for head in range(LANES // width):
                lanes = pl.ds(head * width, width)
                _, ds = _score(queries, rows, some, head, source.reach, masked, width)
                keys = k[0, some, lanes]
                if masked:
                    keys = pallas_tpu.zero_rows(keys, key_meta[0, :, some])
                total[lanes] += dot(keys, ds.astype(keys.dtype), ROWS_FIRST)

    tpu_walks.walk_sources(starts, scalars, keys, walks, sources, visit)

    @pl.when(step == pl.num_programs(3) - 1)
    def _():
        dq[0] = total[...].T.astype(dq.dtype)


def _score(
    queries: Sequence[Ref],
    rows: Sequence[Ref],
    some: Any,
    head: int,
    reach,
    masked: bool,
    width: int,
) -> tuple[Array, Array]:
    """Return p and ds_t (keys by queries) of one head, masked pairs zero."""
    q, d_out, lse, delta = queries
    k, v, key_meta, *query_meta = rows
    lanes, line = pl.ds(head * width, width), pl.ds(head, 1)
    s = dot(k[0, some, lanes], q[0, :, lanes], KEYS_LAST)
    p = jnp.exp2(s * (LOG2_E * width**-0.5) - lse[0, line] * LOG2_E)
    seen = None
    if masked:
        seen = pallas_tpu.find_seen(key_meta[0, :, some], query_meta, reach)
        p = jnp.where(seen, p, 0.0)
    dp = dot(v[0, some, lanes], d_out[0, :, lanes], KEYS_LAST)
    ds = p * ((dp - delta[0, line]) * width**-0.5)
    return p, ds if seen is None else jnp.where(seen, ds, 0.0)


def backward_kv(
    q: Float[Array, "B T N K"],
    source: Source,
    d_out: Float[Array, "B T N K"],
    lse: Float[Array, "B T N"],
    delta: Float[Array, "B T N"],
    sizes: BlockSizes,
) -> tuple[Float[Array, "B S N K"], Float[Array, "B S N K"]]:
    """Return the gradients of one source's keys and values; see `backward_q`."""
    batch, rows, heads, width = q.shape
    groups, _ = pallas_tpu.group_heads(heads, width)
    walk = tpu_walks.walk_queries(source, sizes, rows)
    tpu_walks.check_scalars(walk.arrays)
    in_specs, operands = _query_specs(walk, source, (q, d_out), (lse, delta), sizes)
    by_key = pallas_tpu.row_spec(sizes.kv, lambda b, g, i, j, *_: (b, i, g))
    kernel = functools.partial(
        _kernel_kv, walk=walk, reach=source.reach, rows=rows, sizes=sizes, width=width
    )
    steps = jnp.maximum(jnp.max(walk.arrays[0]), 1)
    folded = pallas_tpu.fold(source.k)
    dk, dv = pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct(folded.shape, q.dtype)] * 2,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(walk.arrays),
            grid=(batch, groups, walk.rows, steps),
            in_specs=in_specs,
            out_specs=[by_key, by_key],
            scratch_shapes=[pltpu.VMEM((sizes.kv, LANES), jnp.float32)] * 2,
        ),
        compiler_params=pallas_tpu.compiler_params(sizes),
        name="reference_attention_backward_kv",
    )(*walk.arrays, *operands)
    return tuple(pallas_tpu.unfold(d, source.k.shape) for d in (dk, dv))


def _query_specs(
    walk: tpu_walks.Walk,
    source: Source,
    queries: tuple[Array, Array],
    stats: tuple[Array, Array],
    sizes: BlockSizes,
) -> tuple[list[pl.BlockSpec], list[Array]]:
    """Return specs and operands: rows and numbers of queries, then keys, values."""
    _, _, heads, width = queries[0].shape
    groups, per_group = pallas_tpu.group_heads(heads, width)
    kinds = source.key_meta.shape[1]

    def block(b, i, j, counts, visited):
        return walk.block(visited, b, i, j)

    by_query = pallas_tpu.row_spec(
        sizes.q, lambda b, g, i, j, *s: (b, block(b, i, j, *s), g)
    )
    lines = pl.BlockSpec(
        (1, per_group, sizes.q),
        lambda b, g, i, j, *s: (b * groups + g, 0, block(b, i, j, *s)),
    )
    by_key = pallas_tpu.row_spec(sizes.kv, lambda b, g, i, j, *_: (b, i, g))
    meta = pl.BlockSpec((1, kinds, sizes.kv), lambda b, g, i, j, *_: (b, 0, i))
    specs = [by_query, by_query, lines, lines, by_key, by_key, meta]
    operands = [pallas_tpu.fold(a) for a in queries]
    operands += [fold_stats(a, per_group) for a in stats]
    operands += [pallas_tpu.fold(a) for a in (source.k, source.v)]
    operands.append(visits.pad_rows(source.key_meta, sizes.kv))
    if source.reach:
        coordinates = (1, len(source.reach), sizes.q)
        specs.append(
            pl.BlockSpec(coordinates, lambda b, g, i, j, *s: (b, 0, block(b, i, j, *s)))
        )
        operands.append(source.query_meta)
    return specs, operands


def _kernel_kv(
    counts, visited, *refs, walk, reach, rows: int, sizes, width: int
) -> None:
    """One step: a block of keys against a block of the queries that see it."""
    *refs, dk, dv, total_k, total_v = refs
    queries, keys = refs[:4], refs[4:]
    batch, row, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(step == 0)
    def _():
        total_k[...] = jnp.zeros_like(total_k)
        total_v[...] = jnp.zeros_like(total_v)

    active = step < counts[walk.list(batch, row)]
    whole = walk.is_whole(visited, batch, row, step)

    def visit(masked: bool) -> None:
        left = None
        if masked:
            left = rows - walk.block(visited, batch, row, step) * sizes.q

        @pl.loop(0, sizes.kv // sizes.kv_compute, unroll=True)
        def _(part):
            some = pl.ds(part * sizes.kv_compute, sizes.kv_compute)
            for head in range(LANES // width):
                lanes = pl.ds(head * width, width)
                p, ds = _score(queries, keys, some, head, reach, masked, width)
                q, d_out = (queries[i][0, :, lanes] for i in range(2))
                if masked:
                    p, ds = (_keep_columns(a, left) for a in (p, ds))
                    q, d_out = (_keep_rows(a, left) for a in (q, d_out))
                total_k[some, lanes] += dot(ds.astype(q.dtype), q, PLAIN)
                total_v[some, lanes] += dot(p.astype(d_out.dtype), d_out, PLAIN)

    for masked in (False, True):
        pl.when(active & (whole != masked))(functools.partial(visit, masked))

    @pl.when(step == pl.num_programs(3) - 1)
    def _():
        dk[0] = total_k[...].astype(dk.dtype)
        dv[0] = total_v[...].astype(dv.dtype)


def _keep_columns(a: Array, left: Array) -> Array:
    """Zero queries beyond the end, where anything lies."""
    return jnp.where(jax.lax.broadcasted_iota(jnp.int32, a.shape, 1) < left, a, 0)


def _keep_rows(a: Array, left: Array) -> Array:
    return jnp.where(jax.lax.broadcasted_iota(jnp.int32, a.shape, 0) < left, a, 0)


def fold_stats(
    stats: Float[Array, "B T N"], per_group: int
) -> Float[Array, "groups heads T"]:
    """Lay one number per query and head as the kernels read them."""
    lines = jnp.swapaxes(stats, 1, 2)  # B N T
    lines = jnp.pad(lines, ((0, 0), (0, -lines.shape[1] % per_group), (0, 0)))
    return lines.reshape(-1, per_group, lines.shape[-1])
