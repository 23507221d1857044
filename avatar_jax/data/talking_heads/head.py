"""Hair, ears, skull and skin of one frame; the features are painted by `face`.

Each pixel is looked up on the unit ball of the head and turned back into the frontal
view, so everything on the skin turns, foreshortens and hides as on a real head.
"""

import jax.numpy as jnp
from flax import struct

from avatar_jax.data.talking_heads.geometry import Pose
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

_EAR_HEIGHT = 0.05  # of the ear's middle, in half heights


@struct.dataclass
class Ball:
    """The lookup of every pixel on a ball: the head, or the shell of the hair."""

    inside: Leaf  # signed distance to the outline, head units
    depth: Leaf  # z of the surface towards the viewer, 0 .. 1
    view: Leaf  # x and y of the surface in the view
    x: Leaf  # frontal view, unit ball
    y: Leaf
    z: Leaf  # below 0: the back of the head


def look_up(
    pose: Pose, view_x: Plane, view_y: Plane, radius: Plane | float, lift: Plane | float
) -> Ball:
    """Hit a ball of `radius`, shifted up by `lift`, and turn the hit into the head."""
    a, b = view_x / radius, (view_y + lift) / radius
    squared = a**2 + b**2
    depth = jnp.sqrt(jnp.maximum(1 - squared, 0))
    r = pose.rotation  # the inverse is the transpose
    return Ball(
        inside=(1 - jnp.sqrt(squared)) * 0.9,
        depth=depth,
        view=(a, b),
        x=r[0, 0] * a + r[1, 0] * b + r[2, 0] * depth,
        y=r[0, 1] * a + r[1, 1] * b + r[2, 1] * depth,
        z=r[0, 2] * a + r[1, 2] * b + r[2, 2] * depth,
    )


def light(scene: Scene, ball: Ball, sharpness: float) -> Plane:
    """Shade a ball: ambient light and a soft lamp from the scene's direction."""
    lx, ly, lz = scene.light
    facing = lx * ball.view[0] + ly * ball.view[1] + lz * ball.depth
    soft = jnp.maximum(facing * 0.75 + 0.25, 0)
    return scene.ambient * (0.8 + 0.2 * ball.depth) + sharpness * soft


def draw_fall(
    looks: Looks,
    scene: Scene,
    pose: Pose,
    shell: Ball,
    view: tuple[Plane, Plane],
    density: Plane | float,
) -> tuple[Planes, Plane]:
    """Draw the hair behind the head: planes and coverage.

    It is the far side of the shell, what falls below it, and a bun.
    """
    hair, (x, y) = looks.hair, view
    r, (a, b) = pose.rotation, shell.view
    far_y = r[0, 1] * a + r[1, 1] * b - r[2, 1] * shell.depth
    far_z = r[0, 2] * a + r[1, 2] * b - r[2, 2] * shell.depth
    alpha = cover(jnp.minimum(hair.back - far_y, -far_z), density) * hair.cover
    alpha = alpha * cover(shell.inside + hair.curls * _curl(shell), density)
    strand = ripple(3.7 * x + 0.3 * ripple(0.5 * y))
    half = hair.width * (1 - 0.1 * smoothstep(0.4, 1.8, y))
    half = half + hair.curls * ripple(1.75 * y + jnp.sign(x) * 0.2)
    dome = (1 - jnp.sqrt((x / hair.width) ** 2 + (y / 1.02) ** 2)) * hair.width
    sides = jnp.where(y < 0, dome, half - jnp.abs(x)) * looks.head_width
    ends = hair.length - 0.3 * (x / hair.width) ** 2 + 0.02 * strand - y
    fall = cover(jnp.minimum(sides, ends), density) * (hair.length > 0)
    bun = (hair.bun - jnp.hypot(x * looks.head_width, y + 1.04)) * (hair.bun > 0)
    knot = cover(bun, density) * (hair.bun > 0)
    alpha = jnp.maximum(jnp.maximum(alpha, fall), knot)
    shade = 0.6 + 0.1 * scene.light[0] * x + 0.3 * smoothstep(0.0, 0.3, bun)
    return scale(looks.hair_colour, shade * (1 + looks.hair_streak * strand)), alpha


