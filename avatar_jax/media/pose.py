"""The work around a pose network that says where points are by two vectors each.

A person's box is grown to the network's aspect ratio and cut out; the network scores
every half row and half column for every point (SimCC, arXiv:2107.03332), and a point is
where both are highest. The network itself is the caller's: 133 points of
COCO-WholeBody, of which rows 23 to 90 are the face.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from avatar_jax.media import person_boxes, resampling

SIZE = (384, 288)  # height, width of a crop; pixels
FACE = slice(23, 91)  # rows of the 133 points
MEAN = np.array([123.675, 116.28, 103.53], np.float32)  # of RGB in 0 .. 255
STD = np.array([58.395, 57.12, 57.375], np.float32)
POINTS = 133

_GROWTH = 1.25
_BINS_PER_PIXEL = 2
_BATCH = 32  # frames; the first of each chooses the person, as in TAVR


@runtime_checkable
class PersonDetector(Protocol):
    """Find people."""

    def __call__(
        self, pictures: Float32[np.ndarray, "frames Y X 3"]
    ) -> Sequence[Float[np.ndarray, "_ 4"]]:
        """Return each picture's boxes of people: left, top, right, bottom in pixels.

        Pictures are RGB in [0, 1], in a letterbox of `person_boxes.LETTERBOX`.
        """


@runtime_checkable
class PoseNetwork(Protocol):
    """Score where points are."""

    def __call__(
        self, crops: Float32[np.ndarray, "people Y X 3"]
    ) -> tuple[
        Float32[np.ndarray, "people points columns"],
        Float32[np.ndarray, "people points rows"],
    ]:
        """Return scores over half columns and half rows of crops of `SIZE`.

        Crops are RGB less `MEAN`, over `STD`.
        """


@dataclasses.dataclass(frozen=True)
class PoseDetector:
    """Points of the face by a detector of people and a pose network."""

    people: PersonDetector
    network: PoseNetwork

    def __call__(
        self, frames: Float32[np.ndarray, "frames Y X 3"]
    ) -> Float32[np.ndarray, "frames 68 3"]:
        """Return x, y (pixels) and score; zeros in frames without a person.

        Frames are RGB in [0, 1].
        """
        parts = range(0, len(frames), _BATCH)
        found = [self._find(frames[start : start + _BATCH]) for start in parts]
        return np.concatenate(found)[:, FACE]

    def _find(
        self, frames: Float32[np.ndarray, "frames Y X 3"]
    ) -> Float32[np.ndarray, "frames 133 3"]:
        points = np.zeros((len(frames), POINTS, 3), np.float32)
        boxes, shown = find_people(frames, self.people)
        index = np.flatnonzero(shown)
        if len(index):
            windows = grow_boxes(boxes[index])
            crops = [
                cut_window(frames[i] * np.float32(255), window)
                for i, window in zip(index, windows, strict=True)
            ]
            crops = np.stack([resampling.resize_linear(crop, *SIZE) for crop in crops])
            columns, rows = self.network((crops - MEAN) / STD)
            for i, *scores in zip(index, columns, rows, windows, strict=True):
                points[i] = decode_points(*scores)
        return points


def find_people(
    frames: Float32[np.ndarray, "frames Y X 3"], detector: PersonDetector
) -> tuple[Int[np.ndarray, "frames 4"], Bool[np.ndarray, " frames"]]:
    """Find the person in frames of a run (`person_boxes.choose_people`)."""
    pictures = np.stack([person_boxes.fit_letterbox(frame) for frame in frames])
    box = person_boxes.Letterbox(*frames.shape[1:3])
    return person_boxes.choose_people(detector(pictures), box)


def grow_boxes(boxes: Int[np.ndarray, "people 4"]) -> Int[np.ndarray, "people 4"]:
    """Grow boxes to the windows that are cut out: left, top, width, height.

    Whole pixels, halves rounded to even; they may reach beyond the picture.
    """
    sides = _GROWTH * (boxes[:, 2:] - boxes[:, :2])
    aspect = SIZE[1] / SIZE[0]
    wide = sides[:, 0] > sides[:, 1] * aspect
    width = np.where(wide, sides[:, 0], sides[:, 1] * aspect)
    height = np.where(wide, sides[:, 0] / aspect, sides[:, 1])
    sides = np.stack([width, height], axis=1)
    corner = (boxes[:, :2] + boxes[:, 2:]) / 2 - sides / 2
    return np.rint(np.concatenate([corner, sides], axis=1)).astype(int)


def cut_window(
    frame: Float32[np.ndarray, "Y X 3"], window: Int[np.ndarray, " 4"]
) -> Float32[np.ndarray, "height width 3"]:
    """Cut a window out of a frame; zeros where it reaches beyond."""
    left, top, width, height = window
    rows, columns = top + np.arange(height), left + np.arange(width)
    inside = [
        (index >= 0) & (index < side)
        for index, side in zip((rows, columns), frame.shape, strict=False)
    ]
    cut = np.zeros((height, width, 3), frame.dtype)
    cut[np.ix_(*inside)] = frame[np.ix_(rows[inside[0]], columns[inside[1]])]
    return cut


def decode_points(
    columns: Float32[np.ndarray, "points columns"],
    rows: Float32[np.ndarray, "points rows"],
    window: Int[np.ndarray, " 4"],
) -> Float32[np.ndarray, "points 3"]:
    """Return where points are in the frame (x, y, pixels) and their score.

    A point is where its scores are highest, and scores the smaller of both. Points that
    score 0 or less are put one pixel of the crop before its corner.
    """
    score = np.minimum(columns.max(axis=1), rows.max(axis=1))
    found = []
    for start, side, scores in zip(
        window[:2], window[2:], (columns, rows), strict=True
    ):
        place = np.where(score > 0, scores.argmax(axis=1), -_BINS_PER_PIXEL)
        found.append(place / scores.shape[1] * side + start)
    return np.stack([*found, score], axis=1).astype(np.float32)
