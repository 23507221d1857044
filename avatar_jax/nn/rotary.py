"""Rotary positions over time, rows and columns (RoPE, arXiv 2104.09864; Wan's split).

Adjacent channels (2k, 2k + 1) of a head form a pair, turned by p theta^(-2k / m).
With s = floor(K / 6) the head is split over time, row and column as K - 4s, 2s, 2s
channels (128: 44, 42, 42).

Positions are known on the host, so angles are made there in float64 and brought to
[-pi, pi] before they become float32: the product of position 260 in float32 is off by
1e-5, its remainder by 1e-7. The device only picks and spreads rows of these tables.
"""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Float64, Num

THETA = 10_000.0
TIME, ROW, COLUMN = AXES = range(3)


def exact_angles(
    positions: Num[np.ndarray, " P"], axis: int, head_dim: int
) -> Float64[np.ndarray, "P pairs"]:
    """Return the angle of every pair of one axis, in radians, as it is."""
    share = head_dim // 6
    width = head_dim - 4 * share if axis == TIME else 2 * share
    speeds = THETA ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    return positions.astype(np.float64)[:, None] * speeds[None]


def angles(
    positions: Num[np.ndarray, " P"], axis: int, head_dim: int
) -> Float[np.ndarray, "P pairs"]:
    """Return angles within half a turn of 0, in float32."""
    turned = exact_angles(positions, axis, head_dim)
    return (np.remainder(turned + np.pi, 2 * np.pi) - np.pi).astype(np.float32)


def grid_angles(
    times: Float[Array | np.ndarray, "*batch F time"],
    rows: int,
    columns: int,
    scale: float,
    head_dim: int,
) -> Float[Array, "*batch T pairs"]:
    """Return the angles of every patch, frame by frame, patch row by patch row.

    Args:
      times: angles of the frames' temporal positions, of `angles`.
      rows: of the patch grid.
      columns: of the patch grid.
      scale: stretch of rows and columns, 720 / (short side in pixels), so that all
        resolutions share one range.
      head_dim: channels per head.
    """
    down = angles(scale * np.arange(rows), ROW, head_dim)
    across = angles(scale * np.arange(columns), COLUMN, head_dim)
    grid = (*times.shape[:-1], rows, columns)
    parts = times[..., None, None, :], down[:, None], across
    spread = [jnp.broadcast_to(part, (*grid, part.shape[-1])) for part in parts]
    return rearrange(jnp.concatenate(spread, -1), "... F h w p -> ... (F h w) p")
