"""Resizing by hand-made rules; OpenCV and closed forms agree. ~1 s on 2 cores."""

import cv2
import numpy as np
import pytest

from avatar_jax.media import resampling


def draw(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Draw a smooth picture without extremes, so that nothing is clipped."""
    rng = np.random.default_rng(seed)
    small = rng.integers(60, 190, (5, 7, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def test_a_picture_of_the_asked_size_is_left_alone():
    picture = draw(9, 13)
    np.testing.assert_array_equal(resampling.resize_lanczos(picture, 9, 13), picture)
    same = resampling.resize_linear(picture.astype(np.float32), 9, 13)
    np.testing.assert_array_equal(same, picture)


@pytest.mark.parametrize("size", [(5, 8), (31, 17), (60, 90)])
def test_a_flat_picture_stays_flat(size):
    flat = np.full((20, 30, 3), 173, np.uint8)
    assert (resampling.resize_lanczos(flat, *size) == 173).all()
    linear = resampling.resize_linear(flat.astype(np.float32), *size)
    np.testing.assert_allclose(linear, 173, rtol=1e-6)


def test_turning_and_mirroring_commute_with_resizing():
    picture = draw(18, 27)
    whole = resampling.resize_lanczos(picture, 11, 40)
    mirrored = resampling.resize_lanczos(picture[::-1, ::-1], 11, 40)
    np.testing.assert_array_equal(mirrored, whole[::-1, ::-1])
    # Columns go first and are rounded: a turned picture may differ by that.
    turned = resampling.resize_lanczos(np.swapaxes(picture, 0, 1), 40, 11)
    assert np.abs(np.swapaxes(turned, 0, 1).astype(int) - whole).max() <= 1


def test_lanczos_low_passes_what_shrinks():
    """Stripes finer than the small picture can hold become grey, not coarse stripes."""
    stripes = np.tile(np.array([40, 200], np.uint8)[None, :, None], (12, 60, 3))
    small = resampling.resize_lanczos(stripes, 12, 40)[:, 4:-4]
    assert np.abs(small.astype(int) - 120).max() < 12
    aliased = cv2.resize(stripes, (40, 12), interpolation=cv2.INTER_LANCZOS4)[:, 4:-4]
    assert np.abs(aliased.astype(int) - 120).max() > 50


def test_lanczos_shrinks_and_grows_smooth_pictures_without_a_shift():
    picture = draw(48, 64)
    there = resampling.resize_lanczos(picture, 24, 32)
    area = cv2.resize(picture, (32, 24), interpolation=cv2.INTER_AREA)
    assert np.abs(there.astype(int) - area)[2:-2, 2:-2].max() <= 4
    back = resampling.resize_lanczos(there, 48, 64)
    assert np.abs(back.astype(int) - picture)[4:-4, 4:-4].max() <= 4


@pytest.mark.parametrize("size", [(7, 11), (23, 50)])
def test_linear_is_opencvs_bilinear(size):
    picture = draw(15, 22).astype(np.float32) / 255
    expected = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_LINEAR)
    came = resampling.resize_linear(picture, *size)
    np.testing.assert_allclose(came, expected, atol=1e-5)  # weights of 11 bits or so


def test_linear_follows_a_ramp_exactly():
    ramp = np.arange(8, dtype=np.float32)[:, None, None] * np.ones(
        (1, 5, 2), np.float32
    )
    came = resampling.resize_linear(ramp, 16, 5)[1:-1, 0, 0]
    np.testing.assert_allclose(came, np.arange(14) / 2 + 0.25, rtol=1e-6)
