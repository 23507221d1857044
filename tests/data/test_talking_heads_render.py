"""The pictures agree with the ground truth (~25 s on 2 cores)."""

import numpy as np
import pytest

from avatar_jax.data.talking_heads import clips, geometry, motion, people, render
from avatar_jax.data.talking_heads.scene import sample_scene
from avatar_jax.types import InputError

_FACE, _EYES, _MOUTH = 1, 2, 3


def _codes(*rows):
    codes = np.zeros((len(rows), len(motion.MOTION_NAMES)), np.float32)
    for row, values in enumerate(rows):
        for name, value in values.items():
            codes[row, motion.MOTION_NAMES.index(name)] = value
    return codes


def _draw(person, codes, *, size=64, **looks):
    return render.render(
        person.looks.replace(**looks), sample_scene(person, 0), codes, size
    )


def _difference(a, b):
    return np.abs(a.astype(int) - b).max(axis=-1)


def _find(predicate):
    crowd = (people.sample_person(0, index) for index in range(200))
    return next(person for person in crowd if predicate(person.looks))


@pytest.mark.parametrize("mark", ["mole", "earring"])
def test_the_mark_is_seen_only_when_its_side_is_turned_to_us(mark):
    person = _find(lambda looks: getattr(looks, mark) > 0)
    away = person.looks.mark_side
    codes = _codes({}, {"yaw": 0.6 * away}, {"yaw": -0.4 * away}, {"yaw": -0.8 * away})
    with_mark = _draw(person, codes).frames
    without = _draw(person, codes, **{mark: 0.0}).frames
    changed = (_difference(with_mark, without) > 20).sum(axis=(1, 2))
    assert changed[0] == changed[1] == 0
    assert changed[2] >= 1 and changed[3] >= 3


def test_teeth_are_seen_only_while_the_mouth_is_open():
    person = people.sample_person(0, 3)
    codes = _codes({"smile": 0.5}, {"mouth_open": 0.9}, {"mouth_open": 0.4})
    gold = {"special_tooth": 0.0, "special_tooth_colour": (0.88, 0.66, 0.18)}
    plain = _draw(person, codes, special_tooth=9.0, tooth_gap=0.0).frames
    odd = _draw(person, codes, tooth_gap=0.06, **gold).frames
    changed = (_difference(plain, odd) > 20).sum(axis=(1, 2))
    assert changed[0] == 0 and changed[1] >= 4 and changed[2] >= 3


