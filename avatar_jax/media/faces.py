"""Find one face through a clip with OpenCV's own cascade, and crop around it.

Boxes are x0, y0, x1, y1 in pixels, squares from the eyebrows to just under the chin as
the cascade draws them. It ships with opencv-python-headless 4.x: nothing is downloaded.
"""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from scipy import ndimage

CROP_SCALE = 1.8  # side of a crop in sides of the face box; hair and shoulders show

CROP_FACES = (
    1.0  # face sides of a crop; Choice: at 64 px the spec's 1.5 magnifies nothing
)
GREY = 127  # of 255, a blanked person

_PERSON = np.array([0.18, 0.6])  # face sides of room beside and above a face
_MARGIN = 0.15  # face sides around a face that its reference rows show
_CANDIDATES = 50  # frames looked at for crops

_CASCADE = "haarcascade_frontalface_alt.xml"  # Choice: fewest false faces of four
_SEARCH_SIDE = 480  # pixels; larger pictures are searched reduced
_SMALLEST = 24  # pixels in the searched picture
_TRACKED_SIDE = 60  # pixels a known face is reduced to before it is looked for again
_WINDOW = 0.5  # face sides around a known face that are searched
_SIZES = (0.7, 1.4)  # of a known face that it may have in the next frame
_MEMORY = 25  # frames whose median gives the known size
_SMOOTHING = 2.0  # frames, standard deviation of the Gaussian over a track
# The mouth within a face box, as shares of its sides.
_MOUTH = np.array([0.26, 0.67, 0.74, 0.95], np.float32)

# An RGB frame (uint8, Y X 3) to its faces' boxes (float32, faces 4), the largest first.
Detect = Callable[[np.ndarray], np.ndarray]


def detect_faces(
    frame: UInt8[np.ndarray, "Y X 3"],
) -> Float32[np.ndarray, "faces 4"]:
    """Return the boxes of all frontal faces in an RGB frame, the largest first."""
    scale = min(1.0, _SEARCH_SIDE / max(frame.shape[:2]))
    return _detect(frame, scale, _SMALLEST, max(frame.shape[:2]))


def track_face(
    frames: Iterable[UInt8[np.ndarray, "Y X 3"]], *, detect: Detect | None = None
) -> tuple[Float32[np.ndarray, "frames 4"], Bool[np.ndarray, " frames"]]:
    """Follow the largest face of the first frames that show one.

    Returns smoothed boxes, interpolated where no face was found, and where one was;
    with no face at all the boxes are zeros.

    Args:
      detect: boxes as the cascade draws them; None: the cascade, first near the last
        place of the face.
    """
    boxes, sides, known = [], [], None
    for frame in frames:
        follows = known is not None and detect is None
        box = _follow(frame, known) if follows else None
        if box is None:
            box = _nearest((detect or detect_faces)(frame), known)
        boxes.append(np.full(4, np.nan, np.float32) if box is None else box)
        if box is not None:
            sides.append(box[2] - box[0])
            # The size known is the usual one, so that mistakes cannot shrink a track.
            centre, half = (box[:2] + box[2:]) / 2, np.median(sides[-_MEMORY:]) / 2
            known = np.concatenate([centre - half, centre + half]).astype(np.float32)
    boxes = np.stack(boxes)
    found = np.isfinite(boxes[:, 0])
    return (_smooth(boxes, found) if found.any() else np.zeros_like(boxes)), found


def square_around(
    boxes: Float[np.ndarray, "frames 4"],
    *,
    scale: float = CROP_SCALE,
    within: tuple[int, int] | None = None,
) -> Float32[np.ndarray, " 4"]:
    """Return one square box for a whole clip, so that the head can move inside it.

    Its side is `scale` times the median face; it grows where the head moves so far that
    a face would leave it. Given the (height, width) of the picture it is moved, and if
    need be made smaller, to lie `within`, as long as it still holds every face.
    """
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    needed = (high - low).max()
    side = max(needed, scale * np.median(boxes[:, 2] - boxes[:, 0]))
    if within is not None:
        side = max(needed, min(side, *within))
    centre = np.median((boxes[:, :2] + boxes[:, 2:]) / 2, axis=0)
    corner = np.clip(centre - side / 2, high - side, low)
    if within is not None:
        room = np.array(within[::-1]) - side  # negative: edges will be repeated
        corner = np.where(room < 0, corner, np.clip(corner, 0, np.maximum(room, 0)))
    return np.concatenate([corner, corner + side]).astype(np.float32)


