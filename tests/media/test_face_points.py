"""Validity and crops from the points of faces. ~1 s on 2 cores."""

import numpy as np
import pytest

from avatar_jax.media import face_points, face_shape


def make_face(left: float, top: float, side: float, score: float = 1.0) -> np.ndarray:
    """Make the points of an upright face, from brows to chin `side` pixels."""
    places = np.array([left, top]) + side * face_shape.usual_face()
    scores = np.full((68, 1), score)
    return np.concatenate([places, scores], axis=1).astype(np.float32)


def test_a_box_has_a_margin_and_most_room_above():
    boxes, found = face_points.face_boxes(make_face(100, 120, 40)[None], 300, 400)
    np.testing.assert_array_equal(boxes, [[76, 76, 164, 184]])
    assert found.all()


@pytest.mark.parametrize(
    "face",
    [make_face(100, 120, 40, score=0.2), make_face(900, 120, 40)],
    ids=["unsure", "outside"],
)
def test_a_face_that_is_not_there_has_no_box_and_marks_nothing(face):
    boxes, found = face_points.face_boxes(np.stack([face] * 4), 300, 400)
    assert not found.any() and not boxes.any()
    assert not face_points.mark_patches(boxes, 300, 400).any()


def test_one_frame_of_four_marks_a_latents_patches():
    boxes = np.zeros((11, 4), int)
    boxes[5] = [20, 30, 33, 48]
    patches = face_points.mark_patches(boxes, 70, 90)
    expected = np.zeros((2, 4, 5), bool)
    expected[1, 1:3, 1:3] = True
    np.testing.assert_array_equal(patches, expected)


def test_patches_of_random_boxes_are_those_of_pixels():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 60, (8, 2))
    boxes = np.concatenate([low, low + rng.integers(0, 30, (8, 2))], axis=1)
    pixels = np.zeros((8, 96, 112), bool)
    for shown, (left, top, right, bottom) in zip(pixels, boxes, strict=True):
        shown[top:bottom, left:right] = True
    expected = pixels.reshape(2, 4, 6, 16, 7, 16).any(axis=(1, 3, 5))
    came = face_points.mark_patches(boxes, 96, 112)
    np.testing.assert_array_equal(came, expected)


def test_brows_are_lifted_by_the_nose_where_both_are_sure():
    face = make_face(0, 50, 100)
    lifted = face_points.lift_brows(face)
    np.testing.assert_array_equal(lifted[27:], face[27:, :2])
    nose = face[33, 1] - face[27, 1]
    np.testing.assert_allclose(lifted[17:27, 1], face[17:27, 1] - 1.2 * nose, rtol=1e-5)
    face[33, 2] = 0.1
    np.testing.assert_array_equal(face_points.lift_brows(face), face[:, :2])


def test_the_union_holds_every_face_and_asks_for_half_of_the_frames():
    points = np.stack([make_face(x, 100, 40) for x in (200, 230, 260)])
    left, top, right, bottom = face_points.union_of_faces(points, 400, 600)
    assert left == 160 and right == 340
    assert bottom - 140 == pytest.approx((140 - top) / 2) and top < 60
    gone = np.zeros_like(points)
    both = np.concatenate([points, gone])
    np.testing.assert_array_equal(
        face_points.union_of_faces(both, 400, 600), [left, top, right, bottom]
    )
    more = np.concatenate([both, gone[:1]])
    assert face_points.union_of_faces(more, 400, 600) is None
    assert face_points.union_of_faces(points[:0], 400, 600) is None


def test_crops_are_even_inside_and_have_the_buckets_shape():
    rng = np.random.default_rng(1)
    chosen = 0
    for _ in range(200):
        height, width = (int(side) for side in rng.integers(300, 900, 2))
        low = rng.uniform(0, [width * 0.8, height * 0.8])
        high = np.minimum(low + rng.uniform(20, 400, 2), [width, height])
        for bucket in ((480, 896), (896, 480)):
            face = np.concatenate([low, high])
            crop = face_points.choose_crop(face, (height, width), bucket)
            if crop is None:
                continue
            chosen += 1
            left, top, right, bottom = crop
            assert not any(edge % 2 for edge in crop)
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            assert right - left >= 0.3 * width - 3 or bottom - top >= 0.3 * height - 3
            shape = (bottom - top) / (right - left)
            assert shape == pytest.approx(bucket[0] / bucket[1], rel=0.03)
    assert chosen > 300


def test_a_crop_of_nearly_everything_is_none():
    whole = np.array([0, 0, 896.0, 480])
    assert face_points.choose_crop(whole, (480, 896), (480, 896)) is None
