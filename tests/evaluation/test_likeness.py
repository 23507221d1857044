"""Drawn faces that are alike, or not, wherever in the picture they are; ~2 s."""

import cv2
import numpy as np
import pytest

from avatar_jax.evaluation.metrics import likeness

SKIN = (205, 160, 125)


def draw(
    *, skin=SKIN, eyes: float = 0.36, place=(24.0, 30.0), side: float = 36.0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw two frames of a face with eyes at a height of its box, and its boxes."""
    big = np.full((384, 384, 3), (90, 140, 160), np.uint8)
    (x, y), unit = 4 * np.array(place), 4 * side
    centre = (round(x + unit / 2), round(y + 0.45 * unit))
    cv2.ellipse(
        big, centre, (round(0.5 * unit), round(0.65 * unit)), 0, 0, 360, skin, -1
    )
    for across in (0.3, 0.7):
        eye = (round(x + across * unit), round(y + eyes * unit))
        cv2.circle(big, eye, round(0.08 * unit), (40, 30, 30), -1)
    small = cv2.resize(big, (96, 96), interpolation=cv2.INTER_AREA)
    box = np.array([*place, place[0] + side, place[1] + side], np.float32)
    return np.stack([small, small]), np.stack([box, box])


def apart(*people) -> float:
    one, other = (likeness.describe(*person)[None] for person in people)
    return float(likeness.distances(one, other)[0, 0])


def test_place_and_size_of_a_face_do_not_matter():
    moved = draw(place=(15.0, 22.0), side=48.0)
    others = draw(skin=(140, 95, 70)), draw(eyes=0.55)
    assert apart(draw(), moved) < 0.4 * min(apart(draw(), other) for other in others)


def test_colour_and_geometry_each_tell_people_apart():
    assert apart(draw(), draw()) == 0
    assert apart(draw(), draw(skin=(140, 95, 70))) > 0.5
    assert apart(draw(), draw(eyes=0.55)) > 0.5


def test_the_distance_is_that_of_the_equation():
    flat, box = np.full((1, 96, 96, 3), 120, np.uint8), draw()[1][:1]
    grey = likeness.describe(flat, box)
    light = likeness.describe(flat + np.uint8(40), box)
    to_lab = cv2.cvtColor(np.float32([[[120] * 3, [160] * 3]]) / 255, cv2.COLOR_RGB2LAB)
    step = to_lab[0, 1, 0] - to_lab[0, 0, 0]  # of L* alone: 1 number of 6
    expected = step / likeness.UNIT / np.sqrt(6)
    found = likeness.distances(grey[None], light[None])[0, 0]
    assert found == pytest.approx(expected, rel=1e-4)
