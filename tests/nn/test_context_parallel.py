"""Attention over eight CPU devices equals that on one, gradients too (~40 s)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from avatar_kernels.reference_attention import LocalWindow

from avatar_jax import sharding
from avatar_jax.nn import context_parallel, layouts

ROWS, REFERENCE, WIDTH = 10, 7, 8  # neither number of rows divides
MESHES = {
    "ulysses": (dict(data=2, context=4), 8),
    "ulysses and tensor": (dict(data=1, context=4, tensor=2), 8),
    "ring": (dict(data=2, context=4), 3),
    "ulysses and ring": (dict(data=1, context=8), 2),
    "ulysses, ring and tensor": (dict(data=1, context=4, tensor=2), 4),
}


def make(heads):
    keys = iter(jax.random.split(jax.random.key(0), 6))
    rows = [
        jax.random.normal(next(keys), (2, rows, heads, WIDTH))
        for rows in (ROWS, ROWS, ROWS, REFERENCE, REFERENCE)
    ]
    valid = jnp.arange(ROWS)[None] < jnp.array([[ROWS], [6]])
    # No row of the second reference is valid.
    packed = jnp.arange(REFERENCE)[None] < jnp.array([[5], [0]])
    return rows, valid, packed


def run(call, rows):
    def both(*rows):
        out, pull = jax.vjp(call, *rows)
        return out, *pull(jnp.cos(jnp.arange(out.size)).reshape(out.shape))

    return [np.asarray(a) for a in jax.jit(both)(*rows)]


def check(call, rows, axes):
    expected = run(call, rows)
    with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(**axes))):
        got = run(call, rows)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)  # sums in another order


@pytest.mark.parametrize("name", MESHES)
def test_target_rows_and_their_gradients(name):
    axes, heads = MESHES[name]
    rows, valid, packed = make(heads)

    def call(*rows):
        return context_parallel.target_attention(
            *rows, valid=valid, reference_valid=packed
        )

    check(call, rows, axes)


@pytest.mark.parametrize("name", ["ulysses and tensor", "ulysses and ring"])
def test_reference_rows_and_their_gradients(name):
    axes, heads = MESHES[name]
    rows, valid, _ = make(heads)
    ids = jnp.repeat(jnp.arange(5), 2)[None] // jnp.array([[1], [2]])

    def call(*rows):
        return context_parallel.segment_attention(*rows, valid=valid, segment_ids=ids)

    check(call, rows[:3], axes)


def test_a_window_is_kept():
    rows, valid, packed = make(4)
    window = LocalWindow(0, None, (1, 2))

    def call(*rows):
        return context_parallel.target_attention(
            *rows, valid=valid, reference_valid=packed, window=window
        )

    check(call, rows, dict(data=2, context=4))


def test_a_window_on_a_ring_is_refused():
    rows, valid, packed = make(3)
    mesh = sharding.make_mesh(sharding.MeshConfig(context=4))
    with (
        jax.set_mesh(mesh),
        pytest.raises(NotImplementedError, match="4 devices.*3 heads"),
    ):
        context_parallel.target_attention(
            *rows,
            valid=valid,
            reference_valid=packed,
            window=LocalWindow(0, None, (1, 2)),
        )


def test_one_device_has_no_layout():
    rows, *_ = make(2)
    assert layouts.find_layout(rows[0], "xla") is None
    with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig())):
        assert layouts.find_layout(rows[0], "xla") is None


def test_a_kernel_on_a_mesh_of_other_axes_is_refused():
    rows, *_ = make(2)
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    with jax.set_mesh(mesh):
        assert layouts.find_layout(rows[0], "xla") is None
        with pytest.raises(ValueError, match="missing: context, fsdp, tensor"):
            layouts.find_layout(jnp.zeros((2, 8, 4, 64)), "triton_interpreted")
