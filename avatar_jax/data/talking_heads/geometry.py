"""The head in space: pose, surface points to pixels and back, keypoints.

The head is a unit ball that is turned, then stretched to the head's half width and half
height, narrowed at the jaw, lengthened by the opening jaw, rolled about the neck and
placed in the image. Points on the face are written (x, y) in head units on the frontal
view; z follows from the ball. All of it is exact, so keypoints are too.
"""

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from avatar_jax.data.talking_heads import motion as motion_codes
from avatar_jax.data.talking_heads.looks import Looks
from avatar_jax.data.talking_heads.scene import Scene
from avatar_jax.types import Leaf

OPEN_HEIGHT = 0.46  # inner mouth of a fully open mouth, head units
UPPER_SHARE = 0.3  # of the opening is above the line where the lips meet
_JAW_DROP = 0.1  # share by which the lower face is longer when the mouth is open
_NECK_PIVOT = 0.9  # head units below the head's middle
KEYPOINT_NAMES = (
    "eye_left_outer",
    "eye_left_inner",
    "eye_right_inner",
    "eye_right_outer",
    "brow_left",
    "brow_right",
    "nose_tip",
    "mouth_left",
    "mouth_right",
    "lip_top",
    "lip_inner_top",
    "lip_inner_bottom",
    "lip_bottom",
    "chin",
    "ear_left",
    "ear_right",
)
_NAME_ROWS = {name: i for i, name in enumerate(motion_codes.MOTION_NAMES)}


@struct.dataclass
class Pose:
    """Per-frame placement of the head; every field is a scalar."""

    rotation: Leaf  # 3 3, head to view
    cos_roll: Leaf
    sin_roll: Leaf
    shift_x: Leaf  # head units
    shift_y: Leaf
    jaw: Leaf  # half height of the lower face, head units


@struct.dataclass
class Mouth:
    """Per-frame outline of the mouth in head units on the frontal view."""

    half_width: Leaf
    opening: Leaf
    upper: Leaf  # height of the upper lip
    lower: Leaf
    lift: Leaf  # of the corners
    skew: Leaf  # the right corner's lift minus the left's, halved


def code(motion: Float[Array, " codes"], name: str) -> Float[Array, ""]:
    """Look one motion code up by its name."""
    return motion[_NAME_ROWS[name]]


def pose_head(looks: Looks, motion: Float[Array, " codes"]) -> Pose:
    """Turn the pose codes into a placement of the head."""
    yaw, pitch, roll = (
        code(motion, name) * unit for name, unit in motion_codes.POSE_UNIT.items()
    )
    cy, sy, cp, sp = jnp.cos(yaw), jnp.sin(yaw), jnp.cos(pitch), jnp.sin(pitch)
    turn = jnp.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    nod = jnp.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    return Pose(
        rotation=turn @ nod,
        cos_roll=jnp.cos(roll),
        sin_roll=jnp.sin(roll),
        shift_x=0.12 * sy,
        shift_y=0.12 * sp,
        jaw=looks.head_height * (1 + _JAW_DROP * code(motion, "mouth_open")),
    )


def shape_mouth(looks: Looks, motion: Float[Array, " codes"]) -> Mouth:
    """Turn the mouth codes into lengths."""
    opening, width = code(motion, "mouth_open"), code(motion, "mouth_width")
    smile = code(motion, "smile")
    rounded, spread = jnp.maximum(-width, 0), jnp.maximum(width, 0)
    stretch = 1 - 0.38 * rounded + 0.12 * spread + 0.1 * smile - 0.08 * opening
    plump = 1 + 0.35 * rounded - 0.15 * spread - 0.12 * smile
    return Mouth(
        half_width=looks.mouth_width * stretch,
        opening=OPEN_HEIGHT * opening,
        upper=looks.upper_lip * plump,
        lower=looks.lower_lip * plump,
        lift=0.025 + 0.12 * smile,
        skew=0.1 * code(motion, "smile_asymmetry"),
    )


def narrow(looks: Looks, y: Float[Array, "..."]) -> Float[Array, "..."]:
    """Give the head's relative width at height `y` (-1 crown, 0 middle, 1 chin)."""
    below = jnp.clip(y, 0, 1)
    return 1 - looks.jaw_taper * below**2


