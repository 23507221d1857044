"""What the renderer knows of a person, and the palettes that people are made from.

Lengths are in head units: half the height of an average head is 1. Colours are RGB in
[0, 1].
"""

from flax import struct

from avatar_jax.types import Leaf

Colour = tuple[float, float, float]

SKINS = (
    (0.98, 0.86, 0.78),
    (0.94, 0.76, 0.64),
    (0.87, 0.66, 0.50),
    (0.74, 0.52, 0.37),
    (0.56, 0.37, 0.25),
    (0.40, 0.26, 0.18),
)
HAIR_COLOURS = {
    "black": (0.10, 0.09, 0.10),
    "dark brown": (0.25, 0.15, 0.10),
    "brown": (0.44, 0.27, 0.16),
    "auburn": (0.55, 0.22, 0.12),
    "red": (0.78, 0.36, 0.16),
    "blond": (0.88, 0.70, 0.40),
    "grey": (0.66, 0.66, 0.68),
    "teal": (0.16, 0.50, 0.52),
    "violet": (0.45, 0.30, 0.58),
}
IRISES = (
    (0.22, 0.13, 0.08),
    (0.42, 0.27, 0.13),
    (0.30, 0.46, 0.28),
    (0.26, 0.46, 0.66),
    (0.48, 0.54, 0.58),
)
GLASSES_COLOURS = (
    (0.08, 0.08, 0.10),
    (0.45, 0.18, 0.12),
    (0.72, 0.58, 0.28),
    (0.14, 0.24, 0.46),
)
SPECIAL_TEETH = ((0.88, 0.66, 0.18), (0.16, 0.05, 0.06), (0.96, 0.95, 0.92))
EARRING_COLOURS = ((0.97, 0.80, 0.25), (0.86, 0.90, 0.96), (0.85, 0.16, 0.30))


@struct.dataclass
class Hair:
    """A shell around the head that is cut by a hairline, and what falls behind it."""

    shell: Leaf = 1.06  # radius of the shell in head radii
    lift: Leaf = 0.03  # the shell's shift upwards
    front: Leaf = -0.55  # hairline above the nose, -1 is the crown
    part: Leaf = 0.0  # slope of the hairline across the forehead
    fringe: Leaf = 0.0  # how far the hairline bows down in the middle
    side: Leaf = 0.0  # lower end at the temples
    back: Leaf = 0.5  # lower end behind the ears
    length: Leaf = 0.0  # how far down hair falls behind the head; 0: none
    width: Leaf = 1.0  # half width of the fall in head half widths
    curls: Leaf = 0.0  # height of the bumps of the outline
    bun: Leaf = 0.0  # radius of a bun on the crown
    cover: Leaf = 1.0  # opacity of the shell


HAIR_STYLES = {
    "a shaved head": Hair(
        shell=1.01, lift=0.0, front=-0.52, side=-0.1, back=0.15, cover=0.32
    ),
    "short hair": Hair(shell=1.08, front=-0.58, side=-0.02, back=0.15),
    "swept hair": Hair(
        shell=1.10, lift=0.05, front=-0.50, part=0.22, side=0.02, back=0.15
    ),
    "long hair": Hair(front=-0.58, part=0.1, side=0.5, length=1.75, width=1.16),
    "a bob with a fringe": Hair(
        shell=1.09, front=-0.46, fringe=0.14, side=0.55, length=1.05, width=1.22
    ),
    "curly hair": Hair(
        shell=1.24, lift=0.12, front=-0.50, side=0.25, length=0.7, width=1.3, curls=0.06
    ),
    "tied hair": Hair(shell=1.05, front=-0.62, side=-0.08, back=0.15, bun=0.32),
    "wavy hair": Hair(
        shell=1.12, lift=0.05, front=-0.52, part=-0.2, side=0.45, length=1.45,
        width=1.24, curls=0.035,
    ),
    "a crop with a fringe": Hair(
        shell=1.11, lift=0.04, front=-0.44, fringe=0.06, side=0.12, back=0.15,
        curls=0.02,
    ),
}  # fmt: skip


@struct.dataclass
class Looks:
    """Static identity, as the renderer reads it (a pytree of scalars and colours)."""

    head_width: Leaf  # half width in head units
    head_height: Leaf
    jaw_taper: Leaf  # share by which the jaw is narrower; below 0 square
    ear_size: Leaf
    skin: Leaf  # RGB
    blush: Leaf
    freckles: Leaf
    freckle_phase: Leaf
    hair: Leaf  # Hair
    hair_colour: Leaf
    hair_streak: Leaf
    eye_spacing: Leaf
    eye_height: Leaf
    eye_width: Leaf
    eye_opening: Leaf
    eye_slant: Leaf
    iris: Leaf
    iris_radius: Leaf
    brow_height: Leaf
    brow_thickness: Leaf
    brow_arch: Leaf
    brow_tilt: Leaf
    nose_length: Leaf
    nose_width: Leaf
    nose_depth: Leaf
    mouth_height: Leaf
    mouth_width: Leaf
    upper_lip: Leaf
    lower_lip: Leaf
    lip_redness: Leaf
    tooth_width: Leaf
    tooth_gap: Leaf
    special_tooth: Leaf  # slot of the odd tooth, counted from the middle
    special_tooth_colour: Leaf
    beard: Leaf
    moustache: Leaf
    glasses: Leaf  # 1 or 0
    glasses_size: Leaf
    glasses_roundness: Leaf
    glasses_colour: Leaf
    mark_side: Leaf  # -1 or 1: which side of the image is marked
    mole: Leaf  # radius; 0: none
    mole_height: Leaf
    earring: Leaf  # radius; 0: none
    earring_colour: Leaf
