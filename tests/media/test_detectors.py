"""Faces and people by what needs no download, and by what a user brings. ~5 s."""

import itertools

import cv2
import numpy as np
import pytest

from avatar_jax.media import decode, detectors, face_points, face_shape, faces, pose
from avatar_jax.types import InputError

SQUARES = np.array([[20, 30, 80, 90], [100.5, 10, 131, 40.5]])


def test_the_usual_face_fills_the_unit_square_and_is_symmetric():
    face = face_shape.usual_face()
    np.testing.assert_allclose(face.min(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(face.max(axis=0), 1, atol=1e-12)
    mirrored = np.array([1, 0]) + np.array([-1, 1]) * face
    pairs = np.linalg.norm(face[:, None] - mirrored[None], axis=-1)
    assert pairs.min(axis=1).max() < 1e-9
    jaw, brows, nose = face[:17], face[17:27], face[27:36]
    assert (np.diff(jaw[:, 0]) > 0).all() and (np.diff(brows[:, 0]) > 0).all()
    eyes, mouth = face[36:48, 1], face[48:, 1]
    assert brows[:, 1].max() < eyes.min() and eyes.max() < nose[-1, 1] < mouth.min()
    assert face[36:42, 0].max() < 0.5 < face[42:48, 0].min()


def test_a_square_returns_from_its_points():
    points = face_shape.lay_into_squares(SQUARES)
    np.testing.assert_allclose(face_shape.squares_around(points), SQUARES, atol=1e-3)
    assert (points[..., 2] == 1).all()
    none = face_shape.lay_into_squares(SQUARES[:0])
    assert none.shape == (0, 68, 3)


@pytest.mark.parametrize("turn", [0.0, 0.4, -2.0])
def test_five_points_place_turn_and_scale_the_face(turn):
    face = face_shape.usual_face() @ np.array([1, 1j])
    placed = 37.0 * np.exp(1j * turn) * face + (90 + 55j)
    five = [placed[36:42].mean(), placed[42:48].mean(), *placed[[30, 48, 54]]]
    five = np.stack([np.real(five), np.imag(five)], axis=-1)
    (points,) = face_shape.lay_through_points(five[None])
    expected = np.stack([placed.real, placed.imag], axis=-1)
    np.testing.assert_allclose(points[:, :2], expected, atol=1e-3)


class FakeNetwork:
    """Answers like `cv2.FaceDetectorYN` and remembers what it saw."""

    def __init__(self, rows: np.ndarray | None):
        self.rows, self.size, self.seen = rows, None, None

    def setInputSize(self, size):
        self.size = size

    def detect(self, picture):
        self.seen = picture
        return 1, self.rows


def yunet_row(box, face: np.ndarray) -> np.ndarray:
    """Make the row of YuNet for a face of 68 points."""
    eyes = face[36:42, :2].mean(axis=0), face[42:48, :2].mean(axis=0)
    five = np.stack([*eyes, face[30, :2], face[48, :2], face[54, :2]])
    left, top, right, bottom = box
    row = [left, top, right - left, bottom - top, *five.ravel(), 0.9]
    return np.array(row, np.float32)


def test_yunet_sees_blue_first_and_its_faces_come_largest_first():
    placed = face_shape.lay_into_squares(SQUARES[::-1])
    boxes = zip(SQUARES[::-1], placed, strict=True)
    network = FakeNetwork(np.stack([yunet_row(*pair) for pair in boxes]))
    frame = np.zeros((100, 140, 3), np.uint8)
    frame[..., 0] = 200
    came = detectors.YuNet(network)(frame)
    assert network.size == (140, 100) and (network.seen[..., 2] == 200).all()
    np.testing.assert_allclose(came, placed[::-1], atol=0.01)


def test_large_pictures_are_searched_reduced_and_points_return():
    network = FakeNetwork(
        yunet_row(SQUARES[0], face_shape.lay_into_squares(SQUARES)[0])
    )
    network.rows = network.rows[None]
    came = detectors.YuNet(network)(np.zeros((960, 1280, 3), np.uint8))
    assert network.seen.shape == (480, 640, 3)
    expected = face_shape.lay_into_squares(2 * SQUARES[:1])
    np.testing.assert_allclose(came, expected, atol=0.01)


def test_yunet_without_faces_has_no_points():
    came = detectors.YuNet(FakeNetwork(None))(np.zeros((50, 60, 3), np.uint8))
    assert came.shape == (0, 68, 3)


def identity_onnx() -> bytes:
    """Write an ONNX model by hand that returns what it is given."""

    def field(number: int, value: bytes | int) -> bytes:
        if isinstance(value, int):
            return bytes([number << 3, value])
        return bytes([number << 3 | 2, len(value)]) + value

    dims = field(2, field(1, field(1, 1)))
    tensor = field(1, field(1, 1) + dims)
    node = field(1, b"a") + field(2, b"b") + field(4, b"Identity")
    graph = field(1, node) + field(2, b"g")
    for number, name in ((11, b"a"), (12, b"b")):
        graph += field(number, field(1, name) + field(2, tensor))
    return field(1, 8) + field(7, graph) + field(8, field(2, 13))


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "does not exist"),
        (b"", "something else"),
        (b"no weights at all", "something else"),
        (identity_onnx(), "something else"),
    ],
    ids=["absent", "empty", "text", "another network"],
)
def test_what_is_not_yunet_is_refused_in_one_line(tmp_path, capfd, content, words):
    path = tmp_path / "yunet.onnx"
    if content is not None:
        path.write_bytes(content)
    level = cv2.utils.logging.getLogLevel()
    with pytest.raises(InputError, match=words) as caught:
        detectors.load_yunet(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert cv2.utils.logging.getLogLevel() == level
    assert not capfd.readouterr().err  # nor does OpenCV add lines of its own


def test_every_slot_is_filled():
    cascade = detectors.Cascade()
    assert isinstance(cascade, detectors.FaceDetector)
    assert isinstance(detectors.CascadeTrack(), detectors.PointDetector)
    assert isinstance(detectors.FollowedFace(cascade), detectors.PointDetector)
    assert isinstance(detectors.PeopleOfFaces(cascade), pose.PersonDetector)


def test_the_largest_face_is_followed_when_another_grows_larger():
    def detect(frame):
        step = int(frame[0, 0, 0])
        here = np.array([20.0 + 5 * step, 30, 60 + 5 * step, 70])
        other = np.array([200.0 - 10 * step, 20, 220 + 10 * step, 40 + 20 * step])
        if step == 2:
            return face_shape.lay_into_squares(other[None])  # hidden for a frame
        pair = np.stack([here, other])
        order = np.argsort(-(pair[:, 2] - pair[:, 0]))
        return face_shape.lay_into_squares(pair[order])

    frames = np.arange(6, dtype=np.float32)[:, None, None, None] / 255
    points = detectors.FollowedFace(detect)(np.tile(frames, (1, 90, 300, 3)))
    seen = points[:, 0, 2] > 0
    np.testing.assert_array_equal(seen, [True, True, False, True, True, True])
    squares = face_shape.squares_around(points[seen])
    np.testing.assert_allclose(squares[:, 0], [20, 25, 35, 40, 45], atol=0.01)


def test_a_person_reaches_from_above_the_face_to_the_lower_edge():
    people = detectors.PeopleOfFaces(lambda _: face_shape.lay_into_squares(SQUARES))
    (boxes,) = people(np.zeros((1, 120, 200, 3), np.float32))
    np.testing.assert_allclose(boxes[0], [0, 0, 140, 120])
    np.testing.assert_allclose(boxes[1], [70, 0, 161.5, 120], atol=0.01)
    none = detectors.PeopleOfFaces(lambda _: face_shape.lay_into_squares(SQUARES[:0]))
    assert none(np.zeros((1, 120, 200, 3), np.float32))[0].shape == (0, 4)


@pytest.mark.parametrize("name", ["p02_grid_1", "p07_halfbody_1", "p10_office_1"])
def test_real_faces_are_shown_by_the_patches_that_count(shared, name):
    frames = itertools.islice(decode.iter_frames(shared / "videos" / f"{name}.mp4"), 8)
    frames = np.stack(list(frames))
    height, width = frames.shape[1:3]
    points = detectors.CascadeTrack()(frames.astype(np.float32) / 255)
    boxes, found = face_points.face_boxes(points, height, width)
    squares, known = faces.track_face(frames)
    np.testing.assert_array_equal(found, known)
    middle = (squares[:, :2] + squares[:, 2:]) / 2
    assert (boxes[:, :2] < middle).all() and (middle < boxes[:, 2:]).all()
    shown = face_points.mark_patches(boxes, height, width)
    assert shown.shape[0] == 2 and 0.02 < shown.mean() < 0.6