def to_view(
    looks: Looks,
    scene: Scene,
    pose: Pose,
    x: Float[Array, "..."],
    y: Float[Array, "..."],
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Undo placement, roll and shape: image units -> the unit disc of the ball."""
    x = (x - scene.centre[0]) / scene.scale - pose.shift_x
    y = (y - scene.centre[1]) / scene.scale - pose.shift_y - _NECK_PIVOT
    x, y = (
        pose.cos_roll * x + pose.sin_roll * y,
        pose.cos_roll * y - pose.sin_roll * x + _NECK_PIVOT,
    )
    y = y / jnp.where(y > 0, pose.jaw, looks.head_height)
    return x / (looks.head_width * narrow(looks, y)), y


def to_image(
    looks: Looks,
    scene: Scene,
    pose: Pose,
    x: Float[Array, " k"],
    y: Float[Array, " k"],
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """Place points of the unit disc in the image, in image units."""
    x = x * looks.head_width * narrow(looks, y)
    y = y * jnp.where(y > 0, pose.jaw, looks.head_height) - _NECK_PIVOT
    x, y = (
        pose.cos_roll * x - pose.sin_roll * y + pose.shift_x,
        pose.cos_roll * y + pose.sin_roll * x + pose.shift_y + _NECK_PIVOT,
    )
    return x * scene.scale + scene.centre[0], y * scene.scale + scene.centre[1]


def face_to_image(
    looks: Looks,
    scene: Scene,
    pose: Pose,
    x: Float[Array, " k"],
    y: Float[Array, " k"],
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """Place points of the frontal view (head units) in the image, in image units."""
    x, y = x / looks.head_width, y / looks.head_height
    z = jnp.sqrt(jnp.maximum(1 - x**2 - y**2, 0))
    view = pose.rotation @ jnp.stack([x, y, z])
    return to_image(looks, scene, pose, view[0], view[1])


def locate(
    looks: Looks, scene: Scene, motion: Float[Array, " codes"]
) -> tuple[Float[Array, "k 2"], Float[Array, "2 4"]]:
    """Find the keypoints and the boxes (face, mouth; x0 y0 x1 y1) in image units."""
    pose, mouth = pose_head(looks, motion), shape_mouth(looks, motion)
    face_x, face_y = _face_points(looks, motion, mouth)
    x, y = face_to_image(looks, scene, pose, face_x, face_y)
    ears = pose.rotation @ jnp.array([[-1.0, 1.0], [0.05, 0.05], [0.0, 0.0]])
    chin = jnp.array([0.0]), jnp.array([1.0])
    extra = to_image(
        looks,
        scene,
        pose,
        jnp.concatenate([chin[0], ears[0]]),
        jnp.concatenate([chin[1], ears[1]]),
    )
    x, y = jnp.concatenate([x, extra[0]]), jnp.concatenate([y, extra[1]])
    return jnp.stack([x, y], axis=1), _boxes(looks, scene, pose, mouth)


def mouth_line(
    mouth: Mouth, x: Float[Array, "..."], middle: float | Float[Array, ""]
) -> Float[Array, "..."]:
    """Give the height at which the lips meet: corners lifted by the smile."""
    t = jnp.clip(x / mouth.half_width, -1.3, 1.3)
    return middle - (mouth.lift + mouth.skew * t) * (t**2 - 0.3)


def _face_points(
    looks: Looks, motion: Float[Array, " codes"], mouth: Mouth
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    inner, outer = (
        looks.eye_spacing - looks.eye_width,
        looks.eye_spacing + looks.eye_width,
    )
    slant = looks.eye_slant * looks.eye_width
    eye_in, eye_out = looks.eye_height - slant, looks.eye_height + slant
    brow = looks.eye_height - looks.brow_height - 0.09 * code(motion, "brow")
    tip = looks.eye_height + looks.nose_length
    left, right = -mouth.half_width, mouth.half_width
    ends = mouth_line(mouth, jnp.stack([left, right]), looks.mouth_height)
    middle = mouth_line(mouth, jnp.zeros(()), looks.mouth_height)
    top, bottom = (
        middle - UPPER_SHARE * mouth.opening,
        middle + (1 - UPPER_SHARE) * mouth.opening,
    )
    points = [
        (-outer, eye_out),
        (-inner, eye_in),
        (inner, eye_in),
        (outer, eye_out),
        (-looks.eye_spacing, brow),
        (looks.eye_spacing, brow),
        (0.0, tip),
        (left, ends[0]),
        (right, ends[1]),
        (0.0, top - mouth.upper),
        (0.0, top),
        (0.0, bottom),
        (0.0, bottom + mouth.lower),
    ]
    x, y = zip(*points, strict=True)
    return jnp.stack([jnp.asarray(v) for v in x]), jnp.stack(
        [jnp.asarray(v) for v in y]
    )


def _boxes(looks: Looks, scene: Scene, pose: Pose, mouth: Mouth) -> Float[Array, "2 4"]:
    angle = jnp.linspace(0, 2 * np.pi, 48, endpoint=False)
    face = to_image(looks, scene, pose, jnp.cos(angle), jnp.sin(angle))
    t = jnp.linspace(-1, 1, 9)
    edge = mouth_line(mouth, t * mouth.half_width, looks.mouth_height)
    round_off = jnp.sqrt(1 - t**2)
    top = edge - (UPPER_SHARE * mouth.opening + mouth.upper) * round_off
    bottom = edge + ((1 - UPPER_SHARE) * mouth.opening + mouth.lower) * round_off
    lips = face_to_image(
        looks,
        scene,
        pose,
        jnp.tile(t * mouth.half_width, 2),
        jnp.concatenate([top, bottom]),
    )
    return jnp.stack([_bound(*face), _bound(*lips)])


def _bound(x: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, " 4"]:
    return jnp.stack([x.min(), y.min(), x.max(), y.max()])
