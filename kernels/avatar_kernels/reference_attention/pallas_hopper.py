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
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from avatar_kernels.reference_attention import visits
from avatar_kernels.reference_attention.block_sizes import BlockSizes
from avatar_kernels.reference_attention.pallas_triton import LOG2_E, make_walk
from avatar_kernels.reference_attention.reference import MASKED
from avatar_kernels.reference_attention.sources import Source

GROUP_ROWS = 64  # rows of one wgmma, the share of a warpgroup
STAGES = 2  # blocks of keys in shared memory
FETCH_REGISTERS = 40  # of the warpgroup that fetches; the others share the rest
TILE = plgpu.Layout.WGMMA
PER_ROW, PER_COLUMN = TILE.reduce(1), TILE.reduce(0)


class Place(NamedTuple):
    """Where a program works."""

    batch: Array
    head: Array
    block: Array  # of the side that is shared out over the grid
    group: Array  # warpgroup


def forward(
    q: Float[Array, "B T N K"], sources: list[Source], sizes: BlockSizes
) -> tuple[Float[Array, "B T N K"], Float[Array, "B T N"]]:
    """Return output and log-sum-exp (-1e30 where nothing is seen).

    Raises:
      NotImplementedError: neither bfloat16 nor float16, or an odd length or width.
    """
    check(q, *(source.k for source in sources))
    batch, rows, heads, width = q.shape
    blocks, groups = visits.divide(rows, sizes.q), share(sizes.q)
    operands, parts = [q], []
    for source in sources:
        arrays = key_operands(source, sizes)
        operands, parts = operands + arrays, [*parts, len(arrays)]
    ring = row_scratch(STAGES, sizes.kv, width, dtype=q.dtype)
    out, lse = plgpu.kernel(
        functools.partial(_kernel, parts=parts, sources=sources, sizes=sizes),
        out_type=(
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((batch, heads, blocks * sizes.q), jnp.float32),
        ),
        scratch_types=[
            row_scratch(groups, GROUP_ROWS, width, dtype=q.dtype),
            plgpu.SMEM((groups, GROUP_ROWS), jnp.float32),
            (ring, ring),
            plgpu.Barrier(num_barriers=groups),
            (plgpu.Barrier(num_barriers=STAGES),) * 2,
            (plgpu.Barrier(num_arrivals=groups, num_barriers=STAGES),) * 2,
            plgpu.Barrier(num_arrivals=groups),
        ],
        **launch("forward", blocks, heads, batch, groups),
    )(*operands)
    return out, jnp.swapaxes(lse[..., :rows], 1, 2)


