"""The person among detections, and the cells they cover. ~1 s on 2 cores."""

import numpy as np
import pytest

from avatar_jax.media import person_boxes

NOBODY = np.zeros((0, 4), np.float32)
BOX = person_boxes.Letterbox(300, 500)


def to_letterbox(box, letterbox=BOX):
    """Put a box in pixels of the picture into its letterbox."""
    down, across = letterbox.scale
    scale = np.array([across, down, across, down])
    shift = np.array([letterbox.left, letterbox.top] * 2)
    return np.asarray(box) / scale + shift


def choose(*frames):
    arrays = [np.array(boxes, np.float32).reshape(-1, 4) for boxes in frames]
    return person_boxes.choose_people(arrays, BOX)


@pytest.mark.parametrize("size", [(300, 500), (500, 300), (77, 77), (480, 640)])
def test_a_letterbox_holds_the_whole_picture_in_its_middle(size):
    picture = np.full((*size, 3), 0.5, np.float32)
    box, whole = person_boxes.Letterbox(*size), person_boxes.fit_letterbox(picture)
    assert whole.shape[:2] == box.size
    inside = np.zeros(box.size, bool)
    rows, columns = box.inner
    inside[box.top : box.top + rows, box.left : box.left + columns] = True
    np.testing.assert_allclose(whole[inside], 0.5, rtol=1e-6)
    assert not whole[~inside].any()
    assert max(np.array(box.size) - box.inner - 2 * np.array([box.top, box.left])) <= 1


def test_the_box_grows_by_a_tenth_of_its_height_and_a_fifth_of_its_width():
    boxes, found = choose([to_letterbox([200, 100, 300, 200])])
    np.testing.assert_allclose(boxes[0], [180, 90, 320, 210], atol=3)
    assert found.all()


def test_the_largest_person_is_followed_and_absence_is_told():
    small, large = to_letterbox([10, 10, 50, 60]), to_letterbox([200, 50, 400, 250])
    boxes, found = choose([large], [], [small, large], [small])
    np.testing.assert_array_equal(found, [True, False, True, True])
    np.testing.assert_array_equal(boxes[0], boxes[2])
    assert boxes[3, 2] < boxes[2, 0] and not boxes[1].any()


def test_nobody_in_the_first_frame_is_the_whole_picture_throughout():
    boxes, found = choose([], [to_letterbox([10, 10, 50, 60])])
    np.testing.assert_array_equal(boxes, [[0, 0, 500, 300]] * 2)
    assert found.all()


def test_no_box_leaves_the_picture():
    rng = np.random.default_rng(0)
    for _ in range(30):
        corner, side = rng.uniform(-20, 600, 2), rng.uniform(1, 500, 2)
        ((left, top, right, bottom),), _ = choose([[*corner, *(corner + side)]])
        assert left >= 0 and top >= 0 and right <= 500 and bottom <= 300


def test_every_cell_that_a_person_touches_is_foreground():
    cells = person_boxes.foreground_cells(np.array([17, 33, 66, 41]), 96, 128)
    expected = np.zeros((12, 16))
    expected[4:6, 2:9] = 1
    np.testing.assert_array_equal(cells, expected)


def test_edges_near_the_border_move_onto_it():
    near = person_boxes.foreground_cells(np.array([10, 30, 150, 195]), 200, 300)
    assert near[-1].any() and near[:, 0].any() and not near[:, -1].any()
    assert not person_boxes.foreground_cells(np.array([60, 30, 60, 90]), 96, 128).any()
