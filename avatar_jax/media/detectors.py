"""Who finds faces and people: slots, and what fills them when nobody gives better.

Each is a callable on arrays. What is shipped here needs no download: the cascade of
OpenCV; YuNet (Wu, Peng and Yu 2023) by a weight file of the user's, through OpenCV. A
pose network (`pose.PoseDetector`) is surer than either, as TAVR uses one; the slots
take it as they take any other.
"""

import dataclasses
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from avatar_jax.media import face_shape, faces
from avatar_jax.types import InputError

_SEARCH_SIDE = 640  # pixels; larger pictures are searched reduced
_LEAST_SCORE = 0.6  # of a face of YuNet's
_OVERLAP = 0.3  # of boxes that are one face
_CANDIDATES = 5000  # that overlap is looked for among
_YUNET_COLUMNS = 15  # x, y, width, height, five points, score
_REACH = 1.0  # face sides that a face moves from frame to frame, at most
# A person around a face's square, in its sides: half the width, and above the square.
_BODY = np.array([1.5, 0.6])


@runtime_checkable
class FaceDetector(Protocol):
    """Find all faces of a frame."""

    def __call__(
        self, frame: UInt8[np.ndarray, "Y X 3"]
    ) -> Float32[np.ndarray, "faces 68 3"]:
        """Return x, y (pixels) and score of 300-W points, the largest face first."""


@runtime_checkable
class PointDetector(Protocol):
    """Find the points of one face through a clip."""

    def __call__(
        self, frames: Float32[np.ndarray, "frames Y X 3"]
    ) -> Float32[np.ndarray, "frames 68 3"]:
        """Return x, y (pixels) and score; zeros in frames without the face.

        Frames are RGB in [0, 1].
        """


@dataclasses.dataclass(frozen=True)
class Cascade:
    """Faces by OpenCV's cascade: a box each, into which the usual face is laid."""

    def __call__(
        self, frame: UInt8[np.ndarray, "Y X 3"]
    ) -> Float32[np.ndarray, "faces 68 3"]:
        return face_shape.lay_into_squares(faces.detect_faces(frame))


@dataclasses.dataclass(frozen=True)
class YuNet:
    """Faces by YuNet: five points each, through which the usual face is laid.

    Attributes:
      network: what `cv2.FaceDetectorYN.create` returns, or its like.
    """

    network: Any

    def __call__(
        self, frame: UInt8[np.ndarray, "Y X 3"]
    ) -> Float32[np.ndarray, "faces 68 3"]:
        scale = min(1.0, _SEARCH_SIDE / max(frame.shape[:2]))
        height, width = (max(1, round(side * scale)) for side in frame.shape[:2])
        frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
        self.network.setInputSize((width, height))
        _, rows = self.network.detect(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        rows = np.zeros((0, _YUNET_COLUMNS), np.float32) if rows is None else rows
        rows = rows[np.argsort(-rows[:, 2] * rows[:, 3], kind="stable")]
        points = rows[:, 4:14].reshape(-1, face_shape.FIVE, 2)
        return face_shape.lay_through_points(points / scale)


def load_yunet(path: Path) -> YuNet:
    """Load YuNet from its ONNX file.

    Raises:
      InputError: no such file, not ONNX, or another network.
    """
    if not path.is_file():
        raise InputError(f"expected the weights of YuNet, {path} does not exist.")
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        network = cv2.FaceDetectorYN.create(
            str(path), "", (64, 64), _LEAST_SCORE, _OVERLAP, _CANDIDATES
        )
        network.detect(np.zeros((64, 64, 3), np.uint8))  # other networks fail only here
    except cv2.error as error:
        reason = " ".join(str(error.err or error).split())
        raise InputError(
            f"expected the weights of YuNet (face_detection_yunet_*.onnx), {path} is "
            f"something else ({reason}); leave the detector out to use OpenCV's own."
        ) from error
    finally:
        cv2.utils.logging.setLogLevel(level)
    return YuNet(network)


@dataclasses.dataclass(frozen=True)
class Squares:
    """Boxes of faces as the cascade draws them, by any detector: a `faces.Detect`."""

    detector: FaceDetector

    def __call__(
        self, frame: UInt8[np.ndarray, "Y X 3"]
    ) -> Float32[np.ndarray, "faces 4"]:
        return face_shape.squares_around(self.detector(frame))


@dataclasses.dataclass(frozen=True)
class FollowedFace:
    """One face through a clip: the largest at first, then always the nearest."""

    detector: FaceDetector

    def __call__(
        self, frames: Float32[np.ndarray, "frames Y X 3"]
    ) -> Float32[np.ndarray, "frames 68 3"]:
        points = np.zeros((len(frames), 68, 3), np.float32)
        known, last = None, 0
        for index, frame in enumerate(frames):
            found = self.detector(to_bytes(frame))
            squares = face_shape.squares_around(found)
            nearest = _choose_nearest(squares, known, frames=index - last)
            if nearest is not None:
                points[index] = found[nearest]
                known, last = squares[nearest], index
        return points


@dataclasses.dataclass(frozen=True)
class CascadeTrack:
    """One face through a clip by OpenCV's cascade, smoothed (`faces.track_face`)."""

    def __call__(
        self, frames: Float32[np.ndarray, "frames Y X 3"]
    ) -> Float32[np.ndarray, "frames 68 3"]:
        boxes, found = faces.track_face(to_bytes(frame) for frame in frames)
        return face_shape.lay_into_squares(boxes) * found[:, None, None]


@dataclasses.dataclass(frozen=True)
class PeopleOfFaces:
    """People by their faces: a `pose.PersonDetector`.

    Choice: a person is three faces wide and reaches to the lower edge, hands beside the
    body are left out; a detector of people knows better.
    """

    detector: FaceDetector

    def __call__(
        self, pictures: Float32[np.ndarray, "frames Y X 3"]
    ) -> list[Float[np.ndarray, "_ 4"]]:
        return [self._find(to_bytes(picture)) for picture in pictures]

    def _find(
        self, picture: UInt8[np.ndarray, "Y X 3"]
    ) -> Float32[np.ndarray, "faces 4"]:
        height, width = picture.shape[:2]
        squares = face_shape.squares_around(self.detector(picture))
        side = squares[:, 2] - squares[:, 0]
        middle = (squares[:, 0] + squares[:, 2]) / 2
        edges = [
            middle - _BODY[0] * side,
            squares[:, 1] - _BODY[1] * side,
            middle + _BODY[0] * side,
            np.full_like(side, height),
        ]
        boxes = np.clip(np.stack(edges, axis=1), 0, [width, height, width, height])
        return boxes.astype(np.float32)


def _choose_nearest(
    squares: Float32[np.ndarray, "faces 4"],
    known: Float32[np.ndarray, " 4"] | None,
    *,
    frames: int,
) -> int | None:
    """Choose the face that a known one has become after some frames, if any has."""
    if not len(squares):
        return None
    if known is None:
        return 0
    moved = (squares[:, :2] + squares[:, 2:] - known[:2] - known[2:]) / 2
    distances = np.linalg.norm(moved, axis=1)
    nearest = int(distances.argmin())
    near = distances[nearest] <= _REACH * (known[2] - known[0]) * frames
    return nearest if near else None


def to_bytes(frame: Float32[np.ndarray, "Y X 3"]) -> UInt8[np.ndarray, "Y X 3"]:
    """Turn a frame in [0, 1] into 8-bit pixels, rounded."""
    return np.rint(np.clip(frame, 0, 1) * 255).astype(np.uint8)
