"""The features on the skin, painted in the frontal view (head units).

Closed lids and lips are the trap: a distance that is only an ellipse scaled flat is
nearly zero along a whole line, which draws whiskers beside the eye or mouth. Here every
opening is bounded by its own corners and fades with its height.
"""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from avatar_jax.data.talking_heads import geometry
from avatar_jax.data.talking_heads.geometry import Mouth, code
from avatar_jax.data.talking_heads.looks import Looks
from avatar_jax.data.talking_heads.scene import Scene
from avatar_jax.data.talking_heads.shading import (
    Plane,
    Planes,
    blend,
    cover,
    ellipse,
    glow,
    ripple,
    scale,
    smoothstep,
    tint,
)
from avatar_jax.types import Leaf

_TOOTH_HEIGHT = 0.12


@struct.dataclass
class Painted:
    """A painted face and which of its pixels are eye or mouth."""

    planes: Leaf  # three planes Y X
    eyes: Leaf  # coverage
    mouth: Leaf


def paint_face(
    looks: Looks,
    scene: Scene,
    motion: Float[Array, " codes"],
    mouth: Mouth,
    x: Plane,
    y: Plane,
    density: Plane,
) -> Painted:
    """Paint skin, brows, eyes, nose, mouth and glasses at frontal places `x`, `y`."""
    planes = _paint_skin(looks, x, y)
    planes = _paint_beard(looks, planes, x, y, mouth, density)
    planes = _paint_nose(looks, scene, motion, planes, x, y, density)
    planes, eyes = _paint_eyes(looks, scene, motion, planes, x, y, density)
    planes = _paint_brows(looks, motion, planes, x, y, density)
    planes, lips = _paint_mouth(looks, mouth, planes, x, y, density)
    planes = _paint_glasses(looks, planes, x, y, density)
    return Painted(planes, eyes, lips)


def _paint_skin(looks: Looks, x: Plane, y: Plane) -> Planes:
    """Lay the tone, cheeks that blush, and freckles at the person's own places."""
    side = jnp.abs(x)
    cheeks = glow(((side - 0.42) / 0.22) ** 2 + ((y - 0.2) / 0.17) ** 2) * looks.blush
    phase = looks.freckle_phase
    spots = ripple(5.6 * x + phase + 0.12 * ripple(2.1 * y))
    spots = spots * ripple(6.3 * y - phase + 0.15 * ripple(1.7 * x + 0.4 * phase))
    spots = smoothstep(0.4, 0.9, spots) * glow(
        (side / 0.6) ** 4 + ((y - 0.12) / 0.3) ** 4
    )
    spots = spots * looks.freckles
    socket = glow(
        ((side - looks.eye_spacing) / 0.24) ** 2 + ((y - looks.eye_height) / 0.17) ** 2
    )
    red, green, blue = looks.skin
    shade = 1 - 0.13 * socket
    return (
        red * shade * (1 - 0.28 * spots),
        green * shade * (1 - 0.30 * cheeks - 0.45 * spots),
        blue * shade * (1 - 0.24 * cheeks - 0.55 * spots),
    )


def _paint_beard(
    looks: Looks, planes: Planes, x: Plane, y: Plane, mouth: Mouth, density: Plane
) -> Planes:
    side = jnp.abs(x)
    line = 0.42 - 0.5 * jnp.maximum(side - 0.38, 0) + 0.28 * glow((side / 0.3) ** 2)
    chin = smoothstep(-0.07, 0.07, y - line)
    under_nose = looks.eye_height + looks.nose_length + 0.06
    lip = (under_nose + looks.mouth_height) / 2
    strip = ellipse(x, y - lip - 0.25 * x**2, 0.36, 0.075)
    upper = smoothstep(-0.03, 0.03, strip) * looks.moustache
    grain = 0.9 + 0.1 * ripple(9.7 * x + 1.4 * y) * ripple(8.4 * y)
    alpha = jnp.maximum(chin, upper) * jnp.minimum(looks.beard * 1.3, 0.92)
    return blend(planes, scale(looks.hair_colour, grain * 0.9), alpha)


def _paint_nose(
    looks: Looks,
    scene: Scene,
    motion: Float[Array, " codes"],
    planes: Planes,
    x: Plane,
    y: Plane,
    density: Plane,
) -> Planes:
    """Shade a ridge that stands out: its tip shifts as the head turns (parallax)."""
    tip = looks.eye_height + looks.nose_length
    along = jnp.clip(
        (y - looks.eye_height + 0.12) / (looks.nose_length + 0.12), 0, 1.15
    )
    x = x - looks.nose_depth * jnp.sin(code(motion, "yaw") * 0.785) * along**2
    y = y - 0.5 * looks.nose_depth * jnp.sin(code(motion, "pitch") * 0.52) * along
    width = looks.nose_width * (0.42 + 0.58 * along)
    ridge = smoothstep(-0.12, 0.06, y - looks.eye_height) * smoothstep(
        0.1, -0.03, y - tip
    )
    side = x / width
    slope = side * glow(side**2 * 0.8) * ridge
    shade = 1 + 0.4 * scene.light[0] * slope - 0.16 * jnp.abs(slope)
    ball = glow((x / (0.6 * looks.nose_width)) ** 2 + ((y - tip + 0.02) / 0.07) ** 2)
    under = glow((x / looks.nose_width) ** 2 + ((y - tip - 0.085) / 0.035) ** 2)
    shade = shade + 0.09 * ball - 0.2 * under
    planes = scale(planes, shade)
    nostril = ellipse(
        jnp.abs(x) - 0.58 * looks.nose_width,
        y - tip - 0.05,
        0.4 * looks.nose_width,
        0.026,
    )
    dark = tint(looks.skin, (0.42, 0.28, 0.26))
    return blend(planes, dark, 0.75 * cover(nostril, 0.67 * density))


