"""From a video or picture file to square pictures of the model's size."""

import dataclasses
import itertools
from pathlib import Path
from typing import Literal

import cv2
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Shaped, UInt8

from avatar_jax.media import decode, faces
from avatar_jax.types import InputError

Crop = Literal["face", "none"]

_WORKING_SIDE = 640  # pixels; larger pictures are shrunk as they are read
_CANDIDATES = 50  # frames looked at for the best still
_LOOKS = 8  # frames looked at for a second person
_COMPARABLE = 0.5  # of the largest face's side: a second person, not a picture behind
_DARK = 0.45  # of the face's median brightness: the inside of a mouth
_PORTRAIT = np.array([0.2, 0.15, 0.8, 0.85])  # where a square portrait has its face


@dataclasses.dataclass(frozen=True)
class Portrait:
    """A file's pictures as the model sees them, and the face in them."""

    frames: UInt8[np.ndarray, "frames size size 3"]
    boxes: Float[np.ndarray, "frames 4"]  # of the face, pixels of these frames
    found: Bool[np.ndarray, " frames"]  # else the box is interpolated
    best: int  # frame that makes the best still


def read_portrait(
    path: Path,
    *,
    most: int,
    crop: Crop,
    size: int,
    detect: faces.Detect | None = None,
) -> Portrait:
    """Read up to `most` frames as square pictures of `size` pixels, with their faces.

    Args:
      crop: "face" cuts one square around the face from all frames, so that the head
        moves and the room rests, unless the file already has the model's size; "none"
        takes square pictures whole. Of pictures that are taken whole the face is
        believed to be where portraits have it.
      detect: finds faces; None: OpenCV's cascade.

    Raises:
      InputError: unreadable, not square where it has to be, no face or several.
    """
    decoded = itertools.islice(decode.iter_frames(path), most)
    frames = np.stack([_limit_side(frame) for frame in decoded])
    height, width = frames.shape[1:3]
    if crop == "none" or (height, width) == (size, size):
        if height != width:
            raise InputError(
                f"expected a square picture, {path} is {width}x{height}; crop it, or "
                "use --crop face."
            )
        boxes, found = portrait_boxes(len(frames), height)
        cut = np.array([0, 0, width, height], np.float32)
    else:
        boxes, found = _track_person(frames, path, detect)
        # The same crop as that of the records that models learn from.
        cut = faces.square_around(boxes, scale=faces.CROP_SCALE, within=(height, width))
    return Portrait(
        frames=np.stack([faces.crop_square(frame, cut, size) for frame in frames]),
        boxes=faces.boxes_in_crop(boxes, cut, size),
        found=found,
        best=choose_still(frames, boxes, found),
    )


def portrait_boxes(
    count: int, size: int
) -> tuple[Float32[np.ndarray, "count 4"], Bool[np.ndarray, " count"]]:
    """Return boxes of the face of square portraits of `size` pixels, all found."""
    boxes = np.tile((_PORTRAIT * size).astype(np.float32), (count, 1))
    return boxes, np.ones(count, bool)


def blank_person(
    picture: UInt8[np.ndarray, "Y X 3"], face: Float[np.ndarray, " 4"], *, cell: int
) -> tuple[UInt8[np.ndarray, "Y X 3"], Bool[np.ndarray, "h w"]]:
    """Make the person of a picture grey; say which cells still show something.

    Args:
      face: box of the person's face, pixels.
      cell: pixels, side of the patches that are asked about.
    """
    height, width = picture.shape[:2]
    box = faces.person_box(face[None], height, width)
    rows, columns = np.arange(0, height, cell), np.arange(0, width, cell)
    down = (rows >= box[1]) & (rows + cell <= box[3])
    across = (columns >= box[0]) & (columns + cell <= box[2])
    return faces.blank_box(picture, box), ~(down[:, None] & across)


