"""Small pieces of every layer: coverage from signed distance, blending, noise.

A colour image is a tuple of three planes, so that XLA computes a pixel once, in
one fused loop, instead of once per channel.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

Plane = Float[Array, "..."]
Planes = tuple[Plane, Plane, Plane]


def cover(distance: Plane, density: Plane | float) -> Plane:
    """Turn a signed distance (inside positive) into anti-aliased coverage.

    `density` is in pixels per unit of distance.
    """
    return jnp.clip(distance * density + 0.5, 0, 1)


def blend(under: Planes, over: tuple, alpha: Plane) -> Planes:
    """Lay a colour (or planes) over planes."""
    return tuple(u + (o - u) * alpha for u, o in zip(under, over, strict=True))


def scale(planes: tuple, factor: Plane | float) -> Planes:
    """Multiply all three planes."""
    return tuple(p * factor for p in planes)


def tint(planes: tuple, colour: tuple) -> Planes:
    """Multiply each plane by its own scalar."""
    return tuple(p * c for p, c in zip(planes, colour, strict=True))


def smoothstep(low: float | Plane, high: float | Plane, x: Plane) -> Plane:
    """Rise smoothly from 0 at `low` to 1 at `high`."""
    t = jnp.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def ripple(turns: Plane) -> Plane:
    """Wave between -1 and 1 with period 1: a sine made of parabolas, much cheaper."""
    t = turns - jnp.round(turns)
    return 8 * t * (1 - 2 * jnp.abs(t))


def glow(squared: Plane) -> Plane:
    """Fall off from 1, a cheap bell of a squared distance in units of its width."""
    return 1 / (1 + squared) ** 2


def ellipse(x: Plane, y: Plane, half_x: Plane | float, half_y: Plane | float) -> Plane:
    """Approximate the signed distance to an axis-aligned ellipse; exact on its axes."""
    radius = jnp.sqrt((x / half_x) ** 2 + (y / half_y) ** 2)
    return (1 - radius) * jnp.minimum(half_x, half_y)
