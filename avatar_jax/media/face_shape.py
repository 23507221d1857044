"""The usual face as 68 points, laid into faces of which less is known.

Validity and crops are read off 68 points (`face_points`), which pose networks give.
Detectors of faces give a box, or five points. Choice: the points are then those of an
upright frontal face of usual proportions,

  (1) p = corner + side (INSET + SHARE u)  for a square of the cascade (`faces`)
  (2) p = a u + b, complex a and b of least squares, for five points,

with u in the unit square: from one end of the jaw to the other, from the brows to the
chin. INSET and SHARE are read off faces of real people in the cascade's squares.
"""

import numpy as np
from jaxtyping import Float, Float32

FIVE = 5  # eyes, tip of the nose, corners of the mouth; the image's left ones first
INSET = np.array([0.1, 0.27])  # of the cascade's square, left of and above the points
SHARE = 0.8  # of its side


def lay_into_squares(
    squares: Float[np.ndarray, "faces 4"],
) -> Float32[np.ndarray, "faces 68 3"]:
    """Lay the usual face into squares of the cascade by eq. 1; all points score 1."""
    corners, sides = squares[:, None, :2], squares[:, 2:, None] - squares[:, :2, None]
    return _sure(corners + sides[:, :1] * (INSET + SHARE * usual_face()))


def lay_through_points(
    points: Float[np.ndarray, "faces 5 2"],
) -> Float32[np.ndarray, "faces 68 3"]:
    """Lay the usual face through five points each by eq. 2; all points score 1.

    Moved, turned and scaled, never bent: a face in profile is not made narrower.
    """
    usual = usual_face()
    eyes = usual[36:42].mean(axis=0), usual[42:48].mean(axis=0)
    known = np.stack([*eyes, usual[30], usual[48], usual[54]]) @ np.array([1, 1j])
    seen = points @ np.array([1, 1j])
    middle, centre = known.mean(), seen.mean(axis=1, keepdims=True)
    known = known - middle
    factor = (seen - centre) @ known.conj() / np.square(np.abs(known)).sum()
    placed = factor[:, None] * (usual @ np.array([1, 1j]) - middle) + centre
    return _sure(np.stack([placed.real, placed.imag], axis=-1))


def squares_around(
    points: Float32[np.ndarray, "faces 68 3"],
) -> Float32[np.ndarray, "faces 4"]:
    """Return the squares that the cascade would draw around faces: eq. 1 undone."""
    low, high = points[..., :2].min(axis=1), points[..., :2].max(axis=1)
    side = (high - low).max(axis=1, keepdims=True) / SHARE
    corner = (low + high) / 2 - side * (INSET + SHARE / 2)
    return np.concatenate([corner, corner + side], axis=1).astype(np.float32)


def usual_face() -> Float[np.ndarray, "68 2"]:
    """Return the usual face in the unit square."""
    angle = np.linspace(0, np.pi, 17)
    jaw = np.stack([0.5 - 0.5 * np.cos(angle), 0.16 + 0.84 * np.sin(angle) ** 0.9], 1)
    brow = np.array([[0.1, 0.06], [0.17, 0.02], [0.25, 0], [0.34, 0.01], [0.42, 0.04]])
    bridge = np.stack([np.full(4, 0.5), np.linspace(0.15, 0.38, 4)], 1)
    nostrils = np.array(
        [[0.4, 0.42], [0.45, 0.44], [0.5, 0.45], [0.55, 0.44], [0.6, 0.42]]
    )
    eye = np.array([0.28, 0.15]) + np.array(
        [
            [-0.09, 0],
            [-0.03, -0.03],
            [0.04, -0.03],
            [0.09, 0],
            [0.04, 0.03],
            [-0.03, 0.03],
        ]
    )
    other = _mirror(eye)[[3, 2, 1, 0, 5, 4]]
    lips = _ring(12, [0.5, 0.67], [0.19, 0.08])
    mouth = _ring(8, [0.5, 0.67], [0.15, 0.02])
    parts = jaw, brow, _mirror(brow)[::-1], bridge, nostrils, eye, other, lips, mouth
    return np.concatenate(parts)


def _mirror(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    return np.array([1, 0]) + np.array([-1, 1]) * points


def _ring(count: int, centre: list[float], radii: list[float]):
    """Return points of an ellipse from its left end on, over the top."""
    angle = 2 * np.pi * np.arange(count) / count
    return np.array(centre) - np.array(radii) * np.stack(
        [np.cos(angle), np.sin(angle)], 1
    )


def _sure(places: Float[np.ndarray, "faces 68 2"]) -> Float32[np.ndarray, "faces 68 3"]:
    scores = np.ones((*places.shape[:2], 1))
    return np.concatenate([places, scores], axis=2).astype(np.float32)
