"""Sparse Reference Attention on Hopper, forward (Mosaic GPU: TMA, wgmma).

A block of queries of one head is shared by warpgroups of 64 queries each; one more
warpgroup does nothing but fetch. It walks the lists of `visits`, first the own keys',
then the reference's, and copies each block of keys and values (TMA) into rings in
shared memory; the others run one online softmax over what comes. Both sources use the
same rings and are never concatenated. Visits in which everything is seen come first in
each list, in a loop of their own without a mask. With c = log2(e) / sqrt(K):

  m' = max(m, max_keys c q k^T)    p = 2^(c q k^T - m')    a = 2^(m - m')
  l' = a l + sum_keys p            acc' = a acc + p v      o = acc / l

Two warpgroups take turns: while one does its softmax the other has the tensor cores.
Rows are read where they lie, `B T N K`; TMA fills what lies beyond the end with zeros
and does not write there. It addresses rows in groups of eight: `implementations` fills
other lengths up. Rows that are not valid must be finite.

Shared memory (bytes): 2 K (q + 2 STAGES kv). Registers per thread: K / 2 for acc,
kv / 2 for scores and kv / 4 for weights on their way.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

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


def forward(
    q: Float[Array, "B T N K"], sources: list[Source], sizes: BlockSizes
) -> tuple[Float[Array, "B T N K"], Float[Array, "B T N"]]:
    """Return output and log-sum-exp (-1e30 where nothing is seen).

    Raises:
      NotImplementedError: neither bfloat16 nor float16, or an odd length or width.
    """
    warpgroups.check(q, *(source.k for source in sources))
    batch, rows, heads, width = q.shape
    blocks, groups = visits.divide(rows, sizes.q), warpgroups.share(sizes.q)
    operands, parts = [q], []
    for source in sources:
        arrays = warpgroups.key_operands(source, sizes)
        operands, parts = operands + arrays, [*parts, len(arrays)]
    ring = warpgroups.row_scratch(warpgroups.STAGES, sizes.kv, width, dtype=q.dtype)
    out, lse = plgpu.kernel(
        functools.partial(_kernel, parts=parts, sources=sources, sizes=sizes),
        out_type=(
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((batch, heads, blocks * sizes.q), jnp.float32),
        ),
        scratch_types=[
            warpgroups.row_scratch(groups, warpgroups.GROUP_ROWS, width, dtype=q.dtype),
            plgpu.SMEM((groups, warpgroups.GROUP_ROWS), jnp.float32),
            (ring, ring),
            plgpu.Barrier(num_barriers=groups),
            (plgpu.Barrier(num_barriers=warpgroups.STAGES),) * 2,
            (plgpu.Barrier(num_arrivals=groups, num_barriers=warpgroups.STAGES),) * 2,
            plgpu.Barrier(num_arrivals=groups),
        ],
        **warpgroups.launch("forward", blocks, heads, batch, groups),
    )(*operands)
    return out, jnp.swapaxes(lse[..., :rows], 1, 2)


def _kernel(q, *refs, parts: list[int], sources: list[Source], sizes) -> None:
    """Fetch in the last warpgroup, compute in the others."""
    *refs, out, lse, rows, line, rings, here, filled, free, turn = refs
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
        mine = place.batch, pl.ds(base, warpgroups.GROUP_ROWS), place.head
        queries = rows.at[place.group]
        plgpu.copy_gmem_to_smem(q.at[mine], queries, here.at[place.group])
        plgpu.barrier_wait(here.at[place.group])
        change = functools.partial(change_turns, turn, groups)
        softmax = _Softmax(queries, rings, filled, free, change)
        pl.when(place.group == 1)(change)  # the second waits for the first
        state, step = softmax.zero(), jnp.int32(0)
        for source, (ends, blocks, _, _, *meta) in zip(sources, keys, strict=True):
            see = functools.partial(
                warpgroups.see_keys, place, base, sizes.kv, source.reach, meta
            )
            visit = functools.partial(softmax.visit, see)
            step, state = warpgroups.walk_blocks(
                place, ends, blocks, visit, step, state
            )
        pl.when(place.group == 0)(change)
        peak, total, mixed = state
        safe = jnp.where(total > 0, total, 1.0)
        line[place.group] = jnp.where(total > 0, peak / LOG2_E + jnp.log(safe), MASKED)
        queries[...] = (mixed / warpgroups.spread(safe, mixed.shape, 0)).astype(
            queries.dtype
        )
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(queries, out.at[mine])
        plgpu.copy_smem_to_gmem(
            line.at[place.group],
            lse.at[place.batch, place.head, pl.ds(base, warpgroups.GROUP_ROWS)],
        )
        plgpu.wait_smem_to_gmem(0)


def change_turns(turn, groups: int) -> None:
    """Hand the tensor cores over to the other warpgroup, wait until it does so."""
    if groups == 2:
        plgpu.barrier_arrive(turn)
        plgpu.barrier_wait(turn)


class _Softmax(NamedTuple):
    """The online softmax of one warpgroup over the blocks in the rings."""

    queries: Any  # 64 K, in shared memory
    rings: tuple
    filled: tuple
    free: tuple
    change: Callable[[], None]  # turns

    def zero(self) -> tuple[Array, Array, Array]:
        """Return maximum, sum and weighted values before the first key."""
        rows, width = self.queries.shape
        return (
            warpgroups.full((rows,), MASKED, warpgroups.PER_ROW),
            warpgroups.full((rows,), 0.0, warpgroups.PER_ROW),
            warpgroups.full((rows, width), 0.0, warpgroups.TILE),
        )

    def visit(
        self, see: Callable, block: Array, slot: Array, state, *, masked: bool
    ) -> tuple[Array, Array, Array]:
        """Take one block of keys into the softmax."""
        before, total, mixed = state
        keys, values = (ring.at[slot] for ring in self.rings)
        shape = warpgroups.GROUP_ROWS, keys.shape[0]
        plgpu.barrier_wait(self.filled[0].at[slot])

        def multiply(acc):
            plgpu.wgmma(acc, self.queries, keys.transpose((1, 0)))
            self.change()
            return acc[...]

        s = pl.run_scoped(multiply, plgpu.ACC(shape, jnp.float32))
        plgpu.barrier_arrive(self.free[0].at[slot])
        s = s * (LOG2_E * self.queries.shape[1] ** -0.5)
        seen = see(block, shape) if masked else None
        if masked:
            s = jnp.where(seen, s, MASKED)
        after = jnp.maximum(before, s.max(1))
        p = jnp.exp2(s - warpgroups.spread(after, shape, 0))
        if masked:
            p = jnp.where(seen, p, 0.0)
        shrink = jnp.exp2(before - after)
        total = total * shrink + p.sum(1)
        mixed = mixed * warpgroups.spread(shrink, mixed.shape, 0)
        weights = p.astype(values.dtype)
        plgpu.barrier_wait(self.filled[1].at[slot])
        self.change()
        mixed = warpgroups.accumulate((mixed,), (weights,), (values,))[0]
        plgpu.barrier_arrive(self.free[1].at[slot])
        return after, total, mixed
