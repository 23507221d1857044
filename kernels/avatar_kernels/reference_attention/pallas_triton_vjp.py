"""Sparse Reference Attention on GPUs from sm_80 on, backward (Triton lowering).

Two kernels along the same lists as the forward kernel. With the saved log-sum-exp L,
D = rowsum(do * o) - dL and p = exp(q k^T / sqrt(K) - L), which both make again:

  ds = p (do v^T - D) / sqrt(K)
  backward_q    dq = sum_keys ds k           grid and sources as in the forward
  backward_kv   dk = ds^T q,  dv = p^T do    once per source: a block of keys walks the
                                             queries that see it, scores transposed

Seven products instead of five, no atomic sums, nothing of the size of the scores in
memory. `backward_q` also makes D. A query beyond the end has p = 0: its L is read as
infinite.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from avatar_kernels.reference_attention import pallas_triton, visits
from avatar_kernels.reference_attention.block_sizes import BlockSizes
from avatar_kernels.reference_attention.pallas_triton import (
    find_seen,
    find_valid,
    load_rows,
)
from avatar_kernels.reference_attention.products import KEYS_LAST, LOG2_E, PLAIN, dot
from avatar_kernels.reference_attention.reference import MASKED
from avatar_kernels.reference_attention.sources import Source


def backward_q(
    q: Float[Array, "B T N K"],
    sources: list[Source],
    out: Float[Array, "B T N K"],
    d_out: Float[Array, "B T N K"],
    lse: Float[Array, "B T N"],
    d_lse: Float[Array, "B T N"],
    sizes: BlockSizes,
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "B T N K"], Float[Array, "B T N"]]:
    """Return the gradient of the queries, and D; arguments: `vjp.Kernels`."""
    sizes = pallas_triton.fit(sizes, q)
    batch, rows, heads, width = q.shape
    by_query = pallas_triton.row_spec(sizes.q, width)
    stat = pallas_triton.stat_spec(sizes.q)
    in_specs = [by_query, by_query, by_query, stat, stat]
    operands = [q, out, d_out, jnp.swapaxes(lse, 1, 2), jnp.swapaxes(d_lse, 1, 2)]
    for source in sources:
        specs, arrays = pallas_triton.key_specs(source, sizes)
        in_specs, operands = in_specs + specs, operands + arrays
    kernel = functools.partial(_kernel_q, sources=sources, sizes=sizes, rows=rows)
    dq, delta = pl.pallas_call(
        kernel,
        out_shape=(
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((batch, heads, rows), jnp.float32),
        ),
        grid=(visits.divide(rows, sizes.q), heads, batch),
        in_specs=in_specs,
        out_specs=(by_query, stat),
        compiler_params=pallas_triton.compiler_params(q),
        interpret=interpret,
        name="reference_attention_backward_q",
    )(*operands)
    return dq, jnp.swapaxes(delta, 1, 2)


def _kernel_q(q, out, d_out, lse, d_lse, *refs, sources, sizes, rows: int) -> None:
    """Let a block of queries of one head walk the blocks of keys it sees."""
    *keys, dq, delta = refs
    inside = pallas_triton.find_inside(rows, pl.program_id(0), sizes.q)
    queries, d_queries = load_rows(q, inside), load_rows(d_out, inside)  # q K
    products = d_queries.astype(jnp.float32) * load_rows(out, inside)
    d_line = triton.load(d_lse, mask=inside, other=0.0)
    line = triton.load(lse, mask=inside, other=-MASKED)
    stat = products.sum(1) - d_line  # q
    triton.store(delta, stat, mask=inside)
    total = (jnp.zeros(queries.shape, jnp.float32),)
    for source, walk, parts in pallas_triton.split_sources(keys, sources):
        visit = functools.partial(
            _accumulate_q,
            (queries, d_queries, line * LOG2_E, stat),
            parts,
            source.reach,
            sizes.kv,
        )
        filled = source.k.shape[1] >= sizes.kv
        total = pallas_triton.walk_blocks(walk, visit, total, filled=filled)
    pallas_triton.store_rows(dq, total[0], inside)


def _accumulate_q(
    given: tuple,
    parts: tuple,
    reach: tuple[int, ...],
    size: int,
    block: Array,
    total: tuple[Array],
    *,
    masked: bool,
) -> tuple[Array]:
    """Add what one block of keys gives."""
    queries, d_queries, line, stat = given
    k, v, key_meta, *query_meta = parts
    some = pl.ds(block * size, size)
    valid = find_valid(key_meta, some) if masked else None
    keys, values = load_rows(k.at[some], valid), load_rows(v.at[some], valid)
    scale = queries.shape[1] ** -0.5
    p = jnp.exp2(dot(queries, keys, KEYS_LAST) * (LOG2_E * scale) - line[:, None])
    if masked:
        seen = find_seen(valid[None], key_meta, some, query_meta, reach, keys_axis=1)
        p = jnp.where(seen, p, 0.0)
    dp = dot(d_queries, values, KEYS_LAST)  # q kv
    ds = p * ((dp - stat[:, None]) * scale)
    return (total[0] + dot(ds.astype(keys.dtype), keys, PLAIN),)


def backward_kv(
    q: Float[Array, "B T N K"],
    source: Source,
    d_out: Float[Array, "B T N K"],
    lse: Float[Array, "B T N"],
    delta: Float[Array, "B T N"],
    sizes: BlockSizes,
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "B S N K"], Float[Array, "B S N K"]]:
    """Return the gradients of one source's keys and values; see `backward_q`."""
    sizes = pallas_triton.fit(sizes, q)
    batch, rows, heads, width = q.shape
    shape = source.k.shape
    walk = visits.order_visits(
        *visits.turn_round(source.see, sizes.q, sizes.kv, rows=rows)
    )
    by_key = pallas_triton.row_spec(sizes.kv, width)
    all_rows = pallas_triton.row_spec(None, width, rows)
    all_stats = pallas_triton.stat_spec(None, rows)
    key_meta = visits.pad_rows(source.key_meta, sizes.kv)
    in_specs = [
        *pallas_triton.walk_specs(walk),
        *(all_rows, all_rows, all_stats, all_stats, by_key, by_key),
        pallas_triton.meta_spec(key_meta.shape[1], sizes.kv),
    ]
    operands = [*walk, q, d_out, jnp.swapaxes(lse, 1, 2), jnp.swapaxes(delta, 1, 2)]
    operands += [source.k, source.v, key_meta]
    if source.reach:
        query_meta = visits.pad_rows(source.query_meta, sizes.q)
        kinds, padded = query_meta.shape[1:]
        in_specs.append(pallas_triton.meta_spec(kinds, None, padded))
        operands.append(query_meta)
    kernel = functools.partial(
        _kernel_kv, reach=source.reach, rows=(rows, shape[1]), sizes=sizes
    )
    dk, dv = pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct(shape, q.dtype)] * 2,
        grid=(visits.divide(shape[1], sizes.kv), heads, batch),
        in_specs=in_specs,
        out_specs=[by_key, by_key],
        compiler_params=pallas_triton.compiler_params(q),
        interpret=interpret,
        name="reference_attention_backward_kv",
    )(*operands)
    return dk, dv


