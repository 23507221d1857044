"""Embeddings of times and of features."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

TIME_SCALE = 1000.0  # Wan counts its timesteps 0..1000


def time_features(t: Float[Array, " B"], width: int) -> Float[Array, "B features"]:
    """Return sinusoids of 1000 t, cosine half first, base 10000, in float32."""
    half = width // 2
    speeds = np.exp(-np.log(10_000.0) * np.arange(half) / half).astype(np.float32)
    turn = jnp.einsum("B,f->Bf", TIME_SCALE * t.astype(jnp.float32), speeds)
    return jnp.concatenate([jnp.cos(turn), jnp.sin(turn)], -1)


class Mlp(nn.Module):
    """Two linear layers with a smooth gate between: features to model width."""

    width: int
    activation: Callable[[Array], Array] = jax.nn.gelu  # tanh form, as Wan's of text
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... M"]) -> Float[Array, "... D"]:
        y = nn.Dense(self.width, dtype=self.dtype, name="inner")(x)
        return nn.Dense(self.width, dtype=self.dtype, name="outer")(self.activation(y))
