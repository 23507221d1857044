"""From a video or picture file to square pictures of the model's size."""

import itertools
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from avatar_jax.media import decode, faces
from avatar_jax.types import InputError

Crop = Literal["face", "none"]

_WORKING_SIDE = 640  # pixels; larger pictures are shrunk as they are read
_CANDIDATES = 50  # frames looked at for the best still
_DARK = 0.45  # of the face's median brightness: the inside of a mouth
_PORTRAIT = np.array([0.2, 0.15, 0.8, 0.85])  # where a square portrait has its face


def read_portrait(
    path: Path, *, most: int, crop: Crop, size: int
) -> tuple[UInt8[np.ndarray, "frames Y X 3"], int]:
    """Read up to `most` frames as square pictures, and say which makes the best still.

    Args:
      crop: "face" cuts one square around the face from all frames, so that the head
        moves and the room rests, unless the file already has the model's size; "none"
        takes square pictures whole.
      size: pixels of the result's side.

    Raises:
      InputError: unreadable, not square where it has to be, or no face found.
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
        boxes = np.tile((_PORTRAIT * height).astype(np.float32), (len(frames), 1))
        found = np.ones(len(frames), bool)
        square = np.stack([_resize(frame, size, size) for frame in frames])
    else:
        boxes, found = faces.track_face(frames)
        if not found.any():
            raise InputError(
                f"expected a face, none was found in {path}; show it from the front, "
                "or give square pictures with --crop none."
            )
        # The same crop as that of the records that models learn from.
        box = faces.square_around(boxes, scale=faces.CROP_SCALE, within=(height, width))
        square = np.stack([faces.crop_square(frame, box, size) for frame in frames])
    return square, choose_still(frames, boxes, found)


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


def _rank(values: list[float]) -> Float[np.ndarray, " values"]:
    """Return each value's share of smaller values; equal values share a rank."""
    ordered = np.sort(values)
    return np.searchsorted(ordered, values) / len(ordered)


def _cut(
    grey: Float[np.ndarray, "Y X"], box: Float[np.ndarray, " 4"]
) -> Float[np.ndarray, "Y2 X2"]:
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