def crop_square(
    frame: UInt8[np.ndarray, "Y X 3"], box: Float[np.ndarray, " 4"], size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """Cut a square box out of an RGB frame and resize it; edges repeat outside."""
    (x, y), side = _corner_and_side(box)
    height, width = frame.shape[:2]
    # Only what the box needs: pixels beyond the frame repeat its edge.
    rows = np.clip(np.arange(y, y + side), 0, height - 1)
    columns = np.clip(np.arange(x, x + side), 0, width - 1)
    cut = frame[rows[:, None], columns]
    method = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    return cv2.resize(cut, (size, size), interpolation=method)


def boxes_in_crop(
    boxes: Float[np.ndarray, "frames 4"], box: Float[np.ndarray, " 4"], size: int
) -> Float32[np.ndarray, "frames 4"]:
    """Move boxes of a frame into the pixels of `crop_square(frame, box, size)`."""
    corner, side = _corner_and_side(box)
    inside = (boxes - np.tile(corner, 2)) * (size / side)
    return np.clip(inside, 0, size).astype(np.float32)


def mouth_boxes(
    faces: Float[np.ndarray, "frames 4"],
) -> Float32[np.ndarray, "frames 4"]:
    """Return where the mouth is in each face box, with room for it to open."""
    sides = np.tile(faces[:, 2:] - faces[:, :2], 2)
    return (np.tile(faces[:, :2], 2) + _MOUTH * sides).astype(np.float32)


def person_box(
    faces: Float[np.ndarray, "frames 4"], height: int, width: int
) -> Float32[np.ndarray, " 4"]:
    """Return the part of a picture that shows a person: hair, head and chest.

    Around all face boxes it leaves room for hair above and beside, and goes down to the
    edge. Choice: TAVR grows the box of a person detector; boxes of faces come with
    OpenCV alone.
    """
    low, high = faces[:, :2].min(axis=0), faces[:, 2:].max(axis=0)
    side = np.median((faces[:, 2:] - faces[:, :2]).max(axis=1))
    x0, y0 = low - _PERSON * side
    x1 = high[0] + _PERSON[0] * side
    box = np.array([max(x0, 0), max(y0, 0), min(x1, width), height])
    return box.astype(np.float32)


def blank_box(
    frame: UInt8[np.ndarray, "Y X 3"], box: Float[np.ndarray, " 4"]
) -> UInt8[np.ndarray, "Y X 3"]:
    """Return the picture with a box of it grey: the zero of [-1, 1]."""
    x0, y0 = np.floor(box[:2]).astype(int)
    x1, y1 = np.ceil(box[2:]).astype(int)
    blank = frame.copy()
    blank[y0:y1, x0:x1] = GREY
    return blank


def token_boxes(
    faces: Float[np.ndarray, "frames 4"],
) -> Float32[np.ndarray, "frames 4"]:
    """Grow face boxes to what reference rows show: forehead, hair and a margin.

    TAVR raises the top by half a box and pads by 24 of 480 pixels on every side.
    """
    side = (faces[:, 2:] - faces[:, :2]).max(axis=1, keepdims=True)
    low = faces[:, :2] - side * np.array([_MARGIN, 0.5])
    return np.concatenate([low, faces[:, 2:] + _MARGIN * side], 1).astype(np.float32)


def face_crops(
    frames: UInt8[np.ndarray, "frames Y X 3"],
    boxes: Float[np.ndarray, "frames 4"],
    count: int,
    *,
    size: int,
    scale: float,
) -> UInt8[np.ndarray, "crops size size 3"]:
    """Cut out `count` sharp faces that look different from each other.

    Of the sharper half of up to 50 frames the sharpest comes first, then always the
    face farthest from those already chosen: other poses, an open mouth, other looks.
    Where there are fewer frames, faces repeat.
    """
    index = np.unique(np.linspace(0, len(frames) - 1, _CANDIDATES).round().astype(int))
    crops = np.stack([_crop_face(frames[i], boxes[i], scale, size) for i in index])
    thumbs = np.stack(
        [cv2.resize(c, (16, 16), interpolation=cv2.INTER_AREA) for c in crops]
    )
    thumbs = thumbs.reshape(len(crops), -1).astype(np.float32)
    sharp = np.array(
        [
            cv2.Laplacian(cv2.cvtColor(c, cv2.COLOR_RGB2GRAY), cv2.CV_32F).var()
            for c in crops
        ]
    )
    chosen = [int(sharp.argmax())]
    usable = sharp >= np.median(sharp)
    while len(chosen) < count:
        distance = np.linalg.norm(thumbs[:, None] - thumbs[None, chosen], axis=-1)
        chosen.append(
            int((distance.min(axis=1) + usable * 1e-3 - 1e9 * ~usable).argmax())
        )
    return crops[chosen]


def _crop_face(
    frame: UInt8[np.ndarray, "Y X 3"],
    face: Float[np.ndarray, " 4"],
    scale: float,
    size: int,
) -> UInt8[np.ndarray, "size size 3"]:
    centre, half = (face[:2] + face[2:]) / 2, scale * (face[2:] - face[:2]).max() / 2
    return crop_square(frame, np.concatenate([centre - half, centre + half]), size)


def _corner_and_side(box: Float[np.ndarray, " 4"]):
    side = max(1, round(float(box[2] - box[0])))
    return np.round(box[:2]).astype(int), side


def _follow(frame: UInt8[np.ndarray, "Y X 3"], known: Float32[np.ndarray, " 4"]):
    """Look for a known face near its last place, at a fixed small size: fast."""
    side = known[2] - known[0]
    height, width = frame.shape[:2]
    x0, y0 = np.maximum(known[:2] - _WINDOW * side, 0).astype(int)
    x1, y1 = (known[2:] + _WINDOW * side).astype(int)
    window = frame[y0 : min(y1, height), x0 : min(x1, width)]
    found = _detect(window, _TRACKED_SIDE / side, *(s * side for s in _SIZES))
    return _nearest(found + np.array([x0, y0, x0, y0], np.float32), known)


def _nearest(found: Float32[np.ndarray, "faces 4"], known):
    """Pick the face nearest to the known one, the largest where none is known yet."""
    if not len(found):
        return None
    if known is None:
        return found[0]
    side = known[2] - known[0]
    ratio = (found[:, 2] - found[:, 0]) / side
    distance = np.abs(found - known).max(axis=1)
    # A face of another size, or further off than its size, is a mistake or another.
    distance[(ratio < _SIZES[0]) | (ratio > _SIZES[1]) | (distance > side)] = np.inf
    nearest = distance.argmin()
    return found[nearest] if np.isfinite(distance[nearest]) else None


def _detect(frame: UInt8[np.ndarray, "Y X 3"], scale, smallest, largest):
    """Run the cascade on a frame times `scale`; sizes limit faces in frame pixels."""
    grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    size = [max(1, round(side * scale)) for side in grey.shape[::-1]]
    grey = cv2.resize(grey, size, interpolation=method)
    smallest = max(_SMALLEST, round(smallest * scale))
    largest = max(smallest + 1, round(largest * scale))
    found = _cascade().detectMultiScale(
        grey, 1.1, 4, minSize=(smallest, smallest), maxSize=(largest, largest)
    )
    found = np.reshape(found, (-1, 4)).astype(np.float32) / scale
    found[:, 2:] += found[:, :2]
    return found[np.argsort(found[:, 0] - found[:, 2], kind="stable")]


def _smooth(boxes: Float32[np.ndarray, "frames 4"], found: Bool[np.ndarray, " frames"]):
    """Fill gaps in a line, drop single outliers by a median, then smooth."""
    index = np.arange(len(boxes))
    filled = [np.interp(index, index[found], column[found]) for column in boxes.T]
    steady = ndimage.median_filter(np.stack(filled, 1), (5, 1), mode="nearest")
    smooth = ndimage.gaussian_filter1d(steady, _SMOOTHING, axis=0, mode="nearest")
    return smooth.astype(np.float32)


@functools.cache
def _cascade() -> cv2.CascadeClassifier:
    path = Path(cv2.data.haarcascades) / _CASCADE
    if not path.is_file():
        raise FileNotFoundError(
            f"expected the face cascade {path}, but this OpenCV ({cv2.__version__}) "
            "carries none; install opencv-python-headless>=4.13,<5"
        )
    return cv2.CascadeClassifier(str(path))