def choose_still(
    frames: UInt8[np.ndarray, "frames Y X 3"],
    boxes: Float[np.ndarray, "frames 4"],
    found: Bool[np.ndarray, " frames"],
) -> int:
    """Return the index of the crispest face whose mouth is closed.

    Only frames in which the detector of frontal faces found one are candidates.
    """
    candidates = np.flatnonzero(found)
    candidates = candidates[:: -(-len(candidates) // _CANDIDATES)]
    mouths = faces.mouth_boxes(boxes)
    crisp, closed = [], []
    for index in candidates:
        grey = cv2.cvtColor(frames[index], cv2.COLOR_RGB2GRAY).astype(np.float32)
        face = _cut(grey, boxes[index])
        crisp.append(float(cv2.Laplacian(face, cv2.CV_32F).var()))
        dark = _cut(grey, mouths[index]) < _DARK * np.median(face)
        closed.append(-float(dark.mean()))
    # Choice: ranks, since the two have no common unit; an open mouth disturbs more.
    return int(candidates[np.argmax(_rank(crisp) + 2 * _rank(closed))])


def mouth_brightness(
    frames: UInt8[np.ndarray, "frames Y X 3"], boxes: Float[np.ndarray, "frames 4"]
) -> Float[np.ndarray, " frames"]:
    """Return the mean luma of the mouth, which open mouths darken; boxes of faces."""
    greys = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames)
    mouths = faces.mouth_boxes(boxes)
    return np.array([_cut(g, m).mean() for g, m in zip(greys, mouths, strict=True)])


def to_video(
    frames: UInt8[np.ndarray, "frames Y X 3"],
) -> Float[Array, "1 frames Y X 3"]:
    """Return pictures as a codec takes them: a batch of one in [-1, 1]."""
    return jnp.asarray(frames, jnp.float32)[None] / 127.5 - 1


def _track_person(
    frames: UInt8[np.ndarray, "frames Y X 3"], path: Path, detect: faces.Detect | None
) -> tuple[Float32[np.ndarray, "frames 4"], Bool[np.ndarray, " frames"]]:
    """Follow the one face of a clip; InputError for none and for several."""
    boxes, found = faces.track_face(frames, detect=detect)
    if not found.any():
        raise InputError(
            f"expected a face, none was found in {path}; show it from the front, "
            "or give square pictures with --crop none."
        )
    looks = np.unique(np.linspace(0, len(frames) - 1, _LOOKS).round().astype(int))
    seen = [(detect or faces.detect_faces)(frames[index]) for index in looks]
    sides = [each[:, 2] - each[:, 0] for each in seen if len(each)]
    counts = [int((side >= _COMPARABLE * side.max()).sum()) for side in sides]
    several = [count for count in counts if count > 1]
    if several and 2 * len(several) >= len(counts):
        raise InputError(
            f"expected one person, {max(several)} faces were found in {path}; cut it "
            "to one of them, or give square pictures with --crop none."
        )
    return boxes, found


def _rank(values: list[float]) -> Float[np.ndarray, " values"]:
    """Return each value's share of smaller values; equal values share a rank."""
    ordered = np.sort(values)
    return np.searchsorted(ordered, values) / len(ordered)


def _cut(
    grey: Shaped[np.ndarray, "Y X"], box: Float[np.ndarray, " 4"]
) -> Shaped[np.ndarray, "Y2 X2"]:
    """Cut a box (xyxy, pixels), at least one pixel of it."""
    height, width = grey.shape
    left, top, right, bottom = np.round(box).astype(int)
    left, top = np.clip([left, top], 0, [width - 1, height - 1])
    return grey[top : max(bottom, top + 1), left : max(right, left + 1)]


def _limit_side(frame: UInt8[np.ndarray, "Y X 3"]) -> UInt8[np.ndarray, "Y2 X2 3"]:
    scale = min(1.0, _WORKING_SIDE / max(frame.shape[:2]))
    return _resize(frame, *(round(side * scale) for side in frame.shape[:2]))


def _resize(
    frame: UInt8[np.ndarray, "Y X 3"], height: int, width: int
) -> UInt8[np.ndarray, "Y2 X2 3"]:
    if frame.shape[:2] == (height, width):
        return frame
    smaller = height < frame.shape[0]
    way = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return cv2.resize(frame, (width, height), interpolation=way)
