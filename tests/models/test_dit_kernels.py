"""The whole network with interpreted kernels equals that with plain XLA (minutes)."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import pytest
from dit_cases import FULL, B, make_conditions, make_noisy, random_params

from avatar_jax.flow import times
from avatar_jax.models import dit
from avatar_jax.sampling import chunk

# Heads of 64 channels, which kernels are made for; the rest as small as it goes.
CONFIG = dataclasses.replace(FULL, width=128, mlp_width=32, heads=2, layers=2)
INTERPRETED = ("mosaic_tpu_interpreted", "triton_interpreted")
pytestmark = pytest.mark.slow


@functools.cache
def weights():
    return random_params(CONFIG, scale=0.1)[1]


@functools.cache
def learn(attention):
    """Return the loss of one batch and its gradient."""
    model = dit.AvatarDiT(dataclasses.replace(CONFIG, attention=attention))

    def loss(params):
        out = model.apply(
            {"params": params}, make_noisy(), jnp.array([0.3, 0.7]), make_conditions()
        )
        return jnp.mean(out.latents**2) + jnp.mean(out.motion**2)

    return jax.jit(jax.value_and_grad(loss))(weights())


@functools.cache
def sample(attention):
    """Return a chunk sampled with a cached reference."""
    model = dit.AvatarDiT(dataclasses.replace(CONFIG, attention=attention))
    conditions = make_conditions(motion=None)
    cache = model.apply(
        {"params": weights()},
        conditions.reference,
        conditions.null_text,
        method="cache_reference",
    )
    return chunk.sample_chunk(
        model,
        weights(),
        make_noisy(),
        chunk.Passes(full=conditions.replace(reference=cache)),
        times.schedule(2, shift=2.0),
        jax.random.key(0),
        chunk.Settings(num_steps=2),
    )


@pytest.mark.parametrize("attention", INTERPRETED)
def test_it_trains_to_the_same_loss_and_gradient(attention):
    # float32 sums in another order, through two blocks.
    (loss, gradient), (expected, true_gradient) = learn(attention), learn("xla")
    chex.assert_trees_all_close(loss, expected, rtol=1e-5)
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(true_gradient))
    chex.assert_trees_all_close(gradient, true_gradient, atol=1e-5 * largest, rtol=1e-3)


@pytest.mark.parametrize("attention", INTERPRETED)
def test_it_samples_the_same_frames(attention):
    made, expected = sample(attention), sample("xla")
    assert made.latents.shape[0] == B
    chex.assert_trees_all_close(made, expected, atol=1e-3, rtol=1e-3)