def _kernel(q, *refs, parts: list[int], sources: list[Source], sizes) -> None:
    """Fetch in the last warpgroup, compute in the others."""
    *refs, out, lse, rows, line, rings, here, filled, free, turn = refs
    keys = split(refs, parts)
    groups = share(sizes.q)
    place = find_place()
    fetch = functools.partial(fetch_keys, place, keys, sizes.kv, rings, filled, free)
    pl.when(place.group == groups)(fetch)

    @pl.when(place.group < groups)
    def _():
        take_registers(groups)
        base = place.block * sizes.q + place.group * GROUP_ROWS
        mine = place.batch, pl.ds(base, GROUP_ROWS), place.head
        queries = rows.at[place.group]
        plgpu.copy_gmem_to_smem(q.at[mine], queries, here.at[place.group])
        plgpu.barrier_wait(here.at[place.group])
        change = functools.partial(change_turns, turn, groups)
        softmax = _Softmax(queries, rings, filled, free, change)
        pl.when(place.group == 1)(change)  # the second waits for the first
        state, step = softmax.zero(), jnp.int32(0)
        for source, (ends, blocks, _, _, *meta) in zip(sources, keys, strict=True):
            see = functools.partial(see_keys, place, base, sizes.kv, source.reach, meta)
            visit = functools.partial(softmax.visit, see)
            step, state = walk_blocks(place, ends, blocks, visit, step, state)
        pl.when(place.group == 0)(change)
        peak, total, mixed = state
        safe = jnp.where(total > 0, total, 1.0)
        line[place.group] = jnp.where(total > 0, peak / LOG2_E + jnp.log(safe), MASKED)
        queries[...] = (mixed / spread(safe, mixed.shape, 0)).astype(queries.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(queries, out.at[mine])
        plgpu.copy_smem_to_gmem(
            line.at[place.group],
            lse.at[place.batch, place.head, pl.ds(base, GROUP_ROWS)],
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
            full((rows,), MASKED, PER_ROW),
            full((rows,), 0.0, PER_ROW),
            full((rows, width), 0.0, TILE),
        )

    def visit(
        self, see: Callable, block: Array, slot: Array, state, *, masked: bool
    ) -> tuple[Array, Array, Array]:
        """Take one block of keys into the softmax."""
        before, total, mixed = state
        keys, values = (ring.at[slot] for ring in self.rings)
        shape = GROUP_ROWS, keys.shape[0]
        plgpu.barrier_wait(self.filled[0].at[slot])

        def multiply(acc):
            plgpu.wgmma(acc, self.queries, plgpu.transpose_ref(keys, (1, 0)))
            self.change()
            return acc[...]

        s = pl.run_scoped(multiply, plgpu.ACC(shape, jnp.float32))
        plgpu.barrier_arrive(self.free[0].at[slot])
        s = s * (LOG2_E * self.queries.shape[1] ** -0.5)
        seen = see(block, shape) if masked else None
        if masked:
            s = jnp.where(seen, s, MASKED)
        after = jnp.maximum(before, s.max(1))
        p = jnp.exp2(s - spread(after, shape, 0))
        if masked:
            p = jnp.where(seen, p, 0.0)
        shrink = jnp.exp2(before - after)
        total = total * shrink + p.sum(1)
        mixed = mixed * spread(shrink, mixed.shape, 0)
        weights = p.astype(values.dtype)
        plgpu.barrier_wait(self.filled[1].at[slot])
        self.change()
        mixed = accumulate((mixed,), (weights,), (values,))[0]
        plgpu.barrier_arrive(self.free[1].at[slot])
        return after, total, mixed


def fetch_keys(place: Place, keys: list, size: int, rings, filled, free) -> None:
    """Copy the blocks of keys and values that are visited into the rings."""
    plgpu.set_max_registers(FETCH_REGISTERS, action="decrease")
    step = jnp.int32(0)
    for ends, blocks, k, v, *_ in keys:

        def load(block: Array, slot: Array, used: Array, kv=(k, v)) -> None:
            rows = place.batch, pl.ds(block * size, size), place.head
            for source, ring, full, empty in zip(kv, rings, filled, free, strict=True):
                pl.when(used)(functools.partial(plgpu.barrier_wait, empty.at[slot]))
                plgpu.copy_gmem_to_smem(source.at[rows], ring.at[slot], full.at[slot])

        step = fetch_blocks(place, ends, blocks, load, step)


def fetch_blocks(
    place: Place, ends, blocks, load: Callable[..., None], step: Array
) -> Array:
    """Load each block of a list into its slot, from step `step` of the rings on."""
    row = find_list(place, ends)

    def body(j: Array, step: Array) -> Array:
        slot = lax.rem(step, jnp.int32(STAGES))
        load(blocks[place.batch, row, j], slot, step >= STAGES)
        return step + 1

    return lax.fori_loop(jnp.int32(0), ends[place.batch, row, 1], body, step)


def walk_blocks(
    place: Place, ends, blocks, visit: Callable[..., Any], step: Array, state: Any
) -> tuple[Array, Any]:
    """Visit the blocks where all is seen, then the others, under a mask."""
    row = find_list(place, ends)
    whole, count = (ends[place.batch, row, i] for i in range(2))
    for start, stop, masked in ((jnp.int32(0), whole, False), (whole, count, True)):

        def body(j: Array, carry: tuple, masked: bool = masked) -> tuple:
            step, state = carry
            slot = lax.rem(step, jnp.int32(STAGES))
            block = blocks[place.batch, row, j]
            return step + 1, visit(block, slot, state, masked=masked)

        step, state = lax.fori_loop(start, stop, body, (step, state))
    return step, state


def find_place() -> Place:
    """Return where this warpgroup works."""
    return Place(*(lax.axis_index(a) for a in ("batch", "head", "block", "group")))


def find_list(place: Place, ends) -> Array:
    """Return which list is the program's; one list may be that of all."""
    return place.block if ends.shape[1] > 1 else jnp.int32(0)


def see_keys(
    place: Place, base: Array, size: int, reach, meta: list, block: Array, shape
) -> Array:
    """Return who sees whom, queries from `base` on by the keys of a block."""
    keys, queries = pl.ds(block * size, size), pl.ds(base, GROUP_ROWS)
    return find_seen(place.batch, meta, keys, queries, reach, shape, keys_axis=1)


def find_seen(
    batch: Array,
    meta: list,
    keys: pl.Slice,
    queries: pl.Slice,
    reach: tuple[int, ...],
    shape: tuple[int, int],
    *,
    keys_axis: int,
) -> Array:
    """Return who sees whom; keys lie along an axis of `shape`, queries along the other.

    Args:
      batch: whose rows.
      meta: the integers of all keys, and of all queries where there is a reach.
      keys: which keys.
      queries: which queries.
      reach: how far along each coordinate.
      shape: of the result.
      keys_axis: 0 or 1.
    """

    def tell(numbers, kind: int, rows: pl.Slice, axis: int) -> Array:
        line = read(numbers.at[batch, kind, rows], PER_COLUMN if axis else PER_ROW)
        return spread(line, shape, axis)

    seen = tell(meta[0], 0, keys, keys_axis) > 0
    for kind, limit in enumerate(reach):
        key = tell(meta[0], kind + 1, keys, keys_axis)
        query = tell(meta[1], kind, queries, 1 - keys_axis)
        seen = seen & ((jnp.abs(key - query) <= limit) | (key < 0))
    return seen


def multiply_transposed(a: tuple, b: tuple, size: int) -> tuple[Array, ...]:
    """Return a b^T of each pair in shared memory; their products overlap."""

    def run(*totals):
        for total, left, right in zip(totals, a, b, strict=True):
            plgpu.wgmma(total, left, plgpu.transpose_ref(right, (1, 0)))
        return tuple(total[...] for total in totals)

    shapes = [plgpu.ACC((left.shape[0], size), jnp.float32) for left in a]
    return pl.run_scoped(run, *shapes)


def accumulate(totals: tuple, a: tuple, b: tuple) -> tuple[Array, ...]:
    """Return total + a b of each: a in registers, b in shared memory."""

    def run(refs):
        for total, left, right in zip(refs, a, b, strict=True):
            plgpu.wgmma(total, left, right)

    return pl.run_state(run)(tuple(plgpu.ACC.init(total) for total in totals))


def spread(line: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Repeat one number per row (axis 0) or per column (axis 1)."""
    return lax.broadcast_in_dim(line, shape, (axis,))


def full(shape: tuple[int, ...], value: float, layout: Any) -> Array:
    """Return an array of one float32 value, laid out for wgmma."""
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)


def read(line, layout: Any) -> Array:
    """Load one number per row or column."""
    return plgpu.load(line, (), layout=layout, optimized=False)


def share(rows: int) -> int:
    """Return how many warpgroups share a block of so many rows.

    Raises:
      ValueError: it is not two or three.
    """
    if rows not in (2 * GROUP_ROWS, 3 * GROUP_ROWS):
        raise ValueError(
            f"a block of {rows} rows to share; expected 128 or 192, two or three "
            "warpgroups of 64 rows."
        )
    return rows // GROUP_ROWS


def take_registers(groups: int) -> None:
    """Take what the fetching warpgroup leaves of 512 registers per lane of four."""
    each = (512 - FETCH_REGISTERS) // groups // 8 * 8
    plgpu.set_max_registers(each, action="increase")


def split(refs: list, parts: list[int]) -> list[list]:
    """Cut a list into pieces of these lengths."""
    pieces = []
    for part in parts:
        pieces, refs = [*pieces, refs[:part]], refs[part:]
    return pieces


def key_operands(source: Source, sizes: BlockSizes) -> list[Array]:
    """Return a source's lists, keys, values and integers, these in whole blocks."""
    walk = make_walk(*source.see(sizes.q, sizes.kv))
    operands = [*walk, source.k, source.v]
    operands.append(visits.pad_rows(source.key_meta, sizes.kv))
    if source.reach:
        operands.append(visits.pad_rows(source.query_meta, sizes.q))
    return operands


def row_scratch(*shape: int, dtype: Any) -> Any:
    """Return shared memory for rows, laid out as TMA writes and wgmma reads it."""
    swizzle = 128
    tile = plgpu.TilingTransform((8, swizzle // jnp.dtype(dtype).itemsize))
    return plgpu.SMEM(shape, dtype, transforms=(tile, plgpu.SwizzleTransform(swizzle)))


def launch(
    name: str, blocks: int, heads: int, batch: int, groups: int
) -> dict[str, Any]:
    """Return the grid: blocks of one head side by side, so that its keys stay in L2."""
    return dict(
        kernel_name=f"reference_attention_{name}",
        grid=(blocks, heads, batch),
        grid_names=("block", "head", "batch"),
        num_threads=groups + 1,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )


def check(*rows: Float[Array, "B _ N K"]) -> None:
    """Refuse what TMA and wgmma cannot read."""
    for x in rows:
        if x.dtype not in (jnp.bfloat16, jnp.float16):
            raise NotImplementedError(
                f"rows are {x.dtype}; expected bfloat16 or float16, or the Triton "
                "kernels."
            )
        if x.shape[1] % 8 or x.shape[3] % 64:
            raise NotImplementedError(
                f"rows have shape {x.shape}; expected a length that is a multiple of 8 "
                "and a head width that is one of 64, or the Triton kernels."
            )
