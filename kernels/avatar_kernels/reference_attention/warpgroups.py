"""What the Hopper kernels share: warpgroups, their rings and their masks (Mosaic GPU).

One warpgroup fetches blocks of rows (TMA) into rings in shared memory; the others, 64
rows each, wait for a block, use it and set it free. Both walk the same lists.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from avatar_kernels.reference_attention import visits
from avatar_kernels.reference_attention.block_sizes import BlockSizes
from avatar_kernels.reference_attention.sources import Source

GROUP_ROWS = 64  # rows of one wgmma, the share of a warpgroup
STAGES = 2  # blocks of keys in shared memory
FETCH_REGISTERS = 40  # of the warpgroup that fetches; the others share the rest
TILE = plgpu.Layout.WGMMA
_INDEX = inspect.signature(plgpu.load).parameters.get("idx")
# jax 0.10 must be given an index, 0.11 warns of one, 0.12 takes none.
_NO_INDEX = ((),) if _INDEX and _INDEX.default is inspect.Parameter.empty else ()
PER_ROW, PER_COLUMN = TILE.reduce(1), TILE.reduce(0)


class Place(NamedTuple):
    """Where a program works."""

    batch: Array
    head: Array
    block: Array  # of the side that is shared out over the grid
    group: Array  # warpgroup


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
            plgpu.wgmma(total, left, right.transpose((1, 0)))
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
    return plgpu.load(line, *_NO_INDEX, layout=layout, optimized=False)


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
    walk = visits.order_visits(*source.see(sizes.q, sizes.kv))
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
    """Refuse what TMA and wgmma cannot read.

    Raises:
      NotImplementedError: another dtype, length or width.
    """
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
