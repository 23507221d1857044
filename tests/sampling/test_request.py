"""Files become arrays of one batch row; ~10 s on 2 cores."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_weights

from avatar_jax.data.talking_heads import clips, people
from avatar_jax.media import encode
from avatar_jax.sampling import pretrained, request
from avatar_jax.types import SAMPLE_RATE, SAMPLES_PER_FRAME, InputError

SIZE = 16  # pixels


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return pretrained.load(tiny_weights.write_weights(folder / "tiny.safetensors"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A reference clip of 30 frames with 1.2 s of sound, and a still."""
    folder = tmp_path_factory.mktemp("files")
    draw = np.random.default_rng(0)
    frames = draw.integers(0, 255, (30, SIZE, SIZE, 3)).astype(np.uint8)
    wave = draw.normal(scale=0.1, size=30 * SAMPLES_PER_FRAME).astype(np.float32)
    encode.write_video(folder / "reference.mp4", frames, wave)
    encode.write_video(folder / "silent.mp4", frames)
    encode.write_video(folder / "short.mp4", frames[:11], wave)
    encode.write_video(folder / "still.mp4", np.full((1, SIZE, SIZE, 3), 200, np.uint8))
    return folder


@pytest.fixture(scope="module")
def knowing(tmp_path_factory):
    """A model that reads everything of a person's own video."""
    path = tmp_path_factory.mktemp("weights") / "person.safetensors"
    card = {**tiny_weights.PERSON_CARD, "size": 2 * SIZE}
    return pretrained.load(
        tiny_weights.write_weights(path, tiny_weights.PERSON_CONFIG, **card)
    )


def write_person(path, *, height: int, width: int):
    """Write 12 frames of a drawn person in a grey room."""
    person = people.sample_person(0, 2)
    clip = clips.make_clip(person, scene=0, utterance=0, num_frames=12, size=96)
    frames = np.full((12, height, width, 3), 120, np.uint8)
    frames[:, 12:108, 17:113] = clip.frames
    encode.write_video(path, frames, np.ones(12 * SAMPLES_PER_FRAME, np.float32) / 9)
    return path


def ask(files, **changes) -> request.Request:
    path = files / "reference.mp4"
    asked = request.Request(path, path, crop="none")
    return dataclasses.replace(asked, **changes)


def test_the_plan_is_as_long_as_the_speech(loaded, files):
    prepared, plan, wave = request.prepare(ask(files, seconds=0.8), loaded)
    assert len(wave) == round(0.8 * SAMPLE_RATE)
    assert plan.num_frames == 20
    assert prepared.speech.shape == (1, plan.padded_frames, loaded.speech.width)
    assert prepared.still.shape == (1, 1, SIZE // 8, SIZE // 8, loaded.codec.channels)
    assert prepared.reference is None


def test_a_still_replaces_the_best_reference_frame(loaded, files):
    own, *_ = request.prepare(ask(files), loaded)
    given, *_ = request.prepare(ask(files, still=files / "still.mp4"), loaded)
    video = np.asarray(loaded.codec.decode(given.still))
    assert np.abs(video - (200 / 127.5 - 1)).max() < 0.1
    assert not np.allclose(own.still, given.still)


def test_loudness_does_not_change_the_features(loaded, files):
    draw = np.random.default_rng(1)
    wave = draw.normal(scale=0.02, size=SAMPLE_RATE).astype(np.float32)
    plan = request.video.Plan(25, 4)
    still = np.zeros((SIZE, SIZE, 3), np.uint8)
    quiet, loud = (
        request.encode(loaded, still=still, wave=gain * wave, plan=plan)
        for gain in (np.float32(1), np.float32(7))
    )
    np.testing.assert_allclose(quiet.speech, loud.speech, atol=1e-3)


def test_speech_without_a_track_is_named(loaded, files):
    with pytest.raises(InputError, match="silent.mp4"):
        request.prepare(ask(files, audio=files / "silent.mp4"), loaded)


def test_a_single_path_is_one_reference(files):
    path = files / "reference.mp4"
    assert ask(files).reference == ask(files, reference=(path,)).reference == (path,)
    with pytest.raises(InputError, match="reference video"):
        ask(files, reference=())


def test_the_still_is_seen_whole(loaded, files):
    prepared, *_ = request.prepare(ask(files), loaded)
    assert prepared.still_valid.shape == (1, 1, 1) and prepared.still_valid.all()


def test_every_part_of_the_reference_is_read(knowing, files):
    prepared, *_ = request.prepare(ask(files), knowing)
    reference = prepared.reference
    assert reference.latents.shape[:2] == (1, knowing.card.reference_latents)
    for name in ("audio_valid", "motion_valid", "faces_valid"):
        assert getattr(reference, name).all()
    np.testing.assert_allclose(jnp.linalg.norm(reference.identity), 1, atol=1e-3)


def test_several_clips_share_one_reference(knowing, files):
    both = ask(files, reference=(files / "reference.mp4", files / "silent.mp4"))
    prepared, *_ = request.prepare(both, knowing)
    assert prepared.reference.segment_ids.tolist() == [[0] * 4 + [1] * 4]
    assert prepared.reference.valid.any(axis=(2, 3)).all()
    assert prepared.reference.audio_valid.tolist() == [False]
    alone, *_ = request.prepare(ask(files), knowing)
    np.testing.assert_array_equal(prepared.still, alone.still)


def test_too_short_a_reference_is_named(knowing, files):
    with pytest.raises(InputError, match="12 frames or more"):
        request.prepare(ask(files, reference=files / "short.mp4"), knowing)


def test_a_blanked_person_is_not_seen_in_the_still(knowing, files):
    """With a still and without: then the best reference frame is blanked."""
    for still in (None, files / "still.mp4"):
        prepared, *_ = request.prepare(
            ask(files, still=still, blank_person=True), knowing
        )
        assert prepared.still_valid.shape == (1, 2, 2)
        pixels = np.asarray(knowing.codec.decode(prepared.still))[0, 0]
        assert np.abs(pixels[12:, 12:20]).max() < 0.3
        if still is not None:  # bright: its corners are left as they were
            assert pixels[0, 0].min() > 0.4


def test_blanking_the_only_view_of_a_person_is_refused(loaded, files):
    with pytest.raises(InputError, match="do not blank"):
        request.prepare(ask(files, blank_person=True), loaded)


def test_a_reference_may_have_another_aspect_ratio_than_the_still(knowing, files):
    """Both are cropped to squares around the face."""
    wide = write_person(files / "wide.mp4", height=120, width=220)
    tall = write_person(files / "tall.mp4", height=200, width=130)
    asked = ask(files, reference=wide, still=tall, crop="face")
    prepared, *_ = request.prepare(asked, knowing)
    other, *_ = request.prepare(dataclasses.replace(asked, still=None), knowing)
    assert prepared.still.shape == other.still.shape


def test_a_still_that_cannot_be_cropped_is_named(knowing, files):
    path = files / "grey.mp4"
    encode.write_video(path, np.full((1, 48, 80, 3), 99, np.uint8))
    known = write_person(files / "known.mp4", height=120, width=220)
    asked = ask(files, reference=known, still=path, crop="face")
    with pytest.raises(InputError, match="expected a face.*grey.mp4.*--crop none"):
        request.prepare(asked, knowing)
    with pytest.raises(InputError, match="square picture.*80x48"):
        request.prepare(ask(files, still=path, crop="none"), knowing)
