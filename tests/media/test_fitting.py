"""Buckets, and pictures that fill them. ~1 s on 2 cores."""

import numpy as np
import pytest

from avatar_jax.media import fitting
from avatar_jax.types import InputError


@pytest.mark.parametrize(
    "size, bucket",
    [
        ((1080, 1920), fitting.LANDSCAPE),
        ((1920, 1080), fitting.PORTRAIT),
        ((500, 500), fitting.LANDSCAPE),
    ],
)
def test_a_bucket_lies_like_the_picture(size, bucket):
    assert fitting.choose_bucket(size) == bucket


def test_a_single_bucket_takes_all_pictures():
    assert fitting.choose_bucket((9, 5), [(16, 32)]) == (16, 32)


@pytest.mark.parametrize("size", [(1080, 1920), (1333, 1000), (700, 700), (300, 1000)])
def test_a_free_bucket_keeps_aspect_and_area(size):
    height, width = fitting.free_bucket(size)
    assert height % fitting.SIDE_UNIT == width % fitting.SIDE_UNIT == 0
    assert height * width == pytest.approx(480 * 896, rel=0.05)
    assert height / width == pytest.approx(size[0] / size[1], rel=0.05)


def test_a_picture_without_pixels_has_no_bucket():
    with pytest.raises(InputError, match="5x0 pixels"):
        fitting.free_bucket((0, 5))


def test_covering_covers_and_touches_one_side():
    rng = np.random.default_rng(0)
    for _ in range(50):
        size, bucket = (tuple(map(int, rng.integers(20, 99, 2))) for _ in range(2))
        height, width = fitting.cover_size(size, bucket)
        assert height >= bucket[0] and width >= bucket[1]
        assert height == bucket[0] or width == bucket[1]


def test_fitting_keeps_the_middle():
    picture = np.zeros((20, 60, 3), np.uint8)
    picture[:, 28:32] = 255
    for fitted in (
        fitting.fit_still(picture, (16, 32)),
        fitting.fit_frame(picture, (16, 32)),
    ):
        assert fitted.shape == (16, 32, 3)
        np.testing.assert_allclose(fitted, fitted[:, ::-1], atol=1e-5)
        assert fitted[:, 16].min() > fitted[:, 3].max()


def test_frames_are_bfloat16_numbers_and_survive_the_way_to_detectors():
    frames = np.random.default_rng(1).integers(0, 256, (3, 20, 30, 3)).astype(np.uint8)
    fitted = fitting.fit_frames(frames, (16, 32))
    unit = fitting.to_unit(fitted)
    back = fitting.to_signed(unit)
    for values in (fitted, unit, back):
        assert values.dtype == np.float32
        np.testing.assert_array_equal(fitting.round_bfloat16(values), values)
    assert 0 <= unit.min() and unit.max() <= 1 and np.abs(back).max() <= 1
    np.testing.assert_allclose(back, fitted, atol=2**-7)  # a step of bfloat16 below 1


def test_pixels_are_cut_off_not_rounded():
    video = np.array([-2, -1, -0.999, 0, 0.9999, 1, 3], np.float32)
    pixels = fitting.to_pixels(np.tile(video[None, :, None], (1, 1, 3)))
    np.testing.assert_array_equal(pixels[0, :, 1], [0, 0, 0, 127, 254, 255, 255])
