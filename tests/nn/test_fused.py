"""Kernels on a mesh of eight CPU devices equal those of one, interpreted (~60 s)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax import sharding
from avatar_jax.nn import context_parallel, fused

B, T, D, HEAD = 2, 10, 128, 64  # the axis `context` does not divide the rows
AXES = dict(data=2, context=2, fsdp=1, tensor=1)


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def run(call, arrays, *, mesh=None):
    def both(*arrays):
        out, pull = jax.vjp(call, *arrays)
        seeds = jax.tree.map(
            lambda a: jnp.cos(jnp.arange(a.size)).reshape(a.shape), out
        )
        return out, pull(seeds)

    if mesh is None:
        return jax.jit(both)(*arrays)
    with jax.set_mesh(mesh):
        return jax.jit(both)(*arrays)


def check(make, arrays):
    mesh = sharding.make_mesh(sharding.MeshConfig(**AXES), jax.devices()[:4])
    expected = run(make("xla"), arrays)
    got = run(make("mosaic_tpu_interpreted"), arrays, mesh=mesh)
    for ours, theirs in zip(
        jax.tree.leaves(got), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)  # sums in another order


def test_norm_and_rotary():
    turn = draw(2, 1, T, HEAD // 2)

    def make(name):
        return lambda x, gain: fused.norm_rotary(
            x, gain, turn=turn, implementation=name
        )

    check(make, [draw(0, B, T, D), draw(1, D)])


@pytest.mark.parametrize("gated", [False, True])
def test_modulated_norm(gated):
    arrays = [draw(0, B, T, D), draw(1, 1, 1, D), draw(2, 1, 1, D)]
    if gated:
        arrays += [draw(3, B, T, D), draw(4, B, 1, D)]

    def make(name):
        def call(x, shift, scale, added=None, gate=None):
            return fused.modulated_norm(
                x,
                shift,
                scale,
                added=added,
                gate=gate,
                head_dim=HEAD,
                implementation=name,
            )

        return call

    check(make, arrays)


@pytest.mark.parametrize("heads", [2, 1])  # Ulysses, ring
def test_attention_kernels_with_an_empty_reference(heads):
    valid = jnp.arange(T)[None] < jnp.array([[T], [6]])

    def make(name):
        def call(q, k, v):
            return context_parallel.target_attention(
                q,
                k,
                v,
                k[:, :0],
                v[:, :0],
                valid=valid,
                reference_valid=valid[:, :0],
                implementation=name,
            )

        return call

    check(make, [draw(i, B, T, heads, HEAD) for i in range(3)])
