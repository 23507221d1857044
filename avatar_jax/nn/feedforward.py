"""The feed-forward layer of a block."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class FeedForward(nn.Module):
    """Linear, GELU (tanh form), linear."""

    width: int
    mlp_width: int
    out_scale: float  # standard deviation of the last kernel over the usual one
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        y = nn.Dense(self.mlp_width, dtype=self.dtype, name="inner")(x)
        init = nn.initializers.variance_scaling(self.out_scale**2, "fan_in", "normal")
        out = nn.Dense(self.width, dtype=self.dtype, kernel_init=init, name="outer")
        return out(jax.nn.gelu(y))