def draw_shell(
    looks: Looks, scene: Scene, ball: Ball, skull: Ball, density: Plane | float
) -> tuple[Planes, Plane]:
    """Draw the near side of the shell of hair, which thins out at the hairline."""
    hair = looks.hair
    bumps = hair.curls * _curl(ball)
    inside = cover(ball.inside + bumps, density)
    side = jnp.abs(ball.x)
    around = jnp.where(ball.z > 0, side, 2 - side)
    line = hair.front + hair.part * ball.x + hair.fringe * (1 - (side / 0.6) ** 2)
    line = line + (hair.side - line) * smoothstep(0.58, 0.93, around)
    line = line + (hair.back - hair.side) * smoothstep(1.02, 1.2, around)
    strands = ripple(4.4 * ball.x + 1.1 * ball.y * ball.x + 0.5 * ripple(0.64 * ball.y))
    edge = line - ball.y + bumps + 0.02 * strands * ball.depth
    root = smoothstep(0.0, 0.16, edge)
    thickness = hair.shell - 1 + hair.lift + 2 * hair.curls + 0.03
    thickness = thickness * smoothstep(0.1, 0.45, edge)
    height = jnp.maximum(-skull.inside, 0)  # above the skull, seen from the side
    slanted = density * jnp.maximum(ball.depth, 0.3)
    alpha = inside * cover(edge, 0.77 * slanted) * hair.cover
    alpha = alpha * jnp.clip((thickness - height) * density + 1, 0, 1)
    gloss = glow((ball.y + 0.55 + 0.15 * scene.light[1]) ** 2 * 50)
    gloss = gloss * (0.6 + 0.4 * scene.light[0] * ball.view[0]) * ball.depth
    shade = light(scene, ball, 0.38) * (1 + looks.hair_streak * strands)
    shade = shade * (0.82 + 0.18 * root)
    planes = scale(looks.hair_colour, shade)
    return tuple(p + 0.16 * gloss * (0.25 + p) for p in planes), alpha


def _curl(ball: Ball) -> Plane:
    return 0.5 * (
        ripple(1.43 * ball.x + 0.8 * ball.y) + ripple(1.75 * ball.y - 0.64 * ball.x)
    )


def draw_skin(looks: Looks, scene: Scene, ball: Ball, face: Planes) -> Planes:
    """Light a painted face, with a soft rim and the lamp's sheen on the skin."""
    shade = light(scene, ball, 0.42)
    shade = shade * (0.86 + 0.14 * smoothstep(0.0, 0.45, ball.depth))
    lx, ly, lz = scene.light
    facing = lx * ball.view[0] + ly * ball.view[1] + lz * ball.depth
    sheen = 0.05 * smoothstep(0.8, 1.0, facing)
    return tuple(p * shade + sheen for p in face)


def draw_ears(
    looks: Looks,
    scene: Scene,
    pose: Pose,
    view_x: Plane,
    view_y: Plane,
    density: Plane | float,
) -> tuple[Planes, Plane, Plane, Planes, Plane]:
    """Draw ears: planes, coverage behind and before the head; earring and its coverage.

    An ear passes before the head, and the earring comes into sight, as its side turns
    towards the viewer.
    """
    r = pose.rotation
    side = jnp.where(view_x < 0, -1.0, 1.0)
    # One ear lies in each half of the view: the head turns less than a right angle.
    ear_x = side * r[0, 0] + r[0, 1] * _EAR_HEIGHT
    ear_y = side * r[1, 0] + r[1, 1] * _EAR_HEIGHT
    facing = side * r[2, 0] + r[2, 1] * _EAR_HEIGHT
    half_x = looks.ear_size * (0.11 + 0.12 * jnp.maximum(facing, 0))
    half_y = looks.ear_size * 0.2
    dx = (view_x - ear_x) * looks.head_width
    dy = (view_y - ear_y) * looks.head_height
    ear = ellipse(dx + 0.12 * side * dy, dy, half_x, half_y)
    hollow = glow(
        ((dx + 0.03 * side) / (0.55 * half_x)) ** 2 + (dy / (0.6 * half_y)) ** 2
    )
    shade = (scene.ambient + 0.24 + 0.16 * scene.light[0] * side) * (1 - 0.3 * hollow)
    red = (1.03, 0.94, 0.92)
    planes = tint(scale(looks.skin, shade), red)
    behind = cover(ear, density)
    before = behind * smoothstep(0.05, 0.2, facing)
    radius = looks.earring + 1e-3
    rx, ry = dx - 0.02 * side, dy - half_y * 1.05
    spark = glow(((rx + 0.3 * radius) ** 2 + (ry + 0.3 * radius) ** 2) / radius**2 * 6)
    ring = scale(looks.earring_colour, 0.75 + 0.1 * spark)
    ring = tuple(p + 0.45 * spark for p in ring)
    shown = smoothstep(0.2, 0.38, facing) * (side == looks.mark_side)
    shown = shown * (looks.earring > 0)
    return (
        planes,
        behind,
        before,
        ring,
        cover(radius - jnp.hypot(rx, ry), density) * shown,
    )


def mark_skin(looks: Looks, ball: Ball, face: Planes, density: Plane) -> Planes:
    """Add the mole on the side of the jaw, in sight only when it is turned to us."""
    height = looks.mole_height
    across = jnp.sqrt(1 - height**2)
    lean = 0.05  # the mole sits on the very outline of the frontal view
    mx, mz = looks.mark_side * across * jnp.sqrt(1 - lean**2), across * lean
    near = jnp.sqrt((ball.x - mx) ** 2 + (ball.y - height) ** 2 + (ball.z - mz) ** 2)
    # Fade in with the angle, as rims of the ball are seen too flat to be drawn.
    shown = smoothstep(0.2, 0.38, ball.depth) * (looks.mole > 0)
    dark = tuple(c * f for c, f in zip(looks.skin, (0.36, 0.24, 0.22), strict=True))
    return blend(face, dark, cover(looks.mole - near, density) * shown)
