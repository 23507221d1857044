"""Counting traffic in compiled programs (~5 s on 2 cores)."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from avatar_jax.planning import collectives

DEVICES, ROWS, WIDTH, TURNS = 8, 6, 5, 7


def compile_on_mesh(body, spec):
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=auto)
    with jax.set_mesh(mesh):
        run = jax.shard_map(body, in_specs=spec, out_specs=spec, check_vma=False)
        rows = jax.sharding.NamedSharding(mesh, spec)
        shape = (DEVICES * ROWS, WIDTH)
        x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=rows)
        return jax.jit(run).lower(x).compile().as_text()


def gather(x):
    return jax.lax.all_gather(x, "b").sum(0)


def scatter(x):
    total = jax.lax.psum_scatter(jnp.tile(x, (4, 1)), "b", tiled=True)
    return total.reshape(x.shape)


def trade(x):
    return jax.lax.all_to_all(x.reshape(2, -1), "a", 0, 0).reshape(x.shape)


def pass_on(x):
    return jax.lax.ppermute(x, "b", [(i, (i + 1) % 4) for i in range(4)])


BYTES = ROWS * WIDTH * 4
KNOWN = {
    "all-gather": (gather, 4 * BYTES * 3 / 4),
    "all-reduce": (functools.partial(jax.lax.psum, axis_name="a"), 2 * BYTES / 2),
    "reduce-scatter": (scatter, BYTES * 3),
    "all-to-all": (trade, BYTES / 2),
    "collective-permute": (pass_on, BYTES),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_bytes_of_each_kind_count_as_often_as_their_loops_turn(kind):
    call, expected = KNOWN[kind]

    def body(x):
        def turn(x, _):
            # The sine keeps the compiler from folding one turn into the next.
            return jnp.sin(call(x)), None

        return jax.lax.scan(turn, x, None, length=TURNS)[0]

    found = collectives.count(compile_on_mesh(body, P(("a", "b"))), DEVICES)
    assert found.unknown_loops == 0
    assert found.sent == dict.fromkeys(collectives.KINDS, 0.0) | {
        kind: TURNS * expected
    }


def test_loops_in_loops_multiply():
    def body(x):
        def turn(x, _):
            inner = lambda x, _: (jnp.sin(pass_on(x)), None)  # noqa: E731
            return jax.lax.scan(inner, x, None, length=3)[0], None

        return jax.lax.scan(turn, x, None, length=TURNS)[0]

    found = collectives.count(compile_on_mesh(body, P(("a", "b"))), DEVICES)
    assert found.total == 3 * TURNS * BYTES


# As TPU compilers write it: layouts, no trip counts, a step of 2, a start and its done.
TPU = """
HloModule known, is_scheduled=true

%body.1 (arg.1: (u32[], bf16[4,16])) -> (u32[], bf16[4,16]) {
  %constant.1 = u32[]{:T(128)} constant(2)
  %arg.1 = (u32[]{:T(128)}, bf16[4,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %gte.1 = u32[]{:T(128)} get-tuple-element(%arg.1), index=0
  %gte.2 = bf16[4,16]{1,0:T(8,128)(2,1)} get-tuple-element(%arg.1), index=1
  %add.1 = u32[]{:T(128)} add(%gte.1, %constant.1)
  %collective-permute-start.1 = (bf16[4,16]{1,0}, bf16[4,16]{1,0}, u32[]{:S(2)}) \
collective-permute-start(%gte.2), source_target_pairs={{0,1},{1,0}}
  %collective-permute-done.1 = bf16[4,16]{1,0} \
collective-permute-done(%collective-permute-start.1)
  ROOT %tuple.1 = (u32[]{:T(128)}, bf16[4,16]{1,0}) tuple(%add.1, \
/*index=1*/%collective-permute-done.1)
}

%condition.1 (arg.2: (u32[], bf16[4,16])) -> pred[] {
  %constant.2 = u32[]{:T(128)} constant(5)
  %arg.2 = (u32[]{:T(128)}, bf16[4,16]{1,0}) parameter(0)
  %gte.3 = u32[]{:T(128)} get-tuple-element(%arg.2), index=0
  ROOT %compare.1 = pred[]{:T(512)} compare(%gte.3, %constant.2), direction=LT
}

ENTRY %main.1 (p.1: bf16[4,16]) -> bf16[8,16] {
  %p.1 = bf16[4,16]{1,0:T(8,128)(2,1)} parameter(0)
  %constant.3 = u32[]{:T(128)} constant(0)
  %tuple.2 = (u32[]{:T(128)}, bf16[4,16]{1,0}) tuple(%constant.3, %p.1)
  %while.1 = (u32[]{:T(128)}, bf16[4,16]{1,0}) while(%tuple.2), \
condition=%condition.1, body=%body.1
  %gte.4 = bf16[4,16]{1,0} get-tuple-element(%while.1), index=1
  ROOT %all-gather.1 = bf16[8,16]{1,0} all-gather(%gte.4), \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, dimensions={0}
}
"""


def test_loops_without_a_trip_count_are_read_from_their_counter():
    found = collectives.count(TPU, 8)
    assert found.sent["collective-permute"] == 3 * 4 * 16 * 2
    assert found.sent["all-gather"] == 8 * 16 * 2 / 2
    assert found.unknown_loops == 0


@pytest.mark.parametrize(
    "groups, size",
    [("{{0,1,2,3},{4,5,6,7}}", 4), ("[2,4]<=[8]", 4), ("[4,2]<=[2,4]T(1,0)", 2)],
)
def test_groups_are_read_in_every_spelling(groups, size):
    named = "mesh['axis_0'=2,'axis_1'=4] {'axis_0'}"
    found = collectives.count(TPU.replace(named, groups), 8)
    assert found.sent["all-gather"] == 8 * 16 * 2 * (size - 1) / size


def test_a_loop_that_cannot_be_read_counts_once_and_is_told():
    text = TPU.replace("direction=LT", "direction=NE")
    found = collectives.count(text, 8)
    assert found.unknown_loops == 1
    assert found.sent["collective-permute"] == 4 * 16 * 2
