"""Lists of visited blocks in scalar memory, as the TPU kernels walk them."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool

from avatar_kernels.reference_attention import visits
from avatar_kernels.reference_attention.block_sizes import BlockSizes
from avatar_kernels.reference_attention.sources import Source

Ref = Any  # a block in VMEM or SMEM: tracers of no public type
SMEM = 2**20  # bytes of scalar memory; lists are kept there
_SPARE = 2**15  # bytes of it that the compiler may need


class Walk(NamedTuple):
    """The lists of one source, flat in scalar memory, and their static shape.

    Of scalar memory there is little, so a visit is one number: twice the block's, plus
    1 where no mask is needed.
    """

    arrays: tuple[Array, Array]  # count, visits
    rows: int  # lists per batch entry; 1: shared by all blocks
    longest: int

    def place(self, batch: Array, row: Array, step: Array) -> Array:
        """Return where in `visits` a step of a list lies."""
        step = jnp.clip(step, 0, self.longest - 1)
        return self.list(batch, row) * self.longest + step

    def block(self, visits: Ref, batch: Array, row: Array, step: Array) -> Array:
        """Return the number of the block that a step visits."""
        return visits[self.place(batch, row, step)] >> 1

    def is_whole(self, visits: Ref, batch: Array, row: Array, step: Array) -> Array:
        """Say whether that step needs no mask."""
        return (visits[self.place(batch, row, step)] & 1) == 1

    def list(self, batch: Array, row: Array) -> Array:
        """Return where in `count` a list lies."""
        return batch * self.rows + (row if self.rows > 1 else 0)


def walk_keys(sources: Sequence[Source], sizes: BlockSizes) -> list[Walk]:
    """Return which blocks of each source's keys a block of queries visits."""
    q, kv = sizes.q, sizes.kv
    return [_lay(*source.see(q, kv), source.longest(q, kv)[0]) for source in sources]


def walk_queries(source: Source, sizes: BlockSizes, rows: int) -> Walk:
    """Return which blocks of `rows` queries a block of a source's keys visits."""
    q, kv = sizes.q, sizes.kv
    turned = visits.turn_round(source.see, q, kv, rows=rows)
    return _lay(*turned, source.longest(q, kv)[1])


def check_scalars(scalars: Sequence[Array]) -> None:
    """Raise NotImplementedError where the lists are more than scalar memory holds."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in scalars)
    if size > SMEM - _SPARE:
        raise NotImplementedError(
            f"lists of visited blocks take {size} bytes of {SMEM} of scalar memory; "
            "use larger blocks, or fewer samples per device."
        )


def place_walks(walks: list[Walk]) -> Array:
    """Return the step at which each walk starts, and one step at least in all."""
    longest = [jnp.max(walk.arrays[0]) for walk in walks]
    ends = jnp.stack([jnp.zeros((), jnp.int32), *longest]).cumsum()
    return ends.at[-1].max(1)


def walk_sources(starts, scalars, keys, walks, sources, visit) -> None:
    """Call `visit(source, its rows, masked)` for the source whose turn it is."""
    batch, row, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    for index, (walk, source) in enumerate(zip(walks, sources, strict=True)):
        count, visited = scalars[2 * index : 2 * index + 2]
        parts = 3 + bool(source.reach)
        rows, keys = keys[:parts], keys[parts:]
        here = step - starts[index]
        active = (here >= 0) & (here < count[walk.list(batch, row)])
        whole = walk.is_whole(visited, batch, row, here)
        for masked in (False, True):
            pl.when(active & (whole != masked))(
                functools.partial(visit, source, rows, masked)
            )


def _lay(some: Bool[Array, "B i j"], full: Bool[Array, "B i j"], longest: int) -> Walk:
    count, block, whole = visits.list_visits(some, full, longest=longest)
    flat = count.reshape(-1), (2 * block + whole).reshape(-1)
    return Walk(flat, some.shape[1], longest)
