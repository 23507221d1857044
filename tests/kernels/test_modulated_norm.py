"""The fused residual and modulated norm equal their specification (~15 s)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from avatar_kernels.modulated_norm import modulated_norm

B, T, D = 2, 100, 128  # no block divides the rows


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("vectors", [1, B])
def test_values_and_gradients(gated, vectors):
    arrays = [draw(0, B, T, D), draw(1, vectors, 1, D), draw(2, vectors, 1, D)]
    if gated:
        arrays += [draw(3, B, T, D), draw(4, B, 1, D)]
    d_out = draw(5, B, T, D), draw(6, B, T, D)

    def run(implementation):
        def call(x, shift, scale, added=None, gate=None):
            return modulated_norm(
                x, shift, scale, added=added, gate=gate, implementation=implementation
            )

        out, pull = jax.vjp(call, *arrays)
        return *out, *pull(d_out)

    # float32; gradients of the vectors add up 200 rows in another order.
    for ours, theirs in zip(run("mosaic_tpu_interpreted"), run("xla"), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-5)


def test_bfloat16_rounds_the_sum_first():
    x, added = (draw(i, 1, 64, D).astype(jnp.bfloat16) for i in range(2))
    shift, scale, gate = (draw(i, 1, 1, D) for i in range(2, 5))
    (ours, normed), (theirs, true) = (
        modulated_norm(
            x, shift, scale, added=added, gate=gate, implementation=implementation
        )
        for implementation in ("mosaic_tpu_interpreted", "xla")
    )
    np.testing.assert_array_equal(ours.astype(jnp.float32), theirs.astype(jnp.float32))
    # One unit in the last place where sums were added in another order.
    np.testing.assert_allclose(
        normed.astype(jnp.float32), true.astype(jnp.float32), rtol=1e-2, atol=1e-2
    )
