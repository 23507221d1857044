"""From pictures of a scene and of a person to what TAVR's layout reads of them.

The scene still is fitted to a bucket; the cells of the person in it are made mid grey,
and only patches that show background count. The person's clip is cropped around the
face, fitted to the same bucket and rounded to bfloat16; a window of it becomes one
reference segment, whose patches on the face count. Detectors are the caller's
(`media.detectors`, `media.pose`); so are files and speech features.
"""

import dataclasses
import itertools
from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from avatar_jax.media import detectors, face_points, fitting, person_boxes, pose
from avatar_jax.models.codec import LatentCodec
from avatar_jax.sampling import tavr
from avatar_jax.types import FRAMES_PER_LATENT, InputError, Reference

_LOOKAHEAD = 200  # frames that are read of the person's clip past the speech's length
_LEAST_READ = 100  # frames
_CROPPED = 500  # frames that are left of a clip once it is cropped
_CROPPED_STEP = 5  # of those that a crop is chosen by


@dataclasses.dataclass(frozen=True)
class Scene:
    """A scene still in latents: a batch of one."""

    still: Float[Array, "1 1 H W C"]
    valid: Bool[np.ndarray, "1 h w"]  # patches that show background


def prepare_scene(
    still: UInt8[np.ndarray, "Y X 3"],
    *,
    bucket: fitting.Size,
    people: pose.PersonDetector,
    codec: LatentCodec,
) -> Scene:
    """Fit a still to the bucket, find its person, blank and encode it.

    Where nobody is found, all of it is taken for the person, as TAVR does.
    """
    fitted = fitting.fit_still(still, bucket)
    pixels = to_signed(fitted)
    boxes, _ = pose.find_people((pixels[None] + np.float32(1)) / np.float32(2), people)
    return encode_scene(fitted, boxes[0], codec=codec)


def encode_scene(
    still: UInt8[np.ndarray, "Y X 3"],
    person: Int[np.ndarray, " 4"],
    *,
    codec: LatentCodec,
) -> Scene:
    """Make the cells of a person grey in a still of the bucket's size, and encode it.

    Args:
      person: left, top, right, bottom, pixels; cells are those it touches.
    """
    cells = person_boxes.foreground_cells(person, *still.shape[:2])
    side = person_boxes.CELL
    background = 1 - cells.repeat(side, axis=0).repeat(side, axis=1)
    blank = to_signed(still) * background[..., None]
    patch = face_points.PATCH // side
    return Scene(
        still=codec.encode(jnp.asarray(blank)[None, None]),
        valid=tavr.background_patches(cells[None], patch),
    )


def to_signed(still: UInt8[np.ndarray, "Y X 3"]) -> Float[np.ndarray, "Y X 3"]:
    """Return a still in [-1, 1], float32."""
    return still.astype(np.float32) / np.float32(127.5) - np.float32(1)


def choose_crop(
    frames: Iterable[UInt8[np.ndarray, "Y X 3"]],
    *,
    bucket: fitting.Size,
    detector: detectors.PointDetector,
) -> tuple[int, int, int, int] | None:
    """Choose the crop of a clip around its face: left, top, right, bottom.

    Every fifth of the first 500 frames is looked at. None: keep the whole picture.

    Raises:
      InputError: fewer than half of those frames show a face.
    """
    looked = list(itertools.islice(frames, 0, _CROPPED, _CROPPED_STEP))
    if not looked:
        raise InputError("expected a reference video, came one without frames.")
    points = detector(np.stack(looked).astype(np.float32) / np.float32(255))
    size = looked[0].shape[:2]
    face = face_points.union_of_faces(points, *size)
    if face is None:
        raise InputError(
            "expected a reference whose face shows in half of the frames or more, came "
            f"{len(looked)} frames with fewer; show the face from the front."
        )
    return face_points.choose_crop(face, size, bucket)


def choose_window(
    clip_frames: int,
    *,
    num_frames: int,
    num_chunks: int,
    latents: int,
    cropped: bool = False,
) -> slice:
    """Choose the latents of the person's clip that all chunks read.

    Args:
      clip_frames: 25 fps frames of the clip.
      num_frames: of the video that is to be made, in `num_chunks` chunks.
      latents: of the window; a shorter clip is refused.
      cropped: `choose_crop` gave a box; TAVR then forgets what comes after 20 s.

    Raises:
      InputError: too short a clip.
    """
    read = min(clip_frames, count_read(num_frames, cropped=cropped))
    if read // FRAMES_PER_LATENT < latents:
        raise InputError(
            f"expected a reference of {latents * FRAMES_PER_LATENT} frames or more "
            f"(25 fps), came {clip_frames}; give a longer video."
        )
    return tavr.reference_window(read // FRAMES_PER_LATENT, num_chunks, latents)


def count_read(num_frames: int, *, cropped: bool) -> int:
    """Count the frames of a clip that are read at most; see `choose_window`."""
    read = max(num_frames + _LOOKAHEAD, _LEAST_READ)
    return min(read, _CROPPED) if cropped else read


def prepare_reference(
    frames: UInt8[np.ndarray, "frames Y X 3"],
    *,
    window: slice,
    bucket: fitting.Size,
    detector: detectors.PointDetector,
    codec: LatentCodec,
    speech: Float[np.ndarray, "rows Dr"] | None = None,
) -> Reference:
    """Fit and encode the window of a clip, and say which of its patches show the face.

    Args:
      frames: of the cropped clip at 25 fps, from its start to the window's end or
        beyond: latents see the frames before them.
      window: latents (`choose_window`).
      speech: the clip's own, of the frames from its start on
        (`speech_features.reference_track`, whose rows run three frames early).

    Raises:
      InputError: too few frames, or none in the window that shows the face.
    """
    start, stop = (FRAMES_PER_LATENT * edge for edge in (window.start, window.stop))
    if len(frames) < stop:
        raise InputError(
            f"expected a reference of {stop} frames or more (25 fps), came "
            f"{len(frames)}; give a longer video."
        )
    unit = fitting.to_unit(fitting.fit_frames(frames[:stop], bucket))
    boxes, found = face_points.face_boxes(detector(unit), *bucket)
    if not found[start:].any():
        raise InputError(
            f"expected a face in frames {start} to {stop - 1} of the reference (25 "
            "fps), none was found; show it from the front."
        )
    latents = codec.encode_clips(jnp.asarray(fitting.to_signed(unit))[None])
    return tavr.make_reference(
        latents[:, window],
        jnp.asarray(face_points.mark_patches(boxes[start:], *bucket))[None],
        None if speech is None else jnp.asarray(speech[start:stop])[None],
    )
