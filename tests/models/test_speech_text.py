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


def test_prompts_differ_where_their_words_differ():
    encode = text.Bytes(length=7, width=32)
    first, second, empty = encode(["a red face", "a red nose", ""])
    assert first.shape == (7, 32) and first.dtype == np.float32
    differs = np.abs(first - second).max(axis=1) > 0.1
    assert np.flatnonzero(differs).tolist() == [2]
    assert (empty[:, :16] == 0).all()
    np.testing.assert_array_equal(first[3:], empty[3:])


def test_words_have_their_own_directions_and_places_too():
    words = "skin, very light dark brown black red green teal tied hair beard riah a é"
    rows = text.Bytes()([words])[0, : len(words.split())]
    letters, places = np.split(rows, 2, axis=1)
    for half in (letters, places):
        unit = half / np.linalg.norm(half, axis=1, keepdims=True)
        similarity = unit @ unit.T - 2 * np.eye(len(unit))
        assert similarity.max() < 0.9
    bare, comma, other = text.Bytes()(["skin", "skin,", "hair"])[:, 0, :32]
    assert bare @ comma > 2 * bare @ other


def test_a_long_prompt_is_an_input_error_that_counts_words():
    with pytest.raises(InputError, match="has 65 words, at most 64"):
        text.Bytes()(["é " * 65])
