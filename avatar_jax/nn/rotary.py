"""Rotary positions over time, rows and columns (RoPE, arXiv 2104.09864; Wan's split).

Adjacent channels (2k, 2k + 1) of a head form a pair, turned by p theta^(-2k / m).
With s = floor(K / 6) the head is split over time, row and column as K - 4s, 2s, 2s
channels (128: 44, 42, 42).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

THETA = 10_000.0


def frequencies(head_dim: int) -> tuple[Float[np.ndarray, " pairs"], ...]:
    """Return the turning speeds of the time, row and column pairs."""
    share = head_dim // 6
    widths = (head_dim - 4 * share, 2 * share, 2 * share)
    return tuple(THETA ** (-np.arange(0, m, 2, dtype=np.float64) / m) for m in widths)


def angles(
    positions: Float[Array, "*batch T 3"], head_dim: int
) -> Float[Array, "*batch T pairs"]:
    """Return the angle of every pair, in radians, for (time, row, column) positions."""
    parts = [
        jnp.einsum("...,p->...p", positions[..., i], speeds.astype(np.float32))
        for i, speeds in enumerate(frequencies(head_dim))
    ]
    return jnp.concatenate(parts, -1)
