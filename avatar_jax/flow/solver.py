"""Solvers of dx/dt = v(x, t) from noise (t = 1) to data (t = 0).

Overshoot step (AMO sampler, arXiv 2411.19415; Avatar V 4.2), with data-time r = 1 - t,
from r0 to r1: go further than asked, then put noise back.

  (1) o   = min(r1 + c (r1 - r0), 1)
  (2) x_o = x - (o - r0) v
  (3) a   = r1 / o,  b = sqrt((1 - r1)^2 - (a (1 - o))^2)
  (4) x_1 = a x_o + b e,  e ~ N(0, I)

c = 0 is the Euler step (a = 1, b = 0); the last step, r1 = 1, has b = 0 for every c.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from avatar_jax.flow import path

Tree = Any
VelocityFn = Callable[[Tree, Tree, Tree], Tree]


def overshoot_coefficients(
    t0: Float[Array, ""], t1: Float[Array, ""], c: float
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Return (o - r0, a, b) of eqs. 1-3 for the step from time t0 to t1."""
    r0, r1 = 1 - t0, 1 - t1
    o = jnp.minimum(r1 + c * (r1 - r0), 1.0)
    a = r1 / o
    b = jnp.sqrt(jnp.maximum((1 - r1) ** 2 - (a * (1 - o)) ** 2, 0.0))
    return o - r0, a, b


def solve(
    velocity_fn: VelocityFn,
    noise: Tree,
    times: Tree,
    *,
    rng: PRNGKeyArray,
    overshoot: float = 0.0,
) -> Tree:
    """Integrate from `noise` along `times` and return the clean sample.

    Args:
      velocity_fn: (x, t of shape B, clean estimate of the step before) -> velocity. The
        estimate is zero at the first step; it closes the loop of the motion stream.
      noise: leaves with a leading batch axis.
      times: from 1 to 0, as `times.schedule` gives them: one run of them for all
        leaves, or a tree of runs of one length; t comes in the same form.
      rng: for the noise of eq. 4; unused where `overshoot` is 0.
      overshoot: c of eq. 1; 0 is Euler, 1 is the product's sampler.
    """
    batch = jax.tree.leaves(noise)[0].shape[0]

    def step(carry: tuple[Tree, Tree], inputs: tuple) -> tuple[tuple[Tree, Tree], None]:
        x, estimate = carry
        t0, t1, key = inputs
        t = jax.tree.map(lambda t0: jnp.full((batch,), t0), t0)
        velocity = velocity_fn(x, t, estimate)
        treedef = jax.tree.structure(x)
        keys = treedef.unflatten(jax.random.split(key, treedef.num_leaves))
        move = functools.partial(_move, overshoot)
        spread = path.spread(t0, x), path.spread(t1, x)
        moved = jax.tree.map(move, x, velocity, *spread, keys)
        return (moved, path.clean_estimate(x, velocity, t)), None

    start = (noise, jax.tree.map(jnp.zeros_like, noise))
    before = jax.tree.map(lambda t: t[:-1], times)
    after = jax.tree.map(lambda t: t[1:], times)
    keys = jax.random.split(rng, len(jax.tree.leaves(before)[0]))
    (x, _), _ = jax.lax.scan(step, start, (before, after, keys))
    return x


def _move(
    overshoot: float,
    x: Float[Array, "B ..."],
    velocity: Float[Array, "B ..."],
    t0: Float[Array, ""],
    t1: Float[Array, ""],
    key: PRNGKeyArray,
) -> Float[Array, "B ..."]:
    """Take the step of eqs. 1-4 with one leaf."""
    advance, a, b = overshoot_coefficients(t0, t1, overshoot)
    x = a * (x - advance * velocity)
    return x + b * jax.random.normal(key, x.shape, x.dtype) if overshoot else x
