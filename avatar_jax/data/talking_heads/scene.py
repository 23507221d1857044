"""Where and how a person is filmed: background, light, clothing and framing.

A scene depends on (seed, person, scene index) alone: clips of one person with the same
index share it, with different indices they share nothing but the person.
Places are in image units: x to the right and y down, both from 0 to 1.
"""

import colorsys

import numpy as np
from flax import struct
from jaxtyping import Float

from avatar_jax.data.talking_heads.looks import Colour
from avatar_jax.data.talking_heads.people import Person
from avatar_jax.types import InputError, Leaf

_SCENE_STREAM = 51
SHAPES = 4
GARMENTS = ("crew-neck", "v-neck", "shirt", "striped top", "hoodie")
PLACES = ("wall", "lights", "window", "shelf", "studio")


@struct.dataclass
class Scene:
    """One scene, as the renderer reads it (a pytree of scalars and colours)."""

    centre: Leaf  # x and y of the head at rest
    scale: Leaf  # head unit in image heights
    light: Leaf  # unit vector towards the light; y down, z to us
    light_colour: Leaf  # RGB factors
    ambient: Leaf  # share of light without direction
    top: Leaf  # RGB, background gradient
    bottom: Leaf
    shapes: Leaf  # shapes 5: x, y, half width, half height, roundness
    shape_colours: Leaf  # shapes 3
    shape_softness: Leaf  # image units
    shape_opacity: Leaf
    garment: Leaf  # into GARMENTS
    garment_colour: Leaf
    trim_colour: Leaf
    shoulder: Leaf  # half width of the shoulders in head units
    place: Leaf  # into PLACES


def sample_scene(person: Person, scene: int) -> Scene:
    """Sample scene number `scene` of a person, the same one every time."""
    if scene < 0:
        raise InputError(f"expected a scene index of at least 0, got {scene}")
    rng = np.random.default_rng((person.seed, person.index, scene, _SCENE_STREAM))
    hue, place = rng.random(), int(rng.integers(len(PLACES)))
    top, bottom = _background(hue, place, rng)
    shapes, colours = _decorate(hue, place, rng)
    side, height = rng.uniform(-0.75, 0.75), rng.uniform(-0.75, -0.25)
    light = np.array([side, height, rng.uniform(0.6, 0.9)])
    warmth = rng.uniform(-1, 1)
    garment = int(rng.integers(len(GARMENTS)))
    garment_hue = (hue + rng.uniform(0.25, 0.75)) % 1
    value = rng.uniform(0.25, 0.9)
    return Scene(
        centre=(rng.uniform(0.44, 0.56), rng.uniform(0.45, 0.49)),
        scale=rng.uniform(0.305, 0.345),
        light=tuple(light / np.linalg.norm(light)),
        light_colour=(1 + 0.06 * warmth, 1.0, 1 - 0.08 * warmth),
        ambient=rng.uniform(0.55, 0.75),
        top=top,
        bottom=bottom,
        shapes=shapes,
        shape_colours=colours,
        shape_softness=(0.004, 0.012, 0.004, 0.006, 0.12)[place],
        shape_opacity=(0.35, 0.5, 0.75, 0.7, 0.55)[place],
        garment=garment,
        garment_colour=colorsys.hsv_to_rgb(garment_hue, rng.uniform(0.2, 0.7), value),
        trim_colour=colorsys.hsv_to_rgb(
            (garment_hue + rng.uniform(0.05, 0.5)) % 1,
            rng.uniform(0.1, 0.5),
            0.95 if value < 0.6 else 0.35,
        ),
        shoulder=rng.uniform(1.45, 1.75),
        place=place,
    )


def _background(
    hue: float, place: int, rng: np.random.Generator
) -> tuple[Colour, Colour]:
    saturation = rng.uniform(0.12, 0.36)
    value = (0.82, 0.30, 0.78, 0.62, 0.66)[place] + rng.uniform(-0.1, 0.1)
    top = colorsys.hsv_to_rgb(hue, saturation, value)
    bottom = colorsys.hsv_to_rgb(
        (hue + rng.uniform(-0.08, 0.08)) % 1, saturation * 1.1, value * 0.72
    )
    return top, bottom


def _decorate(
    hue: float, place: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "shapes 5"], Float[np.ndarray, "shapes 3"]]:
    """Arrange four shapes: discs, out-of-focus lights, panes, books or a glow."""
    x, y, size = rng.random(SHAPES), rng.random(SHAPES), rng.uniform(0.6, 1.4, SHAPES)
    columns = np.arange(SHAPES)
    if place == PLACES.index("window"):
        left = 0.08 if x[0] < 0.5 else 0.72
        x, y = left + 0.2 * (columns % 2), 0.14 + 0.26 * (columns // 2)
        half_x, half_y, roundness = np.full(4, 0.09), np.full(4, 0.12), np.full(4, 0.01)
    elif place == PLACES.index("shelf"):
        x = np.where(columns < 2, 0.02 + 0.09 * columns, 0.76 + 0.09 * columns - 0.09)
        y, half_x, half_y = 0.3 + 0.1 * y, 0.035 * size, 0.16 * size
        roundness = np.full(SHAPES, 0.01)
    elif place == PLACES.index("studio"):
        x, y = 0.3 + 0.4 * x, 0.3 + 0.3 * y
        half_x = half_y = roundness = 0.22 * size
    else:
        radius = (0.17 if place == PLACES.index("wall") else 0.085) * size
        x = (columns + x) / SHAPES
        half_x = half_y = roundness = radius
    value = (0.9, 0.95, 0.97, 0.7, 0.9)[place]
    saturation = (0.3, 0.5, 0.12, 0.5, 0.2)[place]
    drift = rng.uniform(-0.12, 0.12, SHAPES) * (3 if place == 3 else 1)
    colours = [
        colorsys.hsv_to_rgb((hue + d) % 1, saturation, value * (0.85 + 0.15 * s / 1.4))
        for d, s in zip(drift, size, strict=True)
    ]
    shapes = np.stack([x, y, half_x, half_y, roundness], axis=1)
    return shapes.astype(np.float32), np.array(colours, np.float32)
