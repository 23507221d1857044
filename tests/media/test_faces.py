"""Faces: tracks, crops and mouth boxes on drawn and real people. ~8 s on 2 cores."""

import itertools

import numpy as np
import pytest

from avatar_jax.data.talking_heads import clips, people
from avatar_jax.media import decode, faces


@pytest.fixture(scope="module")
def drawn():
    """Film the first person whom the cascade, made for photographs, finds easily."""
    for index in range(20):
        person = people.sample_person(0, index)
        clip = clips.make_clip(person, scene=0, utterance=0, num_frames=30, size=96)
        _, found = faces.track_face(clip.frames[:6])
        if found.all():
            return clip
    pytest.fail("expected the cascade to find one of 20 drawn people")


def test_moving_face_is_followed_to_where_it_was_drawn(drawn):
    canvas = np.full((30, 150, 200, 3), 120, np.uint8)
    for j, frame in enumerate(drawn.frames):
        canvas[j, 20 + j : 116 + j, 10 + 2 * j : 106 + 2 * j] = frame
    boxes, found = faces.track_face(canvas)
    assert found.mean() > 0.8
    moved = np.stack([10 + 2 * np.arange(30), 20 + np.arange(30)] * 2, 1)
    centre = (boxes - moved).reshape(30, 2, 2).mean(1)
    truth = drawn.face_boxes.reshape(30, 2, 2).mean(1)
    assert np.abs(centre - truth).mean() < 8
    mouth = faces.mouth_boxes(boxes - moved).reshape(30, 2, 2).mean(1)
    assert np.abs(mouth - drawn.mouth_boxes.reshape(30, 2, 2).mean(1)).mean() < 8


def test_frames_without_a_face_are_bridged(drawn):
    frames = np.tile(drawn.frames[:1], (20, 1, 1, 1))
    steady, _ = faces.track_face(frames)
    frames[6:12] = 90
    boxes, found = faces.track_face(frames)
    np.testing.assert_array_equal(found, [j not in range(6, 12) for j in range(20)])
    np.testing.assert_allclose(boxes, steady, atol=3)


def test_another_detector_finds_the_faces_that_are_tracked():
    def detect(frame):
        step = float(frame[0, 0, 0])
        if step == 4:
            return np.zeros((0, 4), np.float32)
        return np.array([[10 + step, 20, 50 + step, 60]], np.float32)

    frames = np.tile(np.arange(9, dtype=np.uint8)[:, None, None, None], (1, 70, 80, 3))
    boxes, found = faces.track_face(frames, detect=detect)
    np.testing.assert_array_equal(found, np.arange(9) != 4)
    np.testing.assert_allclose(boxes[2:7, 0], 10 + np.arange(2, 7), atol=1)


def test_picture_without_a_face_has_none():
    noise = np.random.default_rng(0).integers(0, 255, (3, 60, 80, 3), np.uint8)
    boxes, found = faces.track_face(noise)
    assert not found.any() and not boxes.any() and boxes.shape == (3, 4)


def test_square_holds_every_face_and_stays_inside_the_picture():
    rng = np.random.default_rng(1)
    for _ in range(50):
        corner, side = rng.uniform(0, 60, (7, 2)), rng.uniform(20, 30, (7, 1))
        boxes = np.concatenate([corner, corner + side], 1)
        for within in (None, (100, 140)):
            x0, y0, x1, y1 = faces.square_around(boxes, scale=1.5, within=within)
            assert x1 - x0 == pytest.approx(y1 - y0, rel=1e-5)
            assert x1 - x0 >= 1.5 * 20 - 1e-3
            assert (boxes[:, :2] >= [x0 - 0.01, y0 - 0.01]).all()
            assert (boxes[:, 2:] <= [x1 + 0.01, y1 + 0.01]).all()
        assert min(x0, y0) >= -0.01 and x1 <= 140.01 and y1 <= 100.01


def test_crop_is_the_resized_square_and_repeats_the_edge_outside():
    frame = np.arange(40 * 50 * 3).reshape(40, 50, 3).astype(np.uint8)
    inside = faces.crop_square(frame, np.array([5.0, 7.0, 29.0, 31.0]), 24)
    np.testing.assert_array_equal(inside, frame[7:31, 5:29])
    outside = faces.crop_square(frame, np.array([-10.0, -10.0, 10.0, 10.0]), 20)
    np.testing.assert_array_equal(outside[10:, 10:], frame[:10, :10])
    assert (outside[:10, :10] == frame[0, 0]).all()


def test_boxes_follow_into_the_crop():
    box = np.array([20.0, 10.0, 60.0, 50.0])
    boxes = np.array([[20.0, 10, 60, 50], [30, 30, 40, 40], [0, 0, 90, 90]])
    wanted = [[0, 0, 80, 80], [20, 40, 40, 60], [0, 0, 80, 80]]
    np.testing.assert_allclose(faces.boxes_in_crop(boxes, box, 80), wanted)


