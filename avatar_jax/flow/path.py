"""The straight path between data and noise, for any pytree with a leading batch axis.

With t in [0, 1], 1 is noise (rectified flow, arXiv 2209.03003, eq. 1). A time is one
for all leaves, or a tree with one for each:

  (1) x_t = (1 - t) x + t e
  (2) u   = e - x              velocity, the target
  (3) x^  = x_t - t v          clean estimate of a predicted velocity v
"""

from typing import Any

import jax
from jaxtyping import Array, Float

Tree = Any


def expand(t: Float[Array, " B"], leaf: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """Give t one axis of length 1 for each further axis of the leaf."""
    return t.reshape(t.shape + (1,) * (leaf.ndim - 1))


def spread(t: Tree, x: Tree) -> Tree:
    """Return a tree like x with a time for each leaf."""
    alike = jax.tree.structure(t) == jax.tree.structure(x)
    return t if alike else jax.tree.map(lambda _: t, x)


def interpolate(x: Tree, noise: Tree, t: Tree) -> Tree:
    """Return the noisy sample x_t of eq. 1; times are of shape B."""
    return jax.tree.map(
        lambda x, e, t: (1 - expand(t, x)) * x + expand(t, x) * e,
        x,
        noise,
        spread(t, x),
    )


def velocity_target(x: Tree, noise: Tree) -> Tree:
    """Return the velocity of eq. 2."""
    return jax.tree.map(lambda x, e: e - x, x, noise)


def clean_estimate(noisy: Tree, velocity: Tree, t: Tree) -> Tree:
    """Return the clean estimate of eq. 3; times are of shape B."""
    times = spread(t, noisy)
    return jax.tree.map(lambda x, v, t: x - expand(t, x) * v, noisy, velocity, times)
