"""Portraits out of files; ~3 s on 2 cores."""

import cv2
import numpy as np
import pytest

from avatar_jax.data.talking_heads import clips as talking
from avatar_jax.data.talking_heads import people
from avatar_jax.media import decode, encode, faces
from avatar_jax.preparation import clips
from avatar_jax.sampling import pictures
from avatar_jax.types import InputError

SIDE = 80  # pixels
BOX = np.array([16, 12, 64, 60], np.float32)  # xyxy


def drawn_face(*, mouth: int, texture: int = 40) -> np.ndarray:
    """Draw a bright textured square whose dark mouth is `mouth` rows high."""
    rng = np.random.default_rng(0)
    frame = np.full((SIDE, SIDE, 3), 120, np.uint8)
    skin = 170 + rng.integers(-texture, texture + 1, (48, 48, 1))
    frame[12:60, 16:64] = skin
    left, top, right, _ = faces.mouth_boxes(BOX[None])[0].round().astype(int)
    frame[top : top + mouth, left:right] = 30
    return frame


def choose(*frames: np.ndarray, found: list[bool] | None = None) -> int:
    shown = np.ones(len(frames), bool) if found is None else np.array(found)
    return pictures.choose_still(
        np.stack(frames), np.tile(BOX, (len(frames), 1)), shown
    )


def test_the_still_has_its_mouth_closed():
    open_mouth, closed = drawn_face(mouth=9), drawn_face(mouth=0)
    assert choose(open_mouth, closed, open_mouth) == 1


def test_the_still_is_crisp():
    assert choose(drawn_face(mouth=0, texture=5), drawn_face(mouth=0)) == 1


def test_a_frame_without_a_face_is_no_still():
    frames = [drawn_face(mouth=0), drawn_face(mouth=9), drawn_face(mouth=0)]
    assert choose(*frames, found=[False, True, False]) == 1


def test_square_pictures_are_taken_whole(tmp_path):
    path = tmp_path / "square.mp4"
    clip = np.stack([drawn_face(mouth=m) for m in (0, 4, 0)])
    encode.write_video(path, clip)
    portrait = pictures.read_portrait(path, most=2, crop="none", size=32)
    assert portrait.frames.shape == (2, 32, 32, 3)
    assert portrait.best in (0, 1) and portrait.found.all()
    np.testing.assert_allclose(portrait.boxes[0], np.array([6.4, 4.8, 25.6, 27.2]))
    assert abs(float(portrait.frames.mean()) - float(clip[:2].mean())) < 4


def test_pictures_of_the_models_size_need_no_detector(tmp_path):
    path = tmp_path / "small.mp4"
    clip = np.random.default_rng(1).integers(0, 255, (3, 32, 32, 3)).astype(np.uint8)
    encode.write_video(path, clip)
    portrait = pictures.read_portrait(path, most=9, crop="face", size=32)
    assert portrait.frames.shape == (3, 32, 32, 3)


def test_a_portrait_is_cropped_as_the_records_are(tmp_path, monkeypatch):
    """A face so near the edge that a square about it leaves the picture."""
    draw = np.random.default_rng(2).integers(0, 255, (9, 13, 3)).astype(np.uint8)
    frame = cv2.resize(draw, (130, 90), interpolation=cv2.INTER_CUBIC)
    video = np.repeat(frame[None], 26, axis=0)
    encode.write_video(tmp_path / "wide.mp4", video, np.ones(26 * 640, np.float32) / 9)
    track = np.tile(BOX - np.array([14, 0, 14, 0], np.float32), (26, 1))
    monkeypatch.setattr(
        faces, "track_face", lambda *_, **__: (track, np.ones(26, bool))
    )
    config = clips.ClipsConfig(folder=tmp_path, size=32)
    _, record = clips.make_record(config, "wide.mp4")
    learnt = decode.decode_bytes(record["video"])
    path = tmp_path / "wide.mp4"
    shown = pictures.read_portrait(path, most=99, crop="face", size=32)
    assert np.abs(shown.frames.astype(float) - learnt).mean() < 3
    np.testing.assert_allclose(shown.boxes, record["face_boxes"], atol=0.01)


