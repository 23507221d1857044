"""Sparse Reference Attention on Hopper, backward (Mosaic GPU: TMA, wgmma).

Two kernels built like the forward kernel, one warpgroup that fetches and others of 64
rows each, along the same lists. With the saved log-sum-exp L, D = rowsum(do * o) - dL
and p = exp(q k^T / sqrt(K) - L), which both make again:

  ds = p (do v^T - D) / sqrt(K)
  backward_q    dq = sum_keys ds k           queries stay, keys and values pass
  backward_kv   dk = ds^T q,  dv = p^T do    once per source: keys stay, queries that
                                             see them pass, with do, L, D; transposed

Seven products instead of five, no atomic sums, nothing of the size of the scores in
memory. D is made outside, where it fuses into one pass over o and do. A query beyond
the end has p = 0: its L is infinite. Registers per thread: K / 2 for dq, or K for dk
and dv, and as much as the block that passes for the two scores and as many again.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from avatar_kernels.reference_attention import visits, warpgroups
from avatar_kernels.reference_attention.block_sizes import BlockSizes
from avatar_kernels.reference_attention.products import LOG2_E
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
) -> tuple[Float[Array, "B T N K"], Float[Array, "B T N"]]:
    """Return the gradient of the queries, and D; arguments: `vjp.Kernels`."""
    warpgroups.check(q, *(source.k for source in sources))
    batch, rows, heads, width = q.shape
    blocks, groups = visits.divide(rows, sizes.q), warpgroups.share(sizes.q)
    delta = make_delta(out, d_out, d_lse)
    operands, parts = [q, d_out, *lay_stats(lse, delta, sizes.q)], []
    for source in sources:
        arrays = warpgroups.key_operands(source, sizes)
        operands, parts = operands + arrays, [*parts, len(arrays)]
    mine = warpgroups.row_scratch(groups, warpgroups.GROUP_ROWS, width, dtype=q.dtype)
    ring = warpgroups.row_scratch(warpgroups.STAGES, sizes.kv, width, dtype=q.dtype)
    dq = plgpu.kernel(
        functools.partial(_kernel_q, parts=parts, sources=sources, sizes=sizes),
        out_type=jax.ShapeDtypeStruct(q.shape, q.dtype),
        scratch_types=[
            (mine, mine),
            (ring, ring),
            plgpu.Barrier(num_arrivals=2, num_barriers=groups),
            (plgpu.Barrier(num_barriers=warpgroups.STAGES),) * 2,
            (plgpu.Barrier(num_arrivals=groups, num_barriers=warpgroups.STAGES),) * 2,
        ],
        **warpgroups.launch("backward_q", blocks, heads, batch, groups),
    )(*operands)
    return dq, delta


def _kernel_q(q, d_out, lse, delta, *refs, parts, sources, sizes) -> None:
    """Fetch in the last warpgroup, compute in the others."""
    *refs, dq, rows, rings, here, filled, free = refs
    keys = warpgroups.split(refs, parts)
    groups = warpgroups.share(sizes.q)
    place = warpgroups.find_place()
    fetch = functools.partial(
        warpgroups.fetch_keys, place, keys, sizes.kv, rings, filled, free
    )
    pl.when(place.group == groups)(fetch)

    @pl.when(place.group < groups)
    def _():
        warpgroups.take_registers(groups)
        base = place.block * sizes.q + place.group * warpgroups.GROUP_ROWS
        queries, d_queries = load_own((q, d_out), rows, here, place, base)
        line, stat = (
            warpgroups.read(
                numbers.at[place.batch, place.head, pl.ds(base, warpgroups.GROUP_ROWS)],
                warpgroups.PER_ROW,
            )
            for numbers in (lse, delta)
        )
        given = queries, d_queries, line * LOG2_E, stat
        state = warpgroups.full(queries.shape, 0.0, warpgroups.TILE)
        step = jnp.int32(0)
        for source, (ends, blocks, _, _, *meta) in zip(sources, keys, strict=True):
            see = functools.partial(
                warpgroups.see_keys, place, base, sizes.kv, source.reach, meta
            )
            visit = functools.partial(_visit_keys, given, rings, filled, free, see)
            step, state = warpgroups.walk_blocks(
                place, ends, blocks, visit, step, state
            )
        store_own((state,), (queries,), (dq,), place, base)


def _visit_keys(
    given: tuple, rings, filled, free, see, block: Array, slot: Array, total, *, masked
) -> Array:
    """Add to dq what one block of keys gives."""
    queries, d_queries, line, stat = given
    keys, values = (ring.at[slot] for ring in rings)
    shape = warpgroups.GROUP_ROWS, keys.shape[0]
    for barrier in filled:
        plgpu.barrier_wait(barrier.at[slot])
    s, dp = warpgroups.multiply_transposed(
        (queries, d_queries), (keys, values), shape[1]
    )
    plgpu.barrier_arrive(free[1].at[slot])
    scale = queries.shape[1] ** -0.5
    p = jnp.exp2(s * (LOG2_E * scale) - warpgroups.spread(line, shape, 0))
    if masked:
        p = jnp.where(see(block, shape), p, 0.0)
    ds = p * ((dp - warpgroups.spread(stat, shape, 0)) * scale)
    (total,) = warpgroups.accumulate((total,), (ds.astype(keys.dtype),), (keys,))
    plgpu.barrier_arrive(free[0].at[slot])
    return total


def backward_kv(
    q: Float[Array, "B T N K"],
    source: Source,
    d_out: Float[Array, "B T N K"],
    lse: Float[Array, "B T N"],
    delta: Float[Array, "B T N"],
    sizes: BlockSizes,
) -> tuple[Float[Array, "B S N K"], Float[Array, "B S N K"]]:
    """Return the gradients of one source's keys and values; see `backward_q`."""
    warpgroups.check(q, source.k)
    batch, rows, heads, width = q.shape
    shape = source.k.shape
    blocks = visits.divide(shape[1], sizes.kv)
    groups = warpgroups.share(sizes.kv)
    walk = visits.order_visits(
        *visits.turn_round(source.see, sizes.q, sizes.kv, rows=rows)
    )
    operands = [*walk, q, d_out, *lay_stats(lse, delta, sizes.q), source.k, source.v]
    operands.append(visits.pad_rows(source.key_meta, sizes.kv))
    if source.reach:
        operands.append(visits.pad_rows(source.query_meta, sizes.q))
    mine = warpgroups.row_scratch(groups, warpgroups.GROUP_ROWS, width, dtype=q.dtype)
    ring = warpgroups.row_scratch(warpgroups.STAGES, sizes.q, width, dtype=q.dtype)
    line = plgpu.SMEM((warpgroups.STAGES, sizes.q), jnp.float32)
    dk, dv = plgpu.kernel(
        functools.partial(_kernel_kv, reach=source.reach, sizes=sizes),
        out_type=[jax.ShapeDtypeStruct(shape, q.dtype)] * 2,
        scratch_types=[
            (mine, mine),
            (ring, ring, line, line),
            plgpu.Barrier(num_arrivals=2, num_barriers=groups),
            plgpu.Barrier(num_arrivals=4, num_barriers=warpgroups.STAGES),
            plgpu.Barrier(num_arrivals=groups, num_barriers=warpgroups.STAGES),
        ],
        **warpgroups.launch("backward_kv", blocks, heads, batch, groups),
    )(*operands)
    return dk, dv


