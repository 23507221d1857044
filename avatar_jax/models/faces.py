"""The judge of identity: a picture of a face to a unit vector that says who it is."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from avatar_jax.models.sync import Tower

IDENTITY_WIDTH = 64


def to_unit_length(x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    """Scale rows to length 1; a row of zeros stays, with finite gradients."""
    return x / jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-6)


class FaceEmbedder(nn.Module):
    """One small convolutional network: a 64x64 portrait to a unit vector."""

    @nn.compact
    def __call__(self, frames: Float[Array, "B Y X 3"]) -> Float[Array, "B D"]:
        """Embed frames in [-1, 1]; the same person in another scene lies close by."""
        x = Tower((24, 48, 64, 64), side=5, name="tower")(frames)
        return to_unit_length(nn.Dense(IDENTITY_WIDTH, name="embedding")(x))
