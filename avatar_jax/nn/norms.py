"""Norms with parameters of their own; `avatar_kernels` has the mathematics."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from avatar_kernels.modulated_norm import EPS, layer_norm
from avatar_kernels.norm_rotary import rms_norm
from jaxtyping import Array, Float


class LayerNorm(nn.Module):
    """Layer norm with learned scale and bias."""

    eps: float = EPS

    @nn.compact
    def vectors(self, x: Float[Array, "... D"]) -> tuple[Array, Array]:
        """Return scale and bias for rows like x, for a norm (of EPS) that does more."""
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        return scale, self.param("bias", nn.initializers.zeros, (width,))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        scale, bias = self.vectors(x)
        y = layer_norm(x.astype(jnp.float32), eps=self.eps)
        return (y * _last(scale, y) + _last(bias, y)).astype(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the full width, before heads are split."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "... D"],
        norm: Callable[[Array, Array], Array] | None = None,
    ) -> Float[Array, "... D"]:
        """Norm rows; `norm`, given rows and gain, replaces it by one that does more."""
        gain = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return (norm or rms_norm)(x, gain)


def _last(vector: Float[Array, " D"], like: Float[Array, "... D"]) -> jax.Array:
    """Give a vector the rank of `like`, so that no rank is promoted in silence."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)
