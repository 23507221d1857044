"""The encoders without weights: alignment, level, padding (~3 s on 2 cores)."""

import numpy as np
import pytest

from avatar_jax.models import speech, text
from avatar_jax.types import SAMPLES_PER_FRAME, InputError

ENCODE = speech.LogMel()


def tone(frames, hertz, seed=0):
    """A tone in faint noise, as a microphone would give it."""
    samples = np.arange(frames * SAMPLES_PER_FRAME)
    noise = np.random.default_rng(seed).normal(size=samples.size)
    wave = 0.3 * np.sin(2 * np.pi * hertz * samples / 16_000) + 0.001 * noise
    return wave.astype(np.float32)


def test_a_row_hears_its_own_frame_and_no_further_than_the_next():
    wave = np.zeros(11 * SAMPLES_PER_FRAME, np.float32)
    quiet = ENCODE(wave + tone(11, 300) * 0.01, 11)
    wave[5 * SAMPLES_PER_FRAME : 6 * SAMPLES_PER_FRAME] = tone(1, 3000)
    loud = ENCODE(wave, 11)
    assert loud.mean(axis=1).argmax() == 5
    assert (loud[[0, 1, 2, 3, 7, 8, 9, 10]] < loud[5].max() - 2).all()
    assert quiet.shape == loud.shape == (11, ENCODE.width) and loud.dtype == np.float32


def test_parts_of_a_frame_are_in_order():
    wave = np.zeros(3 * SAMPLES_PER_FRAME, np.float32)
    wave[SAMPLES_PER_FRAME + 480 : SAMPLES_PER_FRAME + 640] = tone(1, 1000)[:160]
    parts = ENCODE(wave, 3)[1].reshape(speech.PARTS, speech.BANDS)
    assert parts.max(axis=1).argmax() == 3


def test_higher_tones_reach_higher_bands():
    bands = [
        ENCODE(tone(4, hertz), 4).reshape(-1, speech.BANDS).mean(axis=0).argmax()
        for hertz in (150, 400, 1200, 3500, 7000)
    ]
    assert bands == sorted(set(bands))


@pytest.mark.parametrize("gain", [0.02, 0.3, 3.0])
def test_loudness_changes_nothing(gain):
    wave = tone(7, 500)
    np.testing.assert_allclose(ENCODE(gain * wave, 7), ENCODE(wave, 7), atol=1e-3)


def test_a_short_wave_ends_in_silence_and_a_long_one_is_cut():
    wave = tone(9, 500)
    whole = ENCODE(wave, 9)
    longer = ENCODE(wave, 12)
    np.testing.assert_allclose(longer[:8], whole[:8], atol=0.05)
    assert (longer[10:] <= whole.min() + 1e-3).all()
    assert np.isfinite(ENCODE(np.zeros(640, np.float32), 5)).all()
    assert ENCODE(wave, 4).shape == (4, ENCODE.width)


def test_no_sound_is_an_input_error():
    with pytest.raises(InputError, match="expects sound"):
        ENCODE(np.zeros(0, np.float32), 5)


def test_real_speech_is_near_unit_scale(shared):
    from avatar_jax.media import decode

    wave = decode.read_audio(shared / "audio" / "demo_narration.wav")
    rows = ENCODE(wave, wave.size // SAMPLES_PER_FRAME)
    assert abs(rows.mean()) < 0.5 and 0.7 < rows.std() < 1.3


def test_prompts_differ_where_their_bytes_differ():
    encode = text.Bytes(length=20, width=32)
    first, second, empty = encode(["a face", "a fade", ""])
    assert first.shape == (20, 32) and first.dtype == np.float32
    differs = np.abs(first - second).max(axis=1) > 0.1
    assert np.flatnonzero(differs).tolist() == [4]
    assert (empty[:, :16] == 0).all()
    np.testing.assert_array_equal(first[6:], empty[6:])


def test_every_byte_has_its_own_direction_and_every_place_too():
    rows = text.Bytes()(["".join(map(chr, range(32, 96)))])[0]
    letters, places = np.split(rows, 2, axis=1)
    for half in (letters, places):
        similarity = half @ half.T / 16 - 2 * np.eye(64)
        assert similarity.max() < 0.99


def test_a_long_prompt_is_an_input_error_that_counts_bytes():
    with pytest.raises(InputError, match="has 66 bytes, at most 64"):
        text.Bytes()(["é" * 33])
