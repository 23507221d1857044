"""Resize pictures by the rules of the tools that published weights were trained with.

`resize_lanczos` is Pillow's: Lanczos of three lobes, widened where a picture shrinks,
columns first, then rows, each with weights of 22 bits and results of 8. OpenCV's
Lanczos does not widen and would alias. `resize_linear` is torch's: four neighbours,
half-pixel centres, not widened, in float32 with the order of its multiply-adds.
"""

import numpy as np
from jaxtyping import Float32, Int, Int64, UInt8

_LOBES = 3
_BITS = 22  # of a weight, after the point


def resize_lanczos(
    picture: UInt8[np.ndarray, "Y X 3"], height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Resize an 8-bit picture by Lanczos; what shrinks is low-passed first."""
    columns = _filter_rows(np.swapaxes(picture, 0, 1), width)
    return np.ascontiguousarray(_filter_rows(np.swapaxes(columns, 0, 1), height))


def resize_linear(
    picture: Float32[np.ndarray, "Y X c"], height: int, width: int
) -> Float32[np.ndarray, "height width c"]:
    """Resize a picture by bilinear interpolation, half-pixel centres, no low-pass."""
    above, below, low, high = _neighbours(picture.shape[0], height)
    left, right, near, far = _neighbours(picture.shape[1], width)
    above, below = above[:, None], below[:, None]
    low, high = low[:, None, None], high[:, None, None]
    near, far = near[:, None], far[:, None]
    sums = low * far * picture[above, right]
    sums = _multiply_add(low * near, picture[above, left], sums)
    sums = _multiply_add(high * near, picture[below, left], sums)
    return _multiply_add(high * far, picture[below, right], sums)


def _filter_rows(
    picture: UInt8[np.ndarray, "rows others 3"], count: int
) -> UInt8[np.ndarray, "count others 3"]:
    if len(picture) == count:
        return picture
    index, weights = _lanczos_taps(len(picture), count)
    sums = np.full((count, *picture.shape[1:]), 1 << (_BITS - 1), np.int64)  # rounds
    for rows, weight in zip(index.T, weights.T, strict=True):
        sums += picture[rows] * weight[:, None, None]
    return np.clip(sums >> _BITS, 0, 255).astype(np.uint8)


def _lanczos_taps(
    rows: int, count: int
) -> tuple[Int[np.ndarray, "count taps"], Int64[np.ndarray, "count taps"]]:
    """Say which rows make each of `count` rows, and by which weights of `_BITS`."""
    step = rows / count
    widened = max(step, 1.0)
    centres = (np.arange(count) + 0.5) * step
    first = np.maximum((centres - _LOBES * widened + 0.5).astype(int), 0)
    stop = np.minimum((centres + _LOBES * widened + 0.5).astype(int), rows)
    index = first[:, None] + np.arange((stop - first).max())
    away = (index + 0.5 - centres[:, None]) / widened
    used = (index < stop[:, None]) & (np.abs(away) < _LOBES)
    weights = np.where(used, np.sinc(away) * np.sinc(away / _LOBES), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    exact = np.floor(weights * (1 << _BITS) + 0.5).astype(np.int64)
    return np.minimum(index, rows - 1), exact


def _neighbours(rows: int, count: int) -> tuple:
    """Return the rows before and after each of `count` rows, and their two weights."""
    step = np.float32(rows) / np.float32(count)
    middles = np.arange(count, dtype=np.float32) + np.float32(0.5)
    places = _multiply_add(step, middles, np.float32(-0.5))
    places = np.maximum(places, np.float32(0))
    before = places.astype(int)
    far = places - before.astype(np.float32)
    return before, np.minimum(before + 1, rows - 1), np.float32(1) - far, far


def _multiply_add(
    a: Float32[np.ndarray, "..."] | np.float32,
    b: Float32[np.ndarray, "..."],
    c: Float32[np.ndarray, "..."] | np.float32,
) -> Float32[np.ndarray, "..."]:
    """Return a b + c rounded once: a product of float32 is exact in float64."""
    return (np.multiply(a, b, dtype=np.float64) + c).astype(np.float32)
