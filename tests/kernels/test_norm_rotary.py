"""The fused norm and rotary kernel equals its specification, interpreted (~10 s)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from avatar_kernels import norm_rotary


@pytest.mark.parametrize("head_dim, angles", [(64, 1), (128, 2)])
def test_values_and_gradients(head_dim, angles):
    keys = jax.random.split(jax.random.key(0), 4)
    rows, width = 100, 256  # no block divides the rows
    x = jax.random.normal(keys[0], (2, rows, width))
    gain = 1 + 0.1 * jax.random.normal(keys[1], (width,))
    turn = 50 * jax.random.normal(keys[2], (angles, rows, head_dim // 2))
    d_out = jax.random.normal(keys[3], x.shape)

    def run(implementation):
        out, pull = jax.vjp(
            lambda *arrays: norm_rotary.norm_rotary(
                *arrays, implementation=implementation
            ),
            x,
            gain,
            turn,
        )
        return out, *pull(d_out)

    # float32; the gradient of the gain adds up 200 rows in another order.
    for ours, theirs in zip(run("mosaic_tpu_interpreted"), run("xla"), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_no_gradient_goes_to_angles():
    x, gain, turn = jnp.ones((1, 8, 128)), jnp.ones(128), jnp.ones((1, 8, 64))

    def total(turn, name):
        return norm_rotary.norm_rotary(x, gain, turn, implementation=name).sum()

    for name in ("xla", "mosaic_tpu_interpreted"):
        assert not jax.grad(total)(turn, name).any()


def test_bfloat16_is_rounded_where_the_specification_rounds():
    x = jax.random.normal(jax.random.key(0), (1, 64, 128)).astype(jnp.bfloat16)
    gain = jnp.linspace(0.5, 1.5, 128)
    turn = jnp.linspace(0, 3, 64 * 64).reshape(1, 64, 64)
    ours, theirs = (
        norm_rotary.norm_rotary(x, gain, turn, implementation=name)
        for name in ("mosaic_tpu_interpreted", "xla")
    )
    assert ours.dtype == jnp.bfloat16
    # One unit in the last place where the sum of squares was added in another order.
    np.testing.assert_allclose(
        ours.astype(jnp.float32), theirs.astype(jnp.float32), rtol=1e-2, atol=1e-2
    )