def _kernel_kv(ends, blocks, *refs, reach: tuple[int, ...], sizes: BlockSizes) -> None:
    """Fetch queries in the last warpgroup, compute in the others, 64 keys each."""
    *passing, k, v = refs[:6]
    *meta, dk, dv, rows, rings, here, filled, free = refs[6:]
    groups = warpgroups.share(sizes.kv)
    place = warpgroups.find_place()
    fetch = functools.partial(
        _fetch_queries, place, (ends, blocks), passing, sizes.q, rings, filled, free
    )
    pl.when(place.group == groups)(fetch)

    @pl.when(place.group < groups)
    def _():
        warpgroups.take_registers(groups)
        base = place.block * sizes.kv + place.group * warpgroups.GROUP_ROWS
        own = load_own((k, v), rows, here, place, base)

        def see(block: Array, shape: tuple[int, int]) -> Array:
            keys, queries = (
                pl.ds(base, warpgroups.GROUP_ROWS),
                pl.ds(block * sizes.q, sizes.q),
            )
            return warpgroups.find_seen(
                place.batch, meta, keys, queries, reach, shape, keys_axis=0
            )

        visit = functools.partial(_visit_queries, own, rings, filled, free, see)
        zero = warpgroups.full(own[0].shape, 0.0, warpgroups.TILE)
        _, totals = warpgroups.walk_blocks(
            place, ends, blocks, visit, jnp.int32(0), (zero, zero)
        )
        store_own(totals, own, (dk, dv), place, base)


