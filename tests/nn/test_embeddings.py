"""Sinusoids of times are exact to float32, wherever t comes from (~5 s)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.nn import embeddings

WIDTH = 18


def _exact(timesteps):
    angle = timesteps[:, None] * embeddings.time_speeds(WIDTH)[None]
    return np.concatenate([np.cos(angle), np.sin(angle)], -1)


@pytest.mark.parametrize("divide", [np.true_divide, jax.jit(jnp.divide)])
def test_every_whole_timestep_is_exact(divide):
    """NumPy rounds k / 1000 correctly; devices may multiply by 0.001."""
    timesteps = np.arange(1001)
    t = jnp.asarray(divide(np.float32(timesteps), np.float32(1000)))
    ours = jax.jit(embeddings.time_features, static_argnums=1)(t, WIDTH)
    np.testing.assert_allclose(ours, _exact(timesteps), atol=5e-7)
    by_reciprocal = jnp.asarray(np.float32(timesteps) * np.float32(0.001))
    np.testing.assert_allclose(
        embeddings.time_features(by_reciprocal, WIDTH), _exact(timesteps), atol=5e-7
    )


def test_times_between_are_exact_too():
    t = np.random.default_rng(0).random(5000).astype(np.float32)
    timesteps = 1000 * t.astype(np.float64)
    apart = np.abs(timesteps - np.round(timesteps)) > 2e-4  # not meant to be whole
    ours = embeddings.time_features(jnp.asarray(t[apart]), WIDTH)
    np.testing.assert_allclose(ours, _exact(timesteps[apart]), atol=5e-7)


@pytest.mark.parametrize("t", [0.0, 1e-7, 0.25, 0.3, 0.51234, 0.999, 1.0])
def test_the_slope_in_t_is_that_of_the_sinusoid(t):
    """At whole timesteps, where rounding is taken out, as between them."""
    at = jnp.array([t], jnp.float32)
    features = lambda t: embeddings.time_features(t, WIDTH)  # noqa: E731
    _, ours = jax.jvp(features, (at,), (jnp.ones(1),))
    speeds = embeddings.time_speeds(WIDTH)
    cos, sin = np.split(_exact(1000 * np.asarray(at, np.float64)), 2, -1)
    expected = 1000 * np.concatenate([-speeds * sin, speeds * cos], -1)
    np.testing.assert_allclose(ours, expected, atol=0.1)  # of 1000
