"""What is behind and below the head: background, shoulders, clothing, neck.

Drawn once per clip, in any detail: `Backdrop` holds the background and the body with
its coverage, so that long hair can fall between the two.
"""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from avatar_jax.data.talking_heads.looks import Looks
from avatar_jax.data.talking_heads.scene import GARMENTS, PLACES, SHAPES, Scene
from avatar_jax.data.talking_heads.shading import (
    Plane,
    Planes,
    blend,
    cover,
    glow,
    scale,
    smoothstep,
    tint,
)
from avatar_jax.types import Leaf


@struct.dataclass
class Backdrop:
    """Planes of one clip that do not move."""

    background: Leaf  # three planes Y X
    body: Leaf  # three planes
    body_cover: Leaf  # one plane


def draw_backdrop(
    looks: Looks, scene: Scene, x: Float[Array, "Y X"], y: Float[Array, "Y X"]
) -> Backdrop:
    """Draw the still layers; `x`, `y` are pixel centres in image units."""
    density = float(x.shape[-1])
    body, body_cover = _draw_body(
        looks,
        scene,
        (x - scene.centre[0]) / scene.scale,
        (y - scene.centre[1]) / scene.scale,
        density * scene.scale,
    )
    return Backdrop(_draw_background(scene, x, y, density), body, body_cover)


def _draw_background(
    scene: Scene, x: Plane, y: Plane, density: Plane | float
) -> Planes:
    slope = smoothstep(0.0, 1.0, y + 0.15 * (x - 0.5) * scene.light[0])
    planes = tuple(
        t + (b - t) * slope for t, b in zip(scene.top, scene.bottom, strict=True)
    )
    soft = jnp.minimum(density, 0.5 / scene.shape_softness)
    for i in range(SHAPES):
        cx, cy, half_x, half_y, roundness = scene.shapes[i]
        qx = jnp.abs(x - cx) - half_x + roundness
        qy = jnp.abs(y - cy) - half_y + roundness
        outside = jnp.hypot(jnp.maximum(qx, 0), jnp.maximum(qy, 0))
        distance = roundness - outside - jnp.minimum(jnp.maximum(qx, qy), 0)
        alpha = cover(distance, soft) * scene.shape_opacity
        planes = blend(planes, tuple(scene.shape_colours[i]), alpha)
    board = cover(0.012 - jnp.abs(y - 0.565), density) * (
        scene.place == PLACES.index("shelf")
    )
    planes = blend(planes, scale(scene.bottom, 0.55), board)
    lit = ((x - 0.5 - 0.5 * scene.light[0]) ** 2 + (y - 0.2) ** 2) / 0.5
    planes = scale(planes, 0.86 + 0.22 * glow(lit))
    return tint(planes, scene.light_colour)


def _draw_body(
    looks: Looks, scene: Scene, x: Plane, y: Plane, density: Plane | float
) -> tuple[Planes, Plane]:
    """Draw neck, shoulders and garment in head units about the head's middle."""
    neck_half = 0.56 * looks.head_width + 0.05 * smoothstep(0.9, 1.4, y) * 4
    neck = cover(neck_half - jnp.abs(x), density) * cover(y - 0.3, density)
    neck = neck * cover(1.75 - y, density)
    shade = 1 - 0.45 * smoothstep(1.6, 0.85, y) - 0.12 * (x / neck_half) ** 2
    shade = shade + 0.1 * scene.light[0] * x / neck_half
    skin = scale(looks.skin, shade * (scene.ambient + 0.3))
    share = jnp.clip(jnp.abs(x) / scene.shoulder, 0, 1)
    line = 1.27 + 0.38 * share**2 + 0.75 * jnp.maximum(share - 0.72, 0) ** 1.5
    line = line - 0.1 * smoothstep(0.45, 0.3, jnp.abs(x))
    line = jnp.where(jnp.abs(x) > scene.shoulder, 9.0, line)
    torso = cover(y - line, density)
    torso = torso * cover(scene.shoulder - jnp.abs(x), density)
    garment = _draw_garment(scene, x, y, line, density)
    cloth = torso * (1 - _neckline(scene, x, y, density))
    planes = blend(skin, garment, cloth)
    return tint(planes, scene.light_colour), jnp.maximum(torso, neck)


def _neckline(scene: Scene, x: Plane, y: Plane, density: Plane | float) -> Plane:
    """Cover the skin that the garment leaves free."""
    round_neck = 0.5 - jnp.hypot(x / 1.05, (y - 1.2) / 0.9)
    vee = (1.95 - y) * 0.42 - jnp.abs(x) * 0.9
    collar = (1.72 - y) * 0.5 - jnp.abs(x) * 0.9
    shape = jnp.stack([round_neck, vee, collar, round_neck, round_neck - 0.04])
    return cover(shape[scene.garment], density)


def _draw_garment(
    scene: Scene, x: Plane, y: Plane, line: Plane, density: Plane | float
) -> Planes:
    form = 0.92 + 0.16 * scene.light[0] * x / scene.shoulder
    form = form - 0.16 * smoothstep(0.5, 1.0, jnp.abs(x) / scene.shoulder)
    form = form - 0.10 * smoothstep(0.12, 0.0, y - line)
    fold = 0.035 * jnp.sin(5.5 * x + 2.5 * y) * jnp.sin(3.1 * y - 2.2 * x)
    planes = scale(scene.garment_colour, jnp.ones_like(x))
    stripe = cover(jnp.abs((y * 4.2) % 1 - 0.5) - 0.28, density / 4.2)
    stripe = stripe * (scene.garment == GARMENTS.index("striped top"))
    planes = blend(planes, scene.trim_colour, stripe)
    trim = jnp.stack(
        [
            _band(0.5 - jnp.hypot(x / 1.05, (y - 1.2) / 0.9), 0.07, density),
            _band((1.95 - y) * 0.42 - jnp.abs(x) * 0.9, 0.06, density),
            _collar(x, y, density),
            _band(0.5 - jnp.hypot(x / 1.05, (y - 1.2) / 0.9), 0.05, density),
            _hood(x, y, density),
        ]
    )
    planes = blend(planes, scene.trim_colour, trim[scene.garment])
    return scale(planes, (form + fold) * (scene.ambient + 0.32))


def _band(distance: Plane, width: float, density: Plane | float) -> Plane:
    return cover(distance + width, density) * cover(-distance, density)


def _collar(x: Plane, y: Plane, density: Plane | float) -> Plane:
    """Two collar wings and a row of buttons."""
    along = jnp.abs(x) * 0.9 - (1.72 - y) * 0.5
    wing = cover(along, density) * cover(0.19 - along, density)
    wing = wing * cover(1.78 - y - 0.35 * jnp.abs(x), density) * cover(y - 1.1, density)
    button = cover(0.035 - jnp.hypot(x, (y + 0.1) % 0.24 - 0.12), density)
    return jnp.maximum(wing, button * cover(y - 1.8, density))


def _hood(x: Plane, y: Plane, density: Plane | float) -> Plane:
    """A thick hood about the neck and two cords."""
    ring = 0.46 - jnp.hypot(x / 1.1, (y - 1.2) / 0.85)
    cord = cover(0.025 - jnp.abs(jnp.abs(x) - 0.2), density)
    cord = cord * cover(y - 1.55, density) * cover(2.0 - y, density)
    return jnp.maximum(0.55 * _band(ring, 0.16, density), cord)
