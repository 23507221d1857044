"""Pictures become what TAVR's layout reads; ~10 s on 2 cores."""

import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.media import detectors, face_shape, fitting
from avatar_jax.models import codec
from avatar_jax.sampling import tavr_pictures
from avatar_jax.types import InputError

CODEC = codec.DCTCodec(channels=12)
BUCKET = (48, 80)  # pixels
CLIP = 26  # frames
SQUARE = np.array([[60.0, 20, 90, 50]])  # the face, in pixels of the bucket


def film(count: int = CLIP, *, size: tuple[int, int] = (60, 96), seed: int = 0):
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (count, *size, 3)).astype(np.uint8)


def show_face(frames: np.ndarray, shown: slice = slice(None)) -> np.ndarray:
    """Find the same face in some frames: a detector of points."""
    points = np.zeros((len(frames), 68, 3), np.float32)
    points[shown] = face_shape.lay_into_squares(SQUARE)
    return points


def prepare(frames, detector=show_face, *, window=slice(2, 5), **rest):
    return tavr_pictures.prepare_reference(
        frames, window=window, bucket=BUCKET, detector=detector, codec=CODEC, **rest
    )


def test_a_reference_is_the_window_of_the_clip():
    frames = film()
    speech = np.arange(29 * 7, dtype=np.float32).reshape(29, 7)
    reference = prepare(frames, speech=speech)
    fitted = fitting.to_signed(fitting.to_unit(fitting.fit_frames(frames, BUCKET)))
    expected = CODEC.encode_clips(jnp.asarray(fitted[None, 8:20]))
    np.testing.assert_allclose(reference.latents, expected, atol=1e-5)
    assert reference.valid.shape == (1, 3, 3, 5) and reference.segment_ids.shape == (
        1,
        3,
    )
    np.testing.assert_array_equal(reference.audio[0], speech[8:20])


def test_what_comes_after_the_window_changes_nothing():
    frames, other = film(), film(seed=1)
    other[:20] = frames[:20]
    np.testing.assert_array_equal(prepare(frames).latents, prepare(other).latents)


def test_patches_of_the_face_count_where_it_is_seen():
    reference = prepare(film(), lambda frames: show_face(frames, slice(13, 15)))
    shown = np.asarray(reference.valid[0])
    np.testing.assert_array_equal(shown.any(axis=(1, 2)), [False, True, False])
    assert shown[1, :, 3:].all() and not shown[1, :, :2].any()


def test_speech_that_ends_in_the_window_is_left_out():
    assert prepare(film(), speech=np.ones((15, 7), np.float32)).audio is None
    assert prepare(film()).audio is None


def test_detectors_see_what_the_codec_sees():
    seen = []

    def look(frames):
        seen.append(frames)
        return show_face(frames)

    prepare(film(), look)
    (frames,) = seen
    assert frames.shape == (20, *BUCKET, 3) and 0 <= frames.min() <= frames.max() <= 1
    np.testing.assert_array_equal(frames, fitting.round_bfloat16(frames))


@pytest.mark.parametrize(
    "frames, shown, words",
    [
        (film(19), slice(None), "20 frames or more.*came 19"),
        (film(), slice(0, 8), "a face in frames 8 to 19"),
    ],
    ids=["too short", "no face"],
)
def test_a_reference_that_will_not_do_is_refused_in_one_line(frames, shown, words):
    with pytest.raises(InputError, match=words) as caught:
        prepare(frames, lambda given: show_face(given, shown))
    assert "\n" not in str(caught.value)


def test_the_window_is_in_the_middle_of_the_first_stride():
    def choose(clip, chunks, **rest):
        return tavr_pictures.choose_window(
            clip, num_frames=2001, num_chunks=chunks, latents=5, **rest
        )

    assert choose(4000, 1) == slice(0, 5)
    stride = (2201 // 4 - 5) // 26
    assert choose(4000, 26) == slice(stride // 2 - 2, stride // 2 + 3)
    assert choose(4000, 26) == choose(9000, 26)  # what is past the speech is not read
    assert choose(4000, 26, cropped=True) == choose(500, 26)
    assert choose(20, 26) == slice(0, 5)
    with pytest.raises(InputError, match="20 frames or more.*came 19"):
        choose(19, 1)


def test_a_crop_is_chosen_from_few_frames_and_holds_the_face():
    looked = []

    def look(frames):
        looked.append(frames)
        return show_face(frames)

    frames = (frame for frame in film(611, size=(90, 140)))
    left, top, right, bottom = tavr_pictures.choose_crop(
        frames, bucket=BUCKET, detector=look
    )
    assert len(looked[0]) == 100 and len(list(frames)) >= 611 - 500
    assert left <= 60 and top <= 28 and right >= 90 and bottom >= 50
    np.testing.assert_allclose((right - left) / (bottom - top), 80 / 48, rtol=0.05)


def test_a_clip_whose_face_hides_is_refused():
    def hide(frames):
        return show_face(frames, slice(0, len(frames) // 2 - 1))

    with pytest.raises(InputError, match="half of the frames"):
        tavr_pictures.choose_crop(film(40), bucket=BUCKET, detector=hide)
    with pytest.raises(InputError, match="without frames"):
        tavr_pictures.choose_crop(iter(()), bucket=BUCKET, detector=hide)


def test_a_scene_says_nothing_of_its_person():
    """Whatever the person looks like, latents and validity are the same."""
    still = film(1, size=BUCKET)[0]
    person = np.array([20, 13, 45, 48])
    scene = tavr_pictures.encode_scene(still, person, codec=CODEC)
    other = still.copy()
    other[8:48, 16:48] = 255 - other[8:48, 16:48]
    same = tavr_pictures.encode_scene(other, person, codec=CODEC)
    np.testing.assert_array_equal(scene.still, same.still)
    assert scene.still.shape == (1, 1, 6, 10, 12)
    np.testing.assert_array_equal(
        scene.valid[0], ~np.array([[0] * 5, [0, 1, 1, 0, 0], [0, 1, 1, 0, 0]], bool)
    )
    grey = CODEC.encode(jnp.zeros((1, 1, *BUCKET, 3)))
    hidden = np.s_[0, 0, 1:6, 2:6]
    np.testing.assert_allclose(scene.still[hidden], grey[hidden], atol=1e-5)


def test_a_person_in_a_still_is_found_and_blanked():
    people = detectors.PeopleOfFaces(
        lambda _: face_shape.lay_into_squares(np.array([[290.0, 200, 350, 260]]))
    )
    still = film(1, size=(500, 900))[0]
    bucket = fitting.choose_bucket(still.shape[:2], [(96, 160), (160, 96)])
    scene = tavr_pictures.prepare_scene(
        still, bucket=bucket, people=people, codec=CODEC
    )
    assert scene.valid.shape == (1, 6, 10)
    assert not scene.valid[0, -1, 5] and scene.valid[0, :, 0].all()
    assert scene.valid[0, 0].all()


def test_a_still_of_nobody_is_all_person_as_in_tavr():
    nobody = detectors.PeopleOfFaces(lambda _: np.zeros((0, 68, 3), np.float32))
    still = film(1, size=(90, 150))[0]
    scene = tavr_pictures.prepare_scene(
        still, bucket=BUCKET, people=nobody, codec=CODEC
    )
    assert not scene.valid.any()
