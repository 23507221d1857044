"""What surrounds a pose network, with networks made up. ~1 s on 2 cores."""

import numpy as np

from avatar_jax.media import pose

PEOPLE = np.array([[40, 30, 60, 90], [0, 0, 90, 20]])


def test_windows_have_the_networks_shape_around_the_same_middle():
    windows = pose.grow_boxes(PEOPLE)
    middles = windows[:, :2] + windows[:, 2:] / 2
    np.testing.assert_allclose(middles, (PEOPLE[:, :2] + PEOPLE[:, 2:]) / 2, atol=1)
    np.testing.assert_allclose(windows[:, 2] / windows[:, 3], 0.75, atol=0.02)
    assert (windows[:, 2:] >= 1.2 * (PEOPLE[:, 2:] - PEOPLE[:, :2])).all()


def test_a_window_beyond_the_frame_is_black_there():
    frame = np.random.default_rng(0).uniform(1, 2, (10, 14, 3)).astype(np.float32)
    cut = pose.cut_window(frame, np.array([-3, 4, 20, 9]))
    expected = np.zeros((9, 20, 3))
    expected[:6, 3:17] = frame[4:]
    np.testing.assert_array_equal(cut, expected)
    assert not pose.cut_window(frame, np.array([50, 50, 4, 5])).any()


def test_points_return_to_where_they_are_in_the_frame():
    window = np.array([11, -7, 36, 48])
    columns, rows = np.zeros((2, 72), np.float32), np.zeros((2, 96), np.float32)
    columns[0, 36], rows[0, 24] = 0.9, 0.8
    columns[1, 10], rows[1, 10] = 0.5, -0.5
    rows[1] -= 1
    points = pose.decode_points(columns, rows, window)
    np.testing.assert_allclose(points[0], [11 + 18, -7 + 12, 0.8], rtol=1e-6)
    assert points[1, 2] < 0 and points[1, 0] < 11 and points[1, 1] < -7


def find_bright(picture: np.ndarray) -> np.ndarray:
    """Return a box of 60 pixels around what is bright; none in the dark."""
    places = np.argwhere(picture > 0.5)[:, ::-1]
    if not len(places):
        return np.zeros((0, 4))
    return np.concatenate([places.min(axis=0) - 60, places.max(axis=0) + 60.0])[None]


def test_a_bright_spot_is_found_by_a_network_that_seeks_brightness():
    """The whole way: letterbox, box, window, crop, network, back to the frame."""
    frames = np.zeros((3, 120, 200, 3), np.float32)
    spots = [(70, 60), (90, 50), None]
    for frame, spot in zip(frames, spots, strict=True):
        if spot:
            frame[spot[1] - 2 : spot[1] + 3, spot[0] - 2 : spot[0] + 3] = 1

    def people(pictures):
        return [find_bright(picture[..., 0]) for picture in pictures]

    def network(crops):
        assert crops.shape[1:] == (*pose.SIZE, 3)
        bright = (crops * pose.STD + pose.MEAN)[..., 0] / 255
        scores = bright.max(axis=1), bright.max(axis=2)
        return tuple(
            np.repeat(score, 2, axis=1)[:, None].repeat(pose.POINTS, axis=1)
            for score in scores
        )

    points = pose.PoseDetector(people, network)(frames)
    assert points.shape == (3, 68, 3) and not points[2].any()
    for found, spot in zip(points, spots[:2], strict=False):
        np.testing.assert_allclose(found[:, :2], np.tile(spot, (68, 1)), atol=3.5)
        np.testing.assert_allclose(found[:, 2], 1, atol=0.05)


def test_frames_of_nobody_have_no_points():
    def people(pictures):
        first = np.array([[0, 0, 640.0, 480]])
        return [first, *[np.zeros((0, 4))] * (len(pictures) - 1)]

    def network(crops):
        shape = len(crops), pose.POINTS
        return np.ones((*shape, 576), np.float32), np.ones((*shape, 768), np.float32)

    points = pose.PoseDetector(people, network)(np.ones((2, 60, 80, 3), np.float32))
    assert points[0, :, 2].all() and not points[1].any()