def _paint_eyes(
    looks: Looks,
    scene: Scene,
    motion: Float[Array, " codes"],
    planes: Planes,
    x: Plane,
    y: Plane,
    density: Plane,
) -> tuple[Planes, Plane]:
    """Paint both eyes at once by folding the face along its middle."""
    sign = jnp.where(x < 0, -1.0, 1.0)
    blink = jnp.where(x < 0, code(motion, "blink_left"), code(motion, "blink_right"))
    u = jnp.abs(x) - looks.eye_spacing
    v = y - looks.eye_height - looks.eye_slant * u
    inside = looks.eye_width - jnp.abs(u)
    profile = 1 - (u / looks.eye_width) ** 2
    low = 0.5 * looks.eye_opening * profile
    high = -looks.eye_opening * profile * (1 - blink) + low * blink
    corner = cover(inside, density)
    gap = 1.5 * looks.eye_opening * (1 - blink)
    opened = cover(jnp.minimum(v - high, low - v), density) * corner
    opened = opened * jnp.clip(gap * density, 0, 1)
    white = (
        0.95 - 0.22 * glow(((v - high) / 0.035) ** 2) - 0.1 * (u / looks.eye_width) ** 2
    )
    gaze_x = 0.55 * (looks.eye_width - 0.6 * looks.iris_radius) * code(motion, "gaze_x")
    iris_u = u - sign * gaze_x
    iris_v = v + 0.02 - 0.07 * code(motion, "gaze_y")
    away = jnp.sqrt(iris_u**2 + iris_v**2)
    eye = scale((1.0, 0.985, 0.96), white)
    ring = away / looks.iris_radius
    iris = scale(looks.iris, 0.72 + 0.75 * ring * (ring < 0.8) + 0.25 * (iris_v > 0))
    eye = blend(eye, iris, cover(looks.iris_radius - away, density))
    eye = blend(
        eye, (0.03, 0.03, 0.04), cover(0.45 * looks.iris_radius - away, density)
    )
    spot = jnp.sqrt(
        (iris_u * sign - 0.04 * scene.light[0]) ** 2 + (iris_v + 0.035) ** 2
    )
    eye = blend(eye, (1.0, 1.0, 1.0), cover(0.025 - spot, density) * 0.95)
    lid = smoothstep(0.09, 0.0, jnp.abs(v - high + 0.05)) * (v < high) * corner
    planes = scale(planes, 1 - 0.12 * lid)
    planes = blend(planes, eye, opened)
    lash = cover(0.017 - jnp.abs(v - high + 0.006), density)
    lash = lash * cover(inside + 0.015, density)
    crease = cover(0.008 - jnp.abs(v - high + 0.06), density) * corner * 0.35
    dark = tint(looks.skin, (0.2, 0.14, 0.14))
    planes = blend(planes, dark, jnp.maximum(0.9 * lash, crease * (1 - blink)))
    return planes, opened


def _paint_brows(
    looks: Looks,
    motion: Float[Array, " codes"],
    planes: Planes,
    x: Plane,
    y: Plane,
    density: Plane,
) -> Planes:
    half = 1.15 * looks.eye_width
    u = jnp.abs(x) - looks.eye_spacing - 0.01
    share = u / half
    line = looks.eye_height - looks.brow_height - 0.09 * code(motion, "brow")
    line = line - looks.brow_arch * (1 - (share - 0.25) ** 2) - looks.brow_tilt * u
    thick = looks.brow_thickness * (1 - 0.35 * share - 0.2 * share**2)
    distance = jnp.minimum(thick - jnp.abs(y - line), half - jnp.abs(u))
    colour = tuple(
        0.75 * h + 0.03 * s for h, s in zip(looks.hair_colour, looks.skin, strict=True)
    )
    return blend(planes, colour, 0.88 * cover(distance, density))