def _fetch_queries(
    place: warpgroups.Place, walk: tuple, passing: list, size: int, rings, filled, free
) -> None:
    """Copy the blocks of queries that are visited, with do, L and D, into the rings."""
    plgpu.set_max_registers(warpgroups.FETCH_REGISTERS, action="decrease")

    def load(block: Array, slot: Array, used: Array) -> None:
        pl.when(used)(functools.partial(plgpu.barrier_wait, free.at[slot]))
        some = pl.ds(block * size, size)
        rows = place.batch, some, place.head
        line = place.batch, place.head, some
        for source, ring, where in zip(
            passing, rings, (rows, rows, line, line), strict=True
        ):
            plgpu.copy_gmem_to_smem(source.at[where], ring.at[slot], filled.at[slot])

    warpgroups.fetch_blocks(place, *walk, load, jnp.int32(0))


def _visit_queries(
    own: tuple, rings, filled, free, see, block: Array, slot: Array, totals, *, masked
) -> tuple[Array, Array]:
    """Add to dk and dv what one block of queries gives."""
    queries, d_queries, lse, delta = (ring.at[slot] for ring in rings)
    shape = warpgroups.GROUP_ROWS, queries.shape[0]
    plgpu.barrier_wait(filled.at[slot])
    s, dp = warpgroups.multiply_transposed(own, (queries, d_queries), shape[1])
    scale = queries.shape[1] ** -0.5
    line = warpgroups.read(lse, warpgroups.PER_COLUMN) * LOG2_E
    p = jnp.exp2(s * (LOG2_E * scale) - warpgroups.spread(line, shape, 1))
    if masked:
        p = jnp.where(see(block, shape), p, 0.0)
    ds = p * (
        (
            dp
            - warpgroups.spread(warpgroups.read(delta, warpgroups.PER_COLUMN), shape, 1)
        )
        * scale
    )
    weights = tuple(a.astype(queries.dtype) for a in (ds, p))
    totals = warpgroups.accumulate(totals, weights, (queries, d_queries))
    plgpu.barrier_arrive(free.at[slot])
    return totals


def load_own(arrays: tuple, rows, here, place: warpgroups.Place, base: Array) -> tuple:
    """Fetch the rows that stay with a warpgroup; return where they are."""
    mine = place.batch, pl.ds(base, warpgroups.GROUP_ROWS), place.head
    own = tuple(part.at[place.group] for part in rows)
    for array, part in zip(arrays, own, strict=True):
        plgpu.copy_gmem_to_smem(array.at[mine], part, here.at[place.group])
    plgpu.barrier_wait(here.at[place.group])
    return own


def store_own(
    values: tuple, own: tuple, arrays: tuple, place: warpgroups.Place, base: Array
):
    """Write a warpgroup's results, by way of the memory of its rows."""
    mine = place.batch, pl.ds(base, warpgroups.GROUP_ROWS), place.head
    for value, part in zip(values, own, strict=True):
        part[...] = value.astype(part.dtype)
    plgpu.commit_smem()
    for array, part in zip(arrays, own, strict=True):
        plgpu.copy_smem_to_gmem(part, array.at[mine])
    plgpu.wait_smem_to_gmem(0)


def make_delta(
    out: Float[Array, "B T N K"],
    d_out: Float[Array, "B T N K"],
    d_lse: Float[Array, "B T N"],
) -> Float[Array, "B T N"]:
    """Return D."""
    products = out.astype(jnp.float32) * d_out.astype(jnp.float32)
    return products.sum(-1) - d_lse


def lay_stats(
    lse: Float[Array, "B T N"], delta: Float[Array, "B T N"], block: int
) -> list[Float[Array, "B N T2"]]:
    """Lay L and D as the kernels read them, in whole blocks."""
    extra = -lse.shape[1] % block
    return [
        jnp.pad(
            jnp.swapaxes(stats, 1, 2),
            ((0, 0), (0, 0), (0, extra)),
            constant_values=fill,
        )
        for stats, fill in ((lse, -MASKED), (delta, 0.0))
    ]
