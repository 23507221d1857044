"""RMS norm over the full width, then rotary turns per head, in plain jnp.

With rows x (D wide), gain g, angles a of each pair of adjacent channels of a head:

  (1) y = g x / sqrt(mean(x^2) + eps)
  (2) (y_2k, y_2k+1) turned by a_k

in float32, rounded to the rows' dtype after (1) and after (2).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPS = 1e-6


def norm_rotary(
    x: Float[Array, "B T D"],
    gain: Float[Array, " D"],
    turn: Float[Array, "b T pairs"],
) -> Float[Array, "B T D"]:
    """Return eqs. 1 and 2; heads are `2 pairs` wide."""
    y = rms_norm(x, gain)
    heads = y.reshape(*y.shape[:2], -1, 2 * turn.shape[-1])  # B T N K
    return rotate(heads, turn).reshape(x.shape)


def rms_norm(
    x: Float[Array, "... D"], gain: Float[Array, " D"]
) -> Float[Array, "... D"]:
    """Return eq. 1, over the full width, before heads are split."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + EPS)
    return (y * gain.reshape((1,) * (x.ndim - 1) + gain.shape)).astype(x.dtype)


def rotate(
    x: Float[Array, "B T N K"], turn: Float[Array, "b T pairs"]
) -> Float[Array, "B T N K"]:
    """Return eq. 2."""
    cos, sin = jnp.cos(turn)[:, :, None], jnp.sin(turn)[:, :, None]  # b T 1 pairs
    even, odd = x[..., 0::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
    return turned.reshape(x.shape).astype(x.dtype)
