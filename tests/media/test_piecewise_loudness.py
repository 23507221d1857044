"""Loudness piece by piece: level, silence, every length (~1 s)."""

import numpy as np
import pytest

from avatar_jax.media import loudness, piecewise_loudness


def speech(seconds, decibels=-30.0, seed=0):
    rng = np.random.default_rng(seed)
    return 10 ** (decibels / 20) * rng.normal(size=round(seconds * 16_000))


def test_speech_that_fades_is_brought_to_an_even_level():
    wave = speech(6) * np.geomspace(1, 0.01, 96_000)
    levelled = piecewise_loudness.normalise(wave)
    assert levelled.shape == wave.shape and levelled.dtype == np.float64
    for start in range(0, 96_000, 16_000):
        second = levelled[start : start + 16_000]
        assert loudness.measure_loudness(second) == pytest.approx(-16, abs=1)


def test_measures_agree_with_the_recommendation_to_half_a_decibel():
    for seconds in (0.5, 1.0, 3.3):
        wave = speech(seconds)
        expected = loudness.measure_loudness(wave)
        assert piecewise_loudness.measure(wave) == pytest.approx(expected, abs=0.5)


def test_silence_stays_silence_and_a_gain_changes_nothing():
    np.testing.assert_array_equal(piecewise_loudness.normalise(np.zeros(40_000)), 0)
    wave = speech(2.2)
    levelled = piecewise_loudness.normalise(wave)
    louder = piecewise_loudness.normalise(3 * wave)
    np.testing.assert_allclose(louder, levelled, rtol=1e-9)
    quiet = piecewise_loudness.normalise(1e-6 * wave)
    np.testing.assert_allclose(quiet, 1e-6 * wave, rtol=1e-12)


@pytest.mark.parametrize("samples", [0, 1, 1_599, 1_600, 6_399, 14_400, 16_000, 16_001])
@pytest.mark.parametrize("pieces", [0, 2])
def test_every_length_comes_back_at_that_length(samples, pieces):
    wave = speech(0.9 * pieces + samples / 16_000)
    levelled = piecewise_loudness.normalise(wave)
    assert np.isfinite(levelled).all() and len(levelled) == len(wave)
    assert levelled.shape == wave.shape


def test_a_clip_of_one_piece_with_a_rest_is_longer_by_it_as_released():
    wave = speech(0.95)
    levelled = piecewise_loudness.normalise(wave)
    rest = len(wave) - 14_400
    assert len(levelled) == len(wave) + rest
    np.testing.assert_array_equal(levelled[-rest:], wave[-rest:])
