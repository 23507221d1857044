"""Motion codes -> frames, masks, keypoints, boxes; jit-compiled in chunks of one size.

Every pixel of a frame is one 32-bit word, red, green, blue and mask, so that the whole
picture is one fused loop over pixels.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, UInt8, UInt32

from avatar_jax.data.talking_heads import backdrop, face, geometry, head
from avatar_jax.data.talking_heads.backdrop import Backdrop
from avatar_jax.data.talking_heads.looks import Looks
from avatar_jax.data.talking_heads.scene import Scene
from avatar_jax.data.talking_heads.shading import blend, cover, scale
from avatar_jax.types import InputError

CHUNK = 25  # frames per call; one compilation per size
MASK_NAMES = ("background", "face", "eyes", "mouth")
SMALLEST, LARGEST = 64, 512  # pixels


@struct.dataclass
class Rendered:
    """The pictures of a clip and where things are in them, in pixels."""

    frames: UInt8[np.ndarray, "frames Y X 3"]
    masks: UInt8[np.ndarray, "frames Y X"]  # into MASK_NAMES
    keypoints: Float[np.ndarray, "frames keypoints 2"]
    face_boxes: Float[np.ndarray, "frames 4"]  # x0 y0 x1 y1
    mouth_boxes: Float[np.ndarray, "frames 4"]


def render(
    looks: Looks, scene: Scene, motion: Float[np.ndarray, "frames codes"], size: int
) -> Rendered:
    """Draw one clip, square, `size` pixels wide (64 to 512)."""
    if not SMALLEST <= size <= LARGEST:
        raise InputError(
            f"expected a size of {SMALLEST} to {LARGEST} pixels, got {size}"
        )
    looks, scene = jax.tree.map(_as_array, (looks, scene))
    still = _draw_still(looks, scene, size)
    count = len(motion)
    padded = np.concatenate([motion, np.repeat(motion[-1:], -count % CHUNK, axis=0)])
    chunks = [
        _draw_chunk(looks, scene, still, padded[start : start + CHUNK], size)
        for start in range(0, len(padded), CHUNK)
    ]
    words, points, boxes = (
        np.concatenate([np.asarray(c[i]) for c in chunks])[:count] for i in range(3)
    )
    channels = words.view(np.uint8).reshape(count, size, size, 4)
    return Rendered(
        frames=np.ascontiguousarray(channels[..., :3]),
        masks=np.ascontiguousarray(channels[..., 3]),
        keypoints=points * size,
        face_boxes=boxes[:, 0] * size,
        mouth_boxes=boxes[:, 1] * size,
    )


def _as_array(leaf: float | int | np.ndarray) -> np.ndarray:
    return np.asarray(leaf, np.int32 if isinstance(leaf, int) else np.float32)


def _grid(size: int) -> tuple[Float[Array, "Y X"], Float[Array, "Y X"]]:
    centres = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
    return jnp.broadcast_to(centres, (size, size)), jnp.broadcast_to(
        centres[:, None], (size, size)
    )


@functools.partial(jax.jit, static_argnames="size")
def _draw_still(looks: Looks, scene: Scene, size: int) -> Backdrop:
    return backdrop.draw_backdrop(looks, scene, *_grid(size))


@functools.partial(jax.jit, static_argnames="size")
def _draw_chunk(
    looks: Looks,
    scene: Scene,
    still: Backdrop,
    motion: Float[Array, "frames codes"],
    size: int,
) -> tuple[
    UInt32[Array, "frames Y X"],
    Float[Array, "frames keypoints 2"],
    Float[Array, "frames 2 4"],
]:
    poses = jax.vmap(functools.partial(geometry.pose_head, looks))(motion)
    mouths = jax.vmap(functools.partial(geometry.shape_mouth, looks))(motion)
    # Sines and matrices of a frame are computed once, not in the loop over its pixels.
    poses, mouths = jax.lax.optimization_barrier((poses, mouths))
    draw = functools.partial(_draw_frame, looks, scene, still, size)
    words = jax.vmap(draw)(motion, poses, mouths)
    points, boxes = jax.vmap(functools.partial(geometry.locate, looks, scene))(motion)
    return words, points, boxes


def _draw_frame(
    looks: Looks,
    scene: Scene,
    still: Backdrop,
    size: int,
    motion: Float[Array, " codes"],
    pose: geometry.Pose,
    mouth: geometry.Mouth,
) -> UInt32[Array, "Y X"]:
    """Lay the layers from back to front."""
    density = size * scene.scale  # pixels per head unit
    view_x, view_y = geometry.to_view(looks, scene, pose, *_grid(size))
    ball = head.look_up(pose, view_x, view_y, 1.0, 0.0)
    shell = head.look_up(pose, view_x, view_y, looks.hair.shell, looks.hair.lift)
    fall, fall_cover = head.draw_fall(
        looks, scene, pose, shell, (view_x, view_y), density
    )
    ear, behind, before, ring, ring_cover = head.draw_ears(
        looks, scene, pose, view_x, view_y, density
    )
    # Seen at a slant, a pixel spans more of the face.
    slanted = density * jnp.maximum(ball.depth, 0.4)
    x, y = ball.x * looks.head_width, ball.y * looks.head_height
    front = (ball.z > 0) * 1.0
    painted = face.paint_face(looks, scene, motion, mouth, x, y, slanted)
    plain = scale(looks.skin, jnp.ones_like(x))
    skin = blend(plain, painted.planes, front)
    skin = head.mark_skin(looks, ball, skin, density)
    skin = head.draw_skin(looks, scene, ball, skin)
    hair, hair_cover = head.draw_shell(looks, scene, shell, ball, density)

    skull = cover(ball.inside, density)
    planes = blend(still.background, fall, fall_cover)
    planes = blend(planes, still.body, still.body_cover)
    planes = blend(planes, ear, behind)
    planes = blend(planes, skin, skull)
    planes = blend(planes, hair, hair_cover)
    ear_shown = before * (looks.hair.side < 0.2)
    planes = blend(planes, ear, ear_shown)
    planes = blend(planes, ring, ring_cover)

    free = front * (1 - hair_cover) * (skull > 0.5)
    mask = jnp.where((skull > 0.5) & (hair_cover < 0.5), 1, 0)
    mask = jnp.where(painted.eyes * free > 0.5, 2, mask)
    mask = jnp.where(painted.mouth * free > 0.5, 3, mask)
    return _pack(planes, mask)


def _pack(planes: backdrop.Planes, mask: Int[Array, "Y X"]) -> UInt32[Array, "Y X"]:
    """Put red, green, blue and mask into the bytes of a little-endian word."""
    red, green, blue = (
        (jnp.clip(p, 0, 1) * 255 + 0.5).astype(jnp.uint32) for p in planes
    )
    return red | green << 8 | blue << 16 | mask.astype(jnp.uint32) << 24
