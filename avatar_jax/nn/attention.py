"""Attention layers: projections with norms; the products are the caller's choice."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from avatar_jax.nn import norms


def output_init(scale: float) -> jax.nn.initializers.Initializer:
    """Return the initialiser of an output projection; scale 0 gives zeros."""
    if scale == 0:
        return nn.initializers.zeros
    return nn.initializers.variance_scaling(scale**2, "fan_in", "normal")


def split_heads(x: Float[Array, "... D"], heads: int) -> Float[Array, "... N K"]:
    """Split the width over heads."""
    return rearrange(x, "... (N K) -> ... N K", N=heads)


class Attention(nn.Module):
    """Query, key, value and output projections; RMS norm on q and k over full width.

    `attend` takes keys and values of any leading shape, so that audio (a window per
    latent), motion (4 tokens per latent) and the motion head share it.
    """

    width: int
    heads: int
    out_scale: float  # 0: the layer adds nothing until it has learnt
    dtype: jnp.dtype

    def setup(self) -> None:
        def dense(init: jax.nn.initializers.Initializer) -> nn.Dense:
            return nn.Dense(self.width, dtype=self.dtype, kernel_init=init)

        init = nn.initializers.lecun_normal()
        self.q, self.k, self.v = dense(init), dense(init), dense(init)
        self.o = dense(output_init(self.out_scale))
        self.norm_q, self.norm_k = norms.RMSNorm(), norms.RMSNorm()

    def queries(
        self,
        x: Float[Array, "... D"],
        extra: Float[Array, "... D"] | None = None,
        norm: Callable[[Array, Array], Array] | None = None,
    ) -> Float[Array, "... D"]:
        """Project to normed queries; `extra` is added before the norm.

        `norm` replaces the norm by one that does more; it is given rows and gain.
        """
        q = self.q(x)
        return self.norm_q(q if extra is None else q + extra, norm)

    def keys(
        self,
        c: Float[Array, "... M"],
        extra: Float[Array, "... D"] | None = None,
        norm: Callable[[Array, Array], Array] | None = None,
    ) -> Float[Array, "... D"]:
        """Project to normed keys; see `queries`."""
        k = self.k(c)
        return self.norm_k(k if extra is None else k + extra, norm)

    def values(self, c: Float[Array, "... M"]) -> Float[Array, "... D"]:
        """Project to values."""
        return self.v(c)

    def output(self, mixed: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Project what the heads have mixed back to the model."""
        return self.o(mixed)

    def attend(
        self,
        q: Float[Array, "*batch T D"],
        k: Float[Array, "*batch S D"],
        v: Float[Array, "*batch S D"],
    ) -> Float[Array, "*batch T D"]:
        """Softmax over S in float32, no mask, and project."""
        q, k, v = (split_heads(a, self.heads) for a in (q, k, v))
        scores = jnp.einsum(
            "...TNK,...SNK->...NTS", q, k, preferred_element_type=jnp.float32
        )
        weights = jax.nn.softmax(scores * q.shape[-1] ** -0.5, -1).astype(v.dtype)
        mixed = jnp.einsum("...NTS,...SNK->...TNK", weights, v)
        return self.o(rearrange(mixed, "... N K -> ... (N K)"))
