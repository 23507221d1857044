"""Fit stills and frames to a bucket: the size, in pixels, that a network works at.

A picture is scaled until it covers the bucket and is cut around its middle. The steps
in bfloat16 are those that TAVR's weights were trained behind; values stay float32
arrays that hold bfloat16 numbers.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Shaped, UInt8

from avatar_jax.media import resampling
from avatar_jax.types import InputError

Size = tuple[int, int]  # height, width; pixels

LANDSCAPE: Size = (480, 896)
PORTRAIT: Size = (896, 480)
SIDE_UNIT = 16  # pixels; sides of buckets are multiples: a patch of 2 x 2 latents


def choose_bucket(size: Size, buckets: Sequence[Size] = (LANDSCAPE, PORTRAIT)) -> Size:
    """Choose the bucket that lies like the picture; the first one that does.

    A square picture counts as landscape. A single bucket is for all pictures.
    """
    upright = size[0] > size[1]
    alike = [bucket for bucket in buckets if (bucket[0] > bucket[1]) == upright]
    return (alike or list(buckets))[0]


def free_bucket(size: Size, *, pixels: int = 480 * 896, unit: int = SIDE_UNIT) -> Size:
    """Make the bucket of about `pixels` that has the aspect ratio of the picture.

    Its sides are the multiples of `unit` nearest to that. Choice: TAVR itself knows two
    buckets; its rotary tables do not mind others.

    Raises:
      InputError: a picture without pixels.
    """
    height, width = size
    if min(size) < 1:
        raise InputError(f"expected a picture, came one of {width}x{height} pixels.")
    rows = math.sqrt(pixels * height / width)
    sides = (rows, rows * width / height)
    return tuple(max(unit, round(side / unit) * unit) for side in sides)


def cover_size(size: Size, bucket: Size) -> Size:
    """Return the (height, width) at which a picture just covers the bucket."""
    if size[0] / size[1] < bucket[0] / bucket[1]:
        return bucket[0], round(size[1] * bucket[0] / size[0])
    return round(size[0] * bucket[1] / size[1]), bucket[1]


def fit_still(
    still: UInt8[np.ndarray, "Y X 3"], bucket: Size
) -> UInt8[np.ndarray, "Y2 X2 3"]:
    """Fit a still by Lanczos in two passes, to the doubled bucket and to the bucket."""
    for factor in (2, 1):
        size = bucket[0] * factor, bucket[1] * factor
        still = resampling.resize_lanczos(still, *cover_size(still.shape[:2], size))
        still = cut_middle(still, size)
    return still


def fit_frame(
    frame: UInt8[np.ndarray, "Y X 3"], bucket: Size
) -> Float32[np.ndarray, "Y2 X2 3"]:
    """Fit a frame of video by bilinear interpolation; values in [0, 1]."""
    frame = frame.astype(np.float32) / np.float32(255)
    size = cover_size(frame.shape[:2], bucket)
    return cut_middle(resampling.resize_linear(frame, *size), bucket)


def fit_frames(
    frames: UInt8[np.ndarray, "frames Y X 3"], bucket: Size
) -> Float32[np.ndarray, "frames Y2 X2 3"]:
    """Fit frames of video and round as TAVR does: bfloat16 values in [-1, 1]."""
    fitted = np.stack([round_bfloat16(fit_frame(frame, bucket)) for frame in frames])
    return round_bfloat16(round_bfloat16(fitted - np.float32(0.5)) / np.float32(0.5))


def cut_middle(
    picture: Shaped[np.ndarray, "Y X 3"], size: Size
) -> Shaped[np.ndarray, "Y2 X2 3"]:
    """Cut the middle out of a picture that covers the size."""
    top, left = (
        (side - cut) // 2 for side, cut in zip(picture.shape, size, strict=False)
    )
    return picture[top : top + size[0], left : left + size[1]]


def to_unit(
    frames: Float32[np.ndarray, "frames Y X 3"],
) -> Float32[np.ndarray, "frames Y X 3"]:
    """Take bfloat16 values from [-1, 1] to [0, 1], as detectors read them."""
    return round_bfloat16(round_bfloat16(frames + np.float32(1)) / np.float32(2))


def to_signed(
    frames: Float32[np.ndarray, "frames Y X 3"],
) -> Float32[np.ndarray, "frames Y X 3"]:
    """Take bfloat16 values from [0, 1] to [-1, 1], as codecs read them."""
    signed = round_bfloat16(round_bfloat16(frames * np.float32(2)) - np.float32(1))
    return np.clip(signed, -1, 1)


def round_bfloat16(values: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """Round to bfloat16 numbers, half to even."""
    return values.astype(jnp.bfloat16).astype(np.float32)


def to_pixels(
    video: Float32[np.ndarray, "... Y X 3"],
) -> UInt8[np.ndarray, "... Y X 3"]:
    """Turn values in [-1, 1] into 8-bit pixels by cutting off, as TAVR does."""
    levels = (np.clip(video, -1, 1) + np.float32(1)) * np.float32(0.5)
    return (levels * np.float32(255)).astype(np.uint8)
