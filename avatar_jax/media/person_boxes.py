"""Which box of a picture is the person: TAVR's choice among detections.

A detector of people looks at frames in a letterbox of one size. Of its boxes the
largest is taken; in the first frame of a run one that is also near to the largest. The
box grows, and returns to the pixels of the frame. Edges are cut to whole pixels at
every step. Boxes are left, top, right, bottom in pixels.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from avatar_jax.media import resampling

LETTERBOX = (480, 640)  # height, width; turned for upright pictures
CELL = 8  # pixels of a latent row or column
_GROWTH = (0.2, 0.1)  # of width and height, at each end
_NEARNESS = 0.01  # loss of score per letterbox pixel of distance
_SNAP = 0.05  # of the side: an edge so near to the border moves onto it


@dataclasses.dataclass(frozen=True)
class Letterbox:
    """Where a picture lies in its letterbox: at `top` and `left`, `inner` in size."""

    height: int  # of the picture
    width: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the whole."""
        return LETTERBOX[::-1] if self.height > self.width else LETTERBOX

    @property
    def inner(self) -> tuple[int, int]:
        """Height and width of the picture in it."""
        rows, columns = self.size
        scale = min(rows / self.height, columns / self.width)
        return int(self.height * scale), int(self.width * scale)

    @property
    def top(self) -> int:
        return (self.size[0] - self.inner[0]) // 2

    @property
    def left(self) -> int:
        return (self.size[1] - self.inner[1]) // 2

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the picture for one of the letterbox, down and across."""
        return self.height / self.inner[0], self.width / self.inner[1]


def fit_letterbox(
    picture: Float32[np.ndarray, "Y X 3"],
) -> Float32[np.ndarray, "Y2 X2 3"]:
    """Return a picture in its letterbox, black around; values in [0, 1]."""
    box = Letterbox(*picture.shape[:2])
    whole = np.zeros((*box.size, 3), np.float32)
    rows, columns = box.inner
    inside = whole[box.top : box.top + rows, box.left : box.left + columns]
    inside[...] = resampling.resize_linear(picture, rows, columns)
    return whole


def choose_people(
    detections: Sequence[Float[np.ndarray, "_ 4"]], box: Letterbox
) -> tuple[Int[np.ndarray, "frames 4"], Bool[np.ndarray, " frames"]]:
    """Choose the person's box in each frame of a run, and say where there is one.

    Nobody in the first frame: the whole picture, for all frames.

    Args:
      detections: of each frame, boxes in pixels of the letterbox.
    """
    anchor = _largest(detections[0])
    if anchor is None or _areas(anchor[None])[0] <= 0:
        whole = np.array([0, 0, box.width, box.height])
        return np.tile(whole, (len(detections), 1)), np.ones(len(detections), bool)
    found = np.array([len(boxes) > 0 for boxes in detections])
    chosen = np.zeros((len(detections), 4), int)
    # The original's anchor has lost the margin that the boxes compared with still have.
    centre = _centres(anchor[None])[0] - np.array([box.left, box.top])
    chosen[0] = _grow(_nearest(detections[0], centre), box)
    for index in np.flatnonzero(found[1:]) + 1:
        chosen[index] = _grow(_largest(detections[index]), box)
    return chosen, found


def foreground_cells(
    person: Int[np.ndarray, " 4"], height: int, width: int
) -> Float32[np.ndarray, "H W"]:
    """Say which latent cells of a picture show the person: 1 there, 0 elsewhere.

    A remainder of the picture that makes no whole cell is left out.
    """
    spans = []
    for low, high, side in zip(person[:2], person[2:], (width, height), strict=True):
        low, high, near = max(0, low), min(side - 1, high), int(side * _SNAP)
        low = 0 if low < near else low
        high = side if high > side - near else high
        starts = CELL * np.arange(side // CELL)
        spans.append((starts < high) & (starts + CELL > low) & (low < high))
    across, down = spans
    return (down[:, None] & across).astype(np.float32)


def _grow(box: Float[np.ndarray, " 4"], letterbox: Letterbox) -> Int[np.ndarray, " 4"]:
    """Grow a detection and return it to the pixels of the picture."""
    margins = (letterbox.left, letterbox.top)
    sides = letterbox.width, letterbox.height
    edges = np.zeros((2, 2), int)
    for axis, scale in enumerate(letterbox.scale[::-1]):
        low, high = int(box[axis]), int(box[axis + 2])
        more = (high - low) * _GROWTH[axis]
        low, high = int(low - more) - margins[axis], int(high + more) - margins[axis]
        edges[:, axis] = max(0, int(low * scale)), min(sides[axis], int(high * scale))
    return edges.reshape(4)


def _largest(boxes: Float[np.ndarray, "people 4"]) -> Float[np.ndarray, " 4"] | None:
    return boxes[_areas(boxes).argmax()] if len(boxes) else None


def _nearest(
    boxes: Float[np.ndarray, "people 4"], centre: Float[np.ndarray, " 2"]
) -> Float[np.ndarray, " 4"]:
    distances = np.linalg.norm(_centres(boxes) - centre, axis=1)
    return boxes[(_areas(boxes) / (1 + _NEARNESS * distances)).argmax()]


def _areas(boxes: Float[np.ndarray, "people 4"]) -> Float[np.ndarray, " people"]:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _centres(boxes: Float[np.ndarray, "people 4"]) -> Float[np.ndarray, "people 2"]:
    return (boxes[:, :2] + boxes[:, 2:]) / 2