def test_a_person_reaches_from_above_the_hair_to_the_lower_edge():
    boxes = np.array([[40.0, 50, 60, 70], [44, 48, 64, 68]])
    x0, y0, x1, y1 = faces.person_box(boxes, 100, 120)
    assert x0 < 40 and y0 < 48 and x1 > 64 and y1 == 100
    assert 40 - x0 == pytest.approx(x1 - 64)  # as much room on both sides
    # Never outside the picture.
    x0, y0, x1, y1 = faces.person_box(np.array([[1.0, 2, 29, 30]]), 33, 30)
    assert (x0, y0, x1, y1) == (0, 0, 30, 33)


def test_a_person_box_hides_a_drawn_person(drawn):
    person = drawn.masks[0] > 0  # all that is not background
    box = faces.person_box(drawn.face_boxes[:1], 96, 96)
    hidden = faces.blank_box(drawn.frames[0], box)
    assert (hidden[person] == faces.GREY).all(-1).mean() > 0.9


def test_a_blank_box_is_grey_and_all_else_stays():
    frame = np.random.default_rng(0).integers(0, 100, (20, 30, 3)).astype(np.uint8)
    before = frame.copy()
    blank = faces.blank_box(frame, np.array([4.6, 3.2, 10.1, 20.0]))
    inside = np.zeros((20, 30), bool)
    inside[3:20, 4:11] = True  # every pixel that the box touches
    assert (blank[inside] == faces.GREY).all()
    np.testing.assert_array_equal(blank[~inside], frame[~inside])
    np.testing.assert_array_equal(frame, before)
    assert abs(faces.GREY / 127.5 - 1) < 0.01


def test_token_boxes_hold_the_face_with_the_most_room_above():
    boxes = np.array([[40.0, 50, 60, 70], [10, 10, 50, 50]])
    grown = faces.token_boxes(boxes)
    room = np.concatenate([boxes[:, :2] - grown[:, :2], grown[:, 2:] - boxes[:, 2:]], 1)
    assert (room > 0).all() and (room[:, 1] > room[:, [0, 2, 3]].max(1)).all()
    np.testing.assert_allclose(room[1], 2 * room[0], rtol=1e-5)  # in face sides


def make_looks():
    """Frames of one face place: blurred, sharp A, sharp A, sharp B."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (4, 40, 50, 3)).astype(np.uint8)
    frames[0] = 100 + rng.integers(0, 3, frames[0].shape)
    frames[2] = frames[1]
    return frames, np.tile([10.0, 8, 30, 28], (4, 1))


def test_face_crops_are_sharp_differ_and_repeat_where_frames_are_few():
    frames, boxes = make_looks()
    crops = faces.face_crops(frames, boxes, 2, size=20, scale=1.0)
    assert crops.shape == (2, 20, 20, 3)
    cut = frames[:, 8:28, 10:30]
    chosen = [[bool((crop == face).all()) for face in cut] for crop in crops]
    assert not any(row[0] for row in chosen)  # blurred
    assert sorted(np.argmax(row) for row in chosen) == [1, 3]  # two looks
    more = faces.face_crops(frames, boxes, 6, size=20, scale=1.0)
    assert more.shape == (6, 20, 20, 3)
    np.testing.assert_array_equal(more[:2], crops)


def test_face_crops_are_squares_of_the_asked_scale_around_the_face():
    ramp = np.arange(60)
    frames = np.zeros((1, 50, 60, 3), np.uint8)
    frames[..., 0], frames[..., 1] = ramp[None, None], ramp[None, :50, None]
    box = np.array([[20.0, 10, 36, 26]])
    (crop,) = faces.face_crops(frames, box, 1, size=24, scale=1.5)
    np.testing.assert_array_equal(crop[..., 0], frames[0, :24, 16:40, 0])
    np.testing.assert_array_equal(crop[..., 1], frames[0, 6:30, :24, 1])


@pytest.mark.parametrize("name", ["p02_grid_1", "p07_halfbody_1", "p10_office_1"])
def test_real_faces_are_found_in_nearly_every_frame(shared, name):
    frames = itertools.islice(decode.iter_frames(shared / "videos" / f"{name}.mp4"), 40)
    boxes, found = faces.track_face(frames)
    assert found.mean() > 0.95
    sides = boxes[:, 2] - boxes[:, 0]
    assert np.abs(np.diff(sides)).max() < 0.05 * sides.mean()


def test_real_road_has_no_face(shared):
    path = shared / "videos" / "bad_noface_speech.mp4"
    _, found = faces.track_face(itertools.islice(decode.iter_frames(path), 30))
    assert not found.any()
