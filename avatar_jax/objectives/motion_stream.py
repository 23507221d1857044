"""What flow matching does with motion codes: their times, their loop, their loss.

With codes c, their own time t, velocities v (network) and u (target), D the first
difference over frames, weights w of frames:

  (1) loss = mean w error(v, u) + mean w |D c^ - D c|      c^ - c = -t (v - u)

A prefix's codes are given, so that their error counts as none in D c^.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from avatar_jax.flow import path
from avatar_jax.types import Conditions, VideoMotion

Predict = Callable[[VideoMotion, Array, Conditions], VideoMotion]


def all_times(
    t: Float[Array, " B"], conditions: Conditions, like: VideoMotion
) -> VideoMotion:
    """Return the times of latents and codes; None for codes that are not there."""
    return VideoMotion(t, None if like.motion is None else conditions.code_time(t))


def feed_back(
    predict: Predict,
    x: VideoMotion,
    noise: VideoMotion,
    t: Float[Array, " B"],
    conditions: Conditions,
    *,
    share: float,
    rng: PRNGKeyArray,
) -> Float[Array, "B frames Dm"]:
    """Return the network's earlier estimate of the codes; zeros for some batches.

    It is of any time before t, on the same path, as the estimate that a sampler hands
    on is of its step before.

    Args:
      predict: the network's velocity of x_t, at t.
      share: of batches in which there is an estimate.
    """
    coin_rng, before_rng = jax.random.split(rng)
    back = jax.random.uniform(before_rng, t.shape)

    def estimate() -> Float[Array, "B frames Dm"]:
        times = all_times(t, conditions, x)
        before = jax.tree.map(lambda t: t + (1 - t) * back, times)
        noisy = path.interpolate(x, noise, before)
        told = conditions.replace(motion_time=before.motion)
        velocity = predict(noisy, before.latents, told)
        return path.clean_estimate(noisy.motion, velocity.motion, before.motion)

    return jax.lax.cond(
        jax.random.bernoulli(coin_rng, share),
        estimate,
        lambda: jnp.zeros_like(x.motion),
    )


def weigh(
    codes: Float[Array, "B frames Dm"], conditions: Conditions
) -> Float[Array, "B frames"]:
    """Weigh each frame's codes: 0 on the prefix and where motion is dropped."""
    weight = jnp.ones(codes.shape[:2])
    if conditions.prefix_motion is not None:
        length = conditions.prefix_motion.shape[1]
        weight = weight * (1.0 - find_given(conditions, weight.shape[1], length))
    if conditions.motion_valid is not None:
        weight = weight * conditions.motion_valid[:, None]
    return weight


def compare(
    velocity: Float[Array, "B frames Dm"],
    target: Float[Array, "B frames Dm"],
    error: Float[Array, "B frames Dm"],
    t: Float[Array, " B"],
    weight: Float[Array, "B frames"],
) -> Float[Array, " B"]:
    """Return eq. 1 of each row; 0 where motion is dropped.

    Args:
      error: of the velocity, as the objective measures it.
    """
    off = path.expand(t, target) * (velocity.astype(jnp.float32) - target)
    off = off * weight[..., None]
    jumps = jnp.abs(jnp.diff(off, axis=1)).mean(-1) * weight[:, 1:]
    frames = weight.shape[1]
    return (error.mean(-1) * weight).sum(1) / frames + jumps.sum(1) / frames


def find_given(
    conditions: Conditions, frames: int, length: int
) -> Bool[Array, "B frames"]:
    """Say which of the first `length` frames were given as a prefix."""
    valid = conditions.prefix_valid
    valid = jnp.ones((len(conditions.prefix),), bool) if valid is None else valid
    return valid.astype(bool)[:, None] & (jnp.arange(frames) < length)[None]