def film_people(path, *, first: int = 2, count: int):
    """Write 12 frames of drawn people beside each other, in a picture of 240 x 120."""
    frames = np.full((12, 120, 240, 3), 120, np.uint8)
    for number in range(count):
        person = people.sample_person(0, first + number)
        clip = talking.make_clip(person, scene=0, utterance=0, num_frames=12, size=96)
        left = 12 + 120 * number
        frames[:, 12:108, left : left + 96] = clip.frames
    encode.write_video(path, frames)
    return path


def test_the_face_is_known_in_the_square_frames(tmp_path):
    path = film_people(tmp_path / "one.mp4", count=1)
    portrait = pictures.read_portrait(path, most=99, crop="face", size=64)
    assert portrait.frames.shape == (12, 64, 64, 3) and portrait.found.all()
    sides = portrait.boxes[:, 2:] - portrait.boxes[:, :2]
    np.testing.assert_allclose(sides, 64 / faces.CROP_SCALE, atol=2)
    middles = (portrait.boxes[:, :2] + portrait.boxes[:, 2:]) / 2
    np.testing.assert_allclose(middles, 32, atol=4)


def test_faces_are_those_of_the_detector_that_is_given(tmp_path):
    """Nobody is in the picture for the cascade."""
    encode.write_video(tmp_path / "grey.mp4", np.full((3, 90, 120, 3), 99, np.uint8))
    box = np.array([[40, 30, 70, 60]], np.float32)
    portrait = pictures.read_portrait(
        tmp_path / "grey.mp4", most=9, crop="face", size=32, detect=lambda _: box
    )
    assert portrait.found.all()
    expected = (1 + np.array([-1, -1, 1, 1]) / faces.CROP_SCALE) * 16
    np.testing.assert_allclose(portrait.boxes, np.tile(expected, (3, 1)), atol=0.5)


def test_two_people_are_refused(tmp_path):
    path = film_people(tmp_path / "two.mp4", count=2)
    with pytest.raises(InputError, match="one person, 2 faces") as caught:
        pictures.read_portrait(path, most=99, crop="face", size=64)
    assert "\n" not in str(caught.value)


def test_two_people_who_were_filmed_are_refused(shared):
    path = shared / "videos" / "bad_twofaces.mp4"
    with pytest.raises(InputError, match="one person, 2 faces"):
        pictures.read_portrait(path, most=50, crop="face", size=64)


def test_a_face_that_shows_in_few_frames_is_nobody_else(tmp_path, monkeypatch):
    """Less than half of the looks: a passer-by, or a mistake of the detector."""
    path = film_people(tmp_path / "one.mp4", count=1)
    known, looks = faces.detect_faces, iter([False] * 6 + [True] * 3)

    def detect(frame):
        found = known(frame)
        return found.repeat(2, axis=0) if next(looks) else found

    monkeypatch.setattr(faces, "detect_faces", detect)
    assert pictures.read_portrait(path, most=99, crop="face", size=64).found.all()
    assert next(looks, None) is None


def test_a_blanked_person_is_grey_and_the_rest_stays():
    picture = np.random.default_rng(3).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    face = np.array([20, 24, 44, 48], np.float32)
    blank, visible = pictures.blank_person(picture, face, cell=16)
    x0, y0, x1, y1 = faces.person_box(face[None], 64, 64)
    inside = np.zeros((64, 64), bool)
    inside[int(y0) : 64, int(x0) : int(np.ceil(x1))] = True
    assert (blank[inside] == faces.GREY).all()
    np.testing.assert_array_equal(blank[~inside], picture[~inside])
    wholly = inside.reshape(4, 16, 4, 16).all(axis=(1, 3))
    np.testing.assert_array_equal(visible, ~wholly)
    assert not visible.all() and visible.any()


@pytest.mark.parametrize(
    "shape, crop, words",
    [((48, 80), "none", "80x48"), ((80, 80), "face", "expected a face")],
)
def test_what_cannot_be_a_portrait_is_named(tmp_path, shape, crop, words):
    path = tmp_path / "grey.mp4"
    encode.write_video(path, np.full((3, *shape, 3), 99, np.uint8))
    with pytest.raises(InputError, match=words):
        pictures.read_portrait(path, most=9, crop=crop, size=32)
