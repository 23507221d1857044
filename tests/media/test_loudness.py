"""Loudness against BS.1770's own figures and at 16 kHz. ~1 s on 2 cores."""

import numpy as np
import pytest
from scipy import signal

from avatar_jax.media import loudness


def sine(seconds, *, hertz=997, rate=16000, decibels=0.0):
    times = np.arange(round(seconds * rate)) / rate
    return 10 ** (decibels / 20) * np.sin(2 * np.pi * hertz * times)


def test_48_khz_filters_are_the_table_of_the_recommendation():
    (shelf_b, shelf_a), (pass_b, pass_a) = loudness._k_weighting(48000)
    head = [1.53512485958697, -2.69169618940638, 1.19839281085285]
    np.testing.assert_allclose(shelf_b, head, atol=1e-8)
    np.testing.assert_allclose(shelf_a[1:], [-1.69065929318241, 0.73248077421585])
    np.testing.assert_allclose(pass_b, [1, -2, 1], atol=1e-12)
    np.testing.assert_allclose(pass_a[1:], [-1.99004745483398, 0.99007225036621])


def test_16_khz_response_stays_within_a_tenth_of_a_decibel_of_48_khz():
    hertz = np.linspace(30, 7900, 200)
    response = {}
    for rate in (16000, 48000):
        stages = loudness._k_weighting(rate)
        both = [signal.freqz(b, a, worN=hertz, fs=rate)[1] for b, a in stages]
        response[rate] = 20 * np.log10(np.abs(both[0] * both[1]))
    np.testing.assert_allclose(response[16000], response[48000], atol=0.1)


def test_full_scale_sine_reads_minus_3_lufs():
    for rate in (16000, 48000):
        measured = loudness.measure_loudness(sine(5, rate=rate), rate)
        assert measured == pytest.approx(-3.01, abs=0.1)


def test_pauses_are_gated_out():
    speech = sine(4, decibels=-20)
    quiet = sine(8, decibels=-60)  # above -70 LUFS, more than 10 LU below the rest
    both = np.concatenate([speech, quiet])
    alone = loudness.measure_loudness(speech)
    assert loudness.measure_loudness(both) == pytest.approx(alone, abs=0.2)


def test_normalised_speech_has_the_target_loudness_and_the_same_shape():
    rng = np.random.default_rng(0)
    wave = (rng.standard_normal(40000) * np.linspace(0, 0.2, 40000)).astype(np.float32)
    for target in (-16.0, -23.0):
        louder = loudness.normalise(wave, target)
        assert louder.dtype == np.float32
        assert loudness.measure_loudness(louder) == pytest.approx(target, abs=0.1)
        gain = louder[100:] / wave[100:]
        np.testing.assert_allclose(gain, gain[0], rtol=1e-5)


@pytest.mark.parametrize("samples", [0, 1, 100, 7000])
def test_quiet_and_short_signals_are_untouched(samples):
    quiet = np.full(samples, 1e-5, np.float32)
    np.testing.assert_array_equal(loudness.normalise(quiet), quiet)
