"""What 68 points of a face say: which patches show it, and how a clip is cropped.

The points are those of the 300-W layout: 0-16 jaw, 17-26 brows, 27-35 nose, 36-47 eyes,
48-67 mouth, each x, y in pixels and a score; what scores low is not there. Boxes are
left, top, right, bottom in pixels.
"""

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from avatar_jax.types import FRAMES_PER_LATENT

SEEN = 0.3  # score above which a point is there
PATCH = 16  # pixels of a side of the patch that is one row of the network

_LEAST_SHOWN = 2  # points of a face that has a box
_MARGIN = 24  # pixels around a face: three latent cells
_FOREHEAD = 0.5  # of the points' height, above them

_LEAST_CROPPED = 10  # points of a face that a crop is chosen by
_LIFTED = slice(17, 27)  # the brows, which stand for the hairline once they are lifted
_PROBES = [*range(17, 28), 33]  # needed for that: the brows and both ends of the nose
_LIFT = 1.2  # lengths of the nose
_ROOM = 1.0  # of a face's box, on each side
_LEAST_FRAMES = 0.5  # of those looked at that must show a face
_LEAST_SIDE = 0.3  # of the picture's
_LARGEST = 0.95  # of the picture's area; a crop of more is not worth it


def face_boxes(
    points: Float32[np.ndarray, "frames 68 3"], height: int, width: int
) -> tuple[Int[np.ndarray, "frames 4"], Bool[np.ndarray, " frames"]]:
    """Return the box of the face with its forehead, and where there is one.

    Whole pixels within the picture, halves rounded to even; zeros without a face.
    """
    boxes = np.zeros((len(points), 4), int)
    for box, face in zip(boxes, points, strict=True):
        seen = face[face[:, 2] > SEEN, :2].astype(np.float64)
        if len(seen) < _LEAST_SHOWN:
            continue
        (left, top), (right, bottom) = seen.min(axis=0), seen.max(axis=0)
        top -= _FOREHEAD * (bottom - top)
        edges = np.rint([left, top, right, bottom]).astype(int)
        edges += np.array([-_MARGIN, -_MARGIN, _MARGIN, _MARGIN])
        box[:] = np.clip(edges, 0, [width, height, width, height])
    found = (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
    return boxes * found[:, None], found


def mark_patches(
    boxes: Int[np.ndarray, "frames 4"],
    height: int,
    width: int,
    *,
    patch: int = PATCH,
) -> Bool[np.ndarray, "latents h w"]:
    """Say which patches a box touches in any of the four frames of a latent.

    Frames and pixels that make no whole latent or patch are left out; an empty box
    touches nothing.
    """
    whole = boxes[: len(boxes) // FRAMES_PER_LATENT * FRAMES_PER_LATENT]
    left, top, right, bottom = whole.T[..., None]
    down, across = (patch * np.arange(side // patch) for side in (height, width))
    rows = (top < down + patch) & (bottom > down) & (top < bottom)
    columns = (left < across + patch) & (right > across) & (left < right)
    touched = rows[:, :, None] & columns[:, None, :]
    return touched.reshape(-1, FRAMES_PER_LATENT, *touched.shape[1:]).any(axis=1)


def lift_brows(
    face: Float32[np.ndarray, "68 3"],
) -> Float32[np.ndarray, "68 2"]:
    """Move the brows up to the hairline, where brows and nose are sure."""
    lifted = face[:, :2].copy()
    if (face[_PROBES, 2] >= np.float32(SEEN)).all():
        lifted[_LIFTED] += (face[27, :2] - face[33, :2]) * np.float32(_LIFT)
    return lifted


def union_of_faces(
    points: Float32[np.ndarray, "frames 68 3"], height: int, width: int
) -> Float[np.ndarray, " 4"] | None:
    """Return the box that holds the face of all frames, with room around it.

    None where fewer than half of the frames show enough of a face.
    """
    boxes = []
    for face in points:
        seen = lift_brows(face)[face[:, 2] > SEEN].astype(np.float64)
        if len(seen) >= _LEAST_CROPPED:
            low, high = seen.min(axis=0), seen.max(axis=0)
            room = _ROOM * (high - low)
            boxes.append([*(low - room), *(high + room)])
    if not boxes or len(boxes) < _LEAST_FRAMES * len(points):
        return None
    boxes = np.clip(boxes, 0, [width, height, width, height])
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])


def choose_crop(
    face: Float[np.ndarray, " 4"],
    size: tuple[int, int],
    bucket: tuple[int, int],
) -> tuple[int, int, int, int] | None:
    """Return the box of the bucket's aspect ratio that a clip is cropped to.

    It holds the face where the picture has room for that; edges are even. None where it
    would be nearly the whole picture.

    Args:
      face: `union_of_faces`.
      size: height and width of the picture; those of the bucket.
    """
    height, width = size
    aspect = bucket[1] / bucket[0]
    columns = max(face[2] - face[0], (face[3] - face[1]) * aspect)
    rows = columns / aspect
    growth = max(1.0, _LEAST_SIDE / min(columns / width, rows / height))
    columns, rows = columns * growth, rows * growth
    if columns > width:
        columns, rows = float(width), width / aspect
    if rows > height:
        columns, rows = height * aspect, float(height)
    if aspect > 1:  # the longer side follows from whole pixels of the shorter one
        rows = _even(rows)
        columns = _even(rows * aspect)
    else:
        columns = _even(columns)
        rows = _even(columns / aspect)
    if rows * columns > _LARGEST * height * width:
        return None
    middle = (face[:2] + face[2:]) / 2
    left = _even(np.clip(middle[0] - columns / 2, 0, width - columns))
    top = _even(np.clip(middle[1] - rows / 2, 0, height - rows))
    return left, top, left + columns, top + rows


def _even(value: float) -> int:
    return int(value) // 2 * 2