def _paint_mouth(
    looks: Looks, mouth: Mouth, planes: Planes, x: Plane, y: Plane, density: Plane
) -> tuple[Planes, Plane]:
    """Paint lips, the gap between them, teeth and tongue; also give their coverage."""
    t = x / mouth.half_width
    round_off = jnp.sqrt(jnp.maximum(1 - t**2, 0))
    middle = geometry.mouth_line(mouth, x, looks.mouth_height)
    top = middle - geometry.UPPER_SHARE * mouth.opening * round_off
    bottom = middle + (1 - geometry.UPPER_SHARE) * mouth.opening * round_off
    corner = cover(mouth.half_width - jnp.abs(x), density)
    bow = 1 - 0.22 * glow((t / 0.16) ** 2)
    lip = jnp.minimum(
        y - top + mouth.upper * round_off * bow, bottom + mouth.lower * round_off - y
    )
    lips = cover(lip, density) * corner
    below = glow((x / 0.22) ** 2 + ((y - bottom - mouth.lower - 0.07) / 0.05) ** 2)
    planes = scale(planes, 1 - 0.13 * below)
    red = looks.lip_redness
    colour = tint(looks.skin, (0.94 - 0.04 * red, 0.72 - 0.26 * red, 0.74 - 0.22 * red))
    upper = y < middle
    shine = glow(((y - bottom - 0.5 * mouth.lower) / 0.03) ** 2 + (t / 0.5) ** 2)
    planes = blend(planes, scale(colour, 1 - 0.14 * upper + 0.2 * shine), lips)
    inside = cover(jnp.minimum(y - top, bottom - y), density) * corner
    inside = inside * jnp.clip(mouth.opening * density, 0, 1)
    planes = blend(
        planes, _mouth_inside(looks, mouth, x, y, top, bottom, density), inside
    )
    seam = jnp.clip(1.2 - jnp.abs(y - middle) * jnp.minimum(density, 66.0), 0, 1)
    seam = seam * corner * round_off * jnp.clip(1 - mouth.opening / 0.08, 0, 1)
    planes = blend(planes, scale(colour, 0.42), 0.8 * seam)
    return planes, lips


def _mouth_inside(
    looks: Looks,
    mouth: Mouth,
    x: Plane,
    y: Plane,
    top: Plane,
    bottom: Plane,
    density: Plane,
) -> Planes:
    """Paint the throat, the tongue and the person's upper teeth."""
    depth = jnp.clip((y - top) / (bottom - top + 1e-3), 0, 1)
    throat = scale((0.36, 0.07, 0.09), 0.75 + 0.5 * depth)
    tongue = ellipse(
        x, y - bottom - 0.02, 0.62 * mouth.half_width, 0.32 * mouth.opening + 1e-3
    )
    planes = blend(throat, (0.80, 0.36, 0.38), 0.9 * cover(tongue, 0.5 * density))
    shifted = jnp.maximum(jnp.abs(x) - looks.tooth_gap / 2, 0)
    slot = jnp.floor(shifted / looks.tooth_width)
    within = shifted / looks.tooth_width - slot
    edge = jnp.minimum(within, 1 - within) * looks.tooth_width
    gap = cover(looks.tooth_gap / 2 - jnp.abs(x), density) * (looks.tooth_gap > 0)
    signed = jnp.where(x < 0, -1 - slot, slot)
    special = (signed == looks.special_tooth) * 1.0
    tooth = blend(
        scale((0.97, 0.95, 0.90), jnp.ones_like(x)), looks.special_tooth_colour, special
    )
    tooth = scale(tooth, 1 - 0.25 * cover(0.008 - edge, density))
    height = _TOOTH_HEIGHT * (1 - 0.06 * slot) - (y - top)
    row = cover(height, density) * (1 - gap) * cover(0.34 - jnp.abs(x), density)
    return blend(planes, tooth, row)


def _paint_glasses(
    looks: Looks, planes: Planes, x: Plane, y: Plane, density: Plane
) -> Planes:
    size = looks.glasses_size
    u, v = jnp.abs(x) - looks.eye_spacing - 0.01, y - looks.eye_height - 0.02
    half_x, half_y = 0.275 * size, 0.225 * size
    corner = half_y * (0.25 + 0.75 * looks.glasses_roundness)
    qx, qy = jnp.abs(u) - half_x + corner, jnp.abs(v) - half_y + corner
    outside = jnp.sqrt(jnp.maximum(qx, 0) ** 2 + jnp.maximum(qy, 0) ** 2)
    rim = outside + jnp.minimum(jnp.maximum(qx, qy), 0) - corner
    frame = cover(0.024 - jnp.abs(rim), density)
    bridge = cover(0.02 - jnp.abs(v + 0.05 + 0.15 * u), density) * (u < -half_x)
    arm = cover(0.022 - jnp.abs(v + 0.06), density) * (u > half_x)
    lens = cover(-rim, density) * (0.06 + 0.14 * (jnp.abs(u + v - 0.1) < 0.05))
    planes = blend(planes, (0.95, 0.98, 1.0), lens * looks.glasses)
    alpha = jnp.maximum(frame, jnp.maximum(bridge, arm)) * looks.glasses
    return blend(planes, looks.glasses_colour, alpha)