def test_closed_lids_draw_nothing_beside_the_eye():
    person = _find(lambda looks: looks.glasses == 0)
    shut = {"blink_left": 1.0, "blink_right": 1.0}
    drawn = _draw(person, _codes({}, shut), size=128)
    far = np.ones((128, 128), bool)
    for left in ("eye_left_outer", "eye_right_inner"):
        first = geometry.KEYPOINT_NAMES.index(left)
        corners = drawn.keypoints[0, first : first + 2]
        (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
        far[int(y0 - 9) : int(y1 + 8), int(x0 - 2) : int(x1 + 4)] = False
    assert _difference(*drawn.frames)[far].max() <= 3
    assert (drawn.masks[1] == _EYES).sum() == 0 < (drawn.masks[0] == _EYES).sum()


def test_closed_lips_draw_nothing_beside_the_mouth():
    person = _find(lambda looks: looks.beard == 0)
    wide, narrow = {"mouth_width": 1.0}, {"mouth_width": -1.0}
    drawn = _draw(person, _codes(wide, narrow), size=128)
    x0, y0, x1, y1 = drawn.mouth_boxes[0]
    rows = slice(int(y0), int(y1) + 1)
    change = _difference(*drawn.frames)[rows]
    assert change[:, : int(x0) - 2].max() <= 4
    assert change[:, int(x1) + 3 :].max() <= 4
    assert change.max() > 20


def test_masks_boxes_and_keypoints_agree():
    person = people.sample_person(0, 10)
    codes = _codes(
        {"mouth_open": 0.8},
        {"mouth_open": 0.3, "yaw": 0.5, "roll": 0.5},
        {"pitch": 0.5},
    )
    drawn = _draw(person, codes, size=96)
    for row in range(len(codes)):
        for region, box in ((_MOUTH, drawn.mouth_boxes), (_FACE, drawn.face_boxes)):
            y, x = np.nonzero(drawn.masks[row] == region)
            assert x.min() >= box[row, 0] - 1.5 and x.max() <= box[row, 2] + 0.5
            assert y.min() >= box[row, 1] - 1.5 and y.max() <= box[row, 3] + 0.5
        y, x = np.nonzero(drawn.masks[row] == _MOUTH)
        seen = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
        np.testing.assert_allclose(seen, drawn.mouth_boxes[row], atol=4)
    points = dict(zip(geometry.KEYPOINT_NAMES, drawn.keypoints[0], strict=True))
    middle = (points["lip_inner_top"] + points["lip_inner_bottom"]) / 2
    assert drawn.masks[0][tuple(middle.astype(int)[::-1])] == _MOUTH
    eye = (points["eye_left_outer"] + points["eye_left_inner"]) / 2
    assert drawn.masks[0][tuple(eye.astype(int)[::-1])] == _EYES
    chin = points["chin"].astype(int)
    assert drawn.masks[0, chin[1] - 2, chin[0]] == _FACE
    assert drawn.masks[0, chin[1] + 2, chin[0]] == 0


def test_an_open_mouth_is_seen_at_64_pixels():
    person = people.sample_person(0, 10)
    clip = clips.make_clip(person, scene=0, utterance=1, num_frames=100)
    rows = (clip.masks == _MOUTH).any(axis=2).sum(axis=1)
    opening = clip.motion[:, 0]
    assert np.corrcoef(rows, opening)[0, 1] > 0.9
    wide = _draw(person, _codes({}, {"mouth_open": 1.0}))
    top = geometry.KEYPOINT_NAMES.index("lip_inner_top")
    height = wide.keypoints[:, top + 1, 1] - wide.keypoints[:, top, 1]
    assert height[0] < 0.1 and 8 <= height[1] <= 11


def test_gaze_brows_and_yaw_move_what_they_name():
    person = _find(lambda looks: looks.glasses == 0)
    codes = _codes(
        {}, {"gaze_x": 0.8}, {"brow": 1.0}, {"yaw": 0.6}, {"blink_left": 1.0}
    )
    drawn = _draw(person, codes, size=128)
    names = geometry.KEYPOINT_NAMES
    brow, tip = names.index("brow_left"), names.index("nose_tip")
    assert drawn.keypoints[2, brow, 1] < drawn.keypoints[0, brow, 1] - 2
    assert drawn.keypoints[3, tip, 0] > drawn.keypoints[0, tip, 0] + 10
    middle = int(drawn.keypoints[0, tip, 0])
    lids = (drawn.masks[4] == _EYES).any(axis=0)
    assert not lids[:middle].any() and lids[middle:].any()
    moved = _difference(drawn.frames[0], drawn.frames[1]) > 20
    assert moved.any() and (drawn.masks[0][moved] == _EYES).mean() > 0.9


def test_a_frame_does_not_depend_on_the_chunk_it_is_drawn_in():
    person = people.sample_person(0, 2)
    _, _, codes = clips.make_speech(person, 0, render.CHUNK + 4)
    whole, tail = _draw(person, codes), _draw(person, codes[-3:])
    np.testing.assert_array_equal(whole.frames[-3:], tail.frames)
    np.testing.assert_array_equal(whole.masks[-3:], tail.masks)


def test_pictures_of_two_sizes_show_the_same():
    person = people.sample_person(0, 11)
    codes = _codes({"mouth_open": 0.5})
    small, large = (
        _draw(person, codes).frames[0],
        _draw(person, codes, size=256).frames[0],
    )
    pooled = large.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(pooled - small).mean() < 4
    with pytest.raises(InputError, match="64 to 512"):
        _draw(person, codes, size=32)