def _kernel_kv(
    ends,
    blocks,
    *refs,
    reach: tuple[int, ...],
    rows: tuple[int, int],
    sizes: BlockSizes,
) -> None:
    """Let a block of keys of one head walk the blocks of queries that see it."""
    q, d_out, lse, delta, k, v, key_meta, *query_meta, dk, dv = refs
    everything = pl.ds(0, sizes.kv)
    valid = find_valid(key_meta, everything)
    keys, values = load_rows(k, valid), load_rows(v, valid)  # kv K
    scale = keys.shape[1] ** -0.5

    def visit(block: Array, state: tuple, *, masked: bool) -> tuple:
        total_k, total_v = state
        some = pl.ds(block * sizes.q, sizes.q)
        inside = pallas_triton.find_inside(rows[0], block, sizes.q) if masked else None
        queries = load_rows(q.at[some], inside)  # q K
        d_queries = load_rows(d_out.at[some], inside)
        line, stat = lse.at[some], delta.at[some]
        if masked:
            line = triton.load(line, mask=inside, other=-MASKED)
            stat = triton.load(stat, mask=inside, other=0.0)
        s = dot(keys, queries, KEYS_LAST)  # kv q
        p = jnp.exp2(s * (LOG2_E * scale) - line[...][None] * LOG2_E)
        if masked:
            seen = find_seen(
                valid[:, None],
                key_meta,
                everything,
                query_meta,
                reach,
                keys_axis=0,
                queries=some,
            )
            p = jnp.where(seen, p, 0.0)
        total_v = total_v + dot(p.astype(d_queries.dtype), d_queries, PLAIN)
        dp = dot(values, d_queries, KEYS_LAST)
        ds = p * ((dp - stat[...][None]) * scale)
        return total_k + dot(ds.astype(queries.dtype), queries, PLAIN), total_v

    zeros = jnp.zeros(keys.shape, jnp.float32)
    total_k, total_v = pallas_triton.walk_blocks(
        (ends, blocks), visit, (zeros, zeros), filled=rows[0] >= sizes.q
    )
    inside = pallas_triton.find_inside(rows[1], pl.program_id(0), sizes.kv)
    pallas_triton.store_rows(dk, total_k, inside)
    pallas_triton.store_rows(dv, total_v, inside)
