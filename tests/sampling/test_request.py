"""Files become arrays of one batch row; ~10 s on 2 cores."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_weights

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
    encode.write_video(folder / "still.mp4", np.full((1, SIZE, SIZE, 3), 200, np.uint8))
    return folder


def ask(files, **changes) -> request.Request:
    asked = request.Request(files / "reference.mp4", files / "reference.mp4")
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
        request.encode(
            loaded, still=still, clip=still[None], wave=gain * wave, plan=plan
        )
        for gain in (np.float32(1), np.float32(7))
    )
    np.testing.assert_allclose(quiet.speech, loud.speech, atol=1e-3)


def test_speech_without_a_track_is_named(loaded, files):
    with pytest.raises(InputError, match="silent.mp4"):
        request.prepare(ask(files, audio=files / "silent.mp4"), loaded)


def test_a_model_with_a_reference_gets_segments(loaded, files):
    card = dataclasses.replace(loaded.card, reference_latents=3)
    model = dataclasses.replace(loaded, card=card)
    prepared, *_ = request.prepare(ask(files), model)
    assert prepared.reference.latents.shape[:2] == (1, 3)
    assert prepared.reference.valid.shape == (1, 3, 1, 1)
    longer = dataclasses.replace(card, reference_latents=9)
    with pytest.raises(InputError, match="36 frames or more"):
        request.prepare(ask(files), dataclasses.replace(loaded, card=longer))


def test_reference_segments_are_encoded_alone(loaded):
    card = dataclasses.replace(loaded.card, reference_latents=14)
    model = dataclasses.replace(loaded, card=card)
    draw = np.random.default_rng(2)
    clip = draw.integers(0, 255, (60, SIZE, SIZE, 3)).astype(np.uint8)
    reference = request.encode_reference(model, clip)
    assert reference.segment_ids.tolist() == [[0] * 12 + [1] * 2]
    last = jnp.asarray(clip[None, 48:56], jnp.float32) / 127.5 - 1
    alone = model.codec.encode_clips(last)
    np.testing.assert_allclose(reference.latents[:, 12:], alone, atol=1e-4)
