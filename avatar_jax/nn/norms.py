"""Normalisations, always computed in float32: squares of bf16 lose digits."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LAYER_NORM_EPS = 1e-6  # Wan, TAVR


def layer_norm(
    x: Float[Array, "... D"], *, eps: float = LAYER_NORM_EPS
) -> Float[Array, "... D"]:
    """Subtract the mean and divide by the standard deviation over the last axis."""
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    return y.astype(x.dtype)


def modulate(
    x: Float[Array, "... D"], shift: Float[Array, "... D"], scale: Float[Array, "... D"]
) -> Float[Array, "... D"]:
    """Normalise, then scale and shift as AdaLN does: LN(x) (1 + scale) + shift.

    `shift` and `scale` have the rank of x, with axes of length 1 where they are shared.
    """
    y = layer_norm(x.astype(jnp.float32)) * (1 + scale) + shift
    return y.astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer norm with learned scale and bias."""

    eps: float = LAYER_NORM_EPS

    @nn.compact
    def vectors(self, x: Float[Array, "... D"]) -> tuple[Array, Array]:
        """Return scale and bias for rows like x, for a norm that does more."""
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        return scale, self.param("bias", nn.initializers.zeros, (width,))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        scale, bias = self.vectors(x)
        y = layer_norm(x.astype(jnp.float32), eps=self.eps)
        return (y * _last(scale, y) + _last(bias, y)).astype(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the full width, before heads are split."""

    eps: float = 1e-6

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "... D"],
        then: Callable[[Array, Array], Array] | None = None,
    ) -> Float[Array, "... D"]:
        """Norm rows, or give rows and gain to `then`, which norms and does more."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        if then is not None:
            return then(x, scale)
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return (y * _last(scale, y)).astype(x.dtype)


def _last(vector: Float[Array, " D"], like: Float[Array, "... D"]) -> jax.Array:
    """Give a vector the rank of `like`, so that no rank is promoted in silence."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)
