"""Residual, layer norm, scale and shift in plain jnp: the specification.

  (1) x' = x + gate y                             rounded to the rows' dtype
  (2) o  = LN(x') (1 + scale) + shift             in float32, then rounded

LN subtracts the mean over channels and divides by the standard deviation.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPS = 1e-6  # Wan, TAVR


def add_gated(
    x: Float[Array, "B T D"], added: Float[Array, "B T D"], gate: Float[Array, "b 1 D"]
) -> Float[Array, "B T D"]:
    """Return eq. 1."""
    return (x + gate * added).astype(x.dtype)


def modulate(
    x: Float[Array, "... D"], shift: Float[Array, "... D"], scale: Float[Array, "... D"]
) -> Float[Array, "... D"]:
    """Return eq. 2 of rows that are summed already, as AdaLN does.

    `shift` and `scale` have the rank of x, with axes of length 1 where they are shared.
    """
    y = layer_norm(x.astype(jnp.float32)) * (1 + scale) + shift
    return y.astype(x.dtype)


def layer_norm(x: Float[Array, "... D"], *, eps: float = EPS) -> Float[Array, "... D"]:
    """Return LN, in float32: squares of bf16 lose digits."""
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    return y.astype(x.dtype)
