"""Solvers of dx/dt = v(x, t) from noise (t = 1) to data (t = 0).

Overshoot step (AMO sampler, arXiv 2411.19415; Avatar V 4.2), with data-time r = 1 - t,
from r0 to r1: go further than asked, then put noise back.

  (1) o   = min(r1 + c (r1 - r0), 1)
  (2) x_o = x - (o - r0) v
  (3) a   = r1 / o,  b = sqrt((1 - r1)^2 - (a (1 - o))^2)
  (4) x_1 = a x_o + b e,  e ~ N(0, I)

c = 0 is the Euler step (a = 1, b = 0); the last step, r1 = 1, has b = 0 for every c.

Where `second_order` is set, a leaf takes Adams-Bashforth steps instead, without noise
and with no more calls of the network:

  (5) x_1 = x - (r1 - r0) (v + (v - v') h / 2),  h = (r1 - r0) / (r0 - r0')

with v', r0' of the step before; the first step is Euler's. Eqs. 1-4 and Euler, in few
steps, lose deviation: of a Gaussian's deviation of 3, four steps of equal size leave
0.58 (c = 1), 0.61 (Euler) and 0.84 (eq. 5) of it.
"""

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
    second_order: Tree = False,
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
      second_order: whether a leaf takes the steps of eq. 5; one bool or a tree of them.
    """
    batch = jax.tree.leaves(noise)[0].shape[0]

    def step(carry: tuple, inputs: tuple) -> tuple[tuple, None]:
        x, estimate, before = carry
        t_before, t0, t1, key = inputs
        t = jax.tree.map(lambda t0: jnp.full((batch,), t0), t0)
        velocity = velocity_fn(x, t, estimate)
        treedef = jax.tree.structure(x)
        keys = treedef.unflatten(jax.random.split(key, treedef.num_leaves))
        moved = jax.tree.map(
            lambda second, x, v, v_before, t_before, t0, t1, key: (
                _adams_bashforth_step(x, v, v_before, t_before, t0, t1)
                if second
                else _overshoot_step(x, v, t0, t1, key, c=overshoot)
            ),
            path.spread(second_order, x),
            x,
            velocity,
            before,
            *(path.spread(t, x) for t in (t_before, t0, t1)),
            keys,
        )
        return (moved, path.clean_estimate(x, velocity, t), velocity), None

    zero = jax.tree.map(jnp.zeros_like, noise)
    runs = _pair_times(times)
    keys = jax.random.split(rng, len(jax.tree.leaves(runs)[0]))
    (x, _, _), _ = jax.lax.scan(step, (noise, zero, zero), (*runs, keys))
    return x


def _pair_times(times: Tree) -> tuple[Tree, Tree, Tree]:
    """Return each step's times: of the step before it, its own, of the step after it.

    Before the first step there is none: it is given its own, by which eq. 5 knows it.
    """
    return (
        jax.tree.map(lambda t: jnp.concatenate([t[:1], t[:-2]]), times),
        jax.tree.map(lambda t: t[:-1], times),
        jax.tree.map(lambda t: t[1:], times),
    )


def _overshoot_step(
    x: Float[Array, "B ..."],
    velocity: Float[Array, "B ..."],
    t0: Float[Array, ""],
    t1: Float[Array, ""],
    key: PRNGKeyArray,
    *,
    c: float,
) -> Float[Array, "B ..."]:
    """Take the step of eqs. 1-4 with one leaf."""
    advance, a, b = overshoot_coefficients(t0, t1, c)
    x = a * (x - advance * velocity)
    return x + b * jax.random.normal(key, x.shape, x.dtype) if c else x


def _adams_bashforth_step(
    x: Float[Array, "B ..."],
    velocity: Float[Array, "B ..."],
    velocity_before: Float[Array, "B ..."],
    t_before: Float[Array, ""],
    t0: Float[Array, ""],
    t1: Float[Array, ""],
) -> Float[Array, "B ..."]:
    """Take the step of eq. 5 with one leaf; Euler's where t_before is t0."""
    is_first = t_before == t0
    ratio = (t0 - t1) / jnp.where(is_first, 1.0, t_before - t0)
    change = jnp.where(is_first, 0.0, velocity - velocity_before)
    return x - (t0 - t1) * (velocity + ratio / 2 * change)
