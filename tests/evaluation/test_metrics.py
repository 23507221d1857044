"""Metrics on signals whose answer is known; ~1 s."""

import numpy as np
import pytest

from avatar_jax.evaluation.metrics import bootstrap, sync, texture
from avatar_jax.evaluation.metrics.psnr import psnr


def curves(cases: int = 5, frames: int = 40) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(cases, frames))


def noise_video(frames: int = 6) -> np.ndarray:
    draw = np.random.default_rng(1)
    return draw.integers(60, 190, (frames, 12, 9, 3)).astype(np.uint8)


def test_correlation_ignores_gain_and_offset_and_knows_its_sign():
    (truth,) = curves(1)
    assert sync.mouth_correlation(3 * truth + 2, truth) == pytest.approx(1)
    assert sync.mouth_correlation(-truth, truth) == pytest.approx(-1)


def test_a_mouth_that_never_moves_scores_zero():
    (truth,) = curves(1)
    assert sync.mouth_correlation(np.full_like(truth, 0.3), truth) == 0


def test_the_shuffled_control_is_near_zero_where_the_cases_are_unrelated():
    truth = curves(cases=8, frames=200)
    assert sync.case_correlations(truth, truth).min() > 0.999
    assert np.abs(sync.shuffled_correlations(truth, truth)).max() < 0.15


def test_the_shuffled_control_sees_what_all_cases_share():
    same = np.repeat(curves(1), 3, axis=0)
    assert sync.shuffled_correlations(same, same).min() > 0.999


def test_a_single_case_cannot_be_shuffled():
    with pytest.raises(ValueError, match="2 cases"):
        sync.shuffled_correlations(curves(1), curves(1))


@pytest.mark.parametrize("lag", [-3, 0, 2])
def test_a_late_mouth_is_found_late(lag):
    truth = curves(cases=3, frames=60)
    assert sync.best_lag(np.roll(truth, lag, axis=1), truth) == lag


def test_a_blurred_video_is_less_sharp_and_a_still_one_does_not_move():
    video = noise_video()
    blurred = ((video.astype(int) + np.roll(video, 1, axis=2)) // 2).astype(np.uint8)
    assert texture.sharpness(blurred) < 0.9 * texture.sharpness(video)
    still = np.repeat(video[:1], 4, axis=0)
    assert texture.motion(still) == 0 < texture.motion(video)


def test_psnr_of_a_known_error():
    video = noise_video()
    assert psnr(video, video) == 100
    assert psnr(video + np.uint8(5), video) == pytest.approx(20 * np.log10(255 / 5))


def test_the_interval_holds_the_mean_and_narrows_with_cases():
    values = np.random.default_rng(2).normal(size=400)
    low, high = bootstrap.confidence_interval(values)
    assert low < values.mean() < high
    few_low, few_high = bootstrap.confidence_interval(values[:16])
    assert few_high - few_low > 2 * (high - low)
