"""The motion representation stream: codes in, an injection per block, codes out.

The stream is a target and a condition at once (Avatar V 2.1). What is injected into
generated rows is the pair (m_t, m^): the noisy codes and the model's own clean
estimate, zero where there is none; reference rows carry the pair (m, m) of their clean
codes. The embedding also knows the codes' own time: t on generated rows, 0 on reference
rows.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from avatar_jax.models import audio
from avatar_jax.nn import attention, norms
from avatar_jax.types import FRAMES_PER_LATENT

KERNEL = 3  # frames of each causal convolution


class MotionTokens(nn.Module):
    """Two causal convolutions over frames, then four tokens per latent frame."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        codes: Float[Array, "B frames Dm"],
        estimate: Float[Array, "B frames Dm"],
        time: Float[Array, "B D"],
    ) -> Float[Array, "B F 4 D"]:
        pair = jnp.concatenate([codes, estimate], -1)
        missing = -pair.shape[1] % FRAMES_PER_LATENT
        pair = jnp.pad(pair, ((0, 0), (missing, 0), (0, 0)))
        y = _causal(self.width, self.dtype, "enter")(pair)
        y = _causal(self.width, self.dtype, "mix")(jax.nn.silu(y))
        y = y + nn.Dense(self.width, dtype=self.dtype, name="time")(time)[:, None]
        return rearrange(y, "B (F a) D -> B F a D", a=FRAMES_PER_LATENT)


class MotionInjection(nn.Module):
    """Cross-attention of each row to the four motion tokens of its own latent frame."""

    width: int
    heads: int
    dtype: jnp.dtype

    def setup(self) -> None:
        self.norm = norms.LayerNorm()
        self.attention = attention.Attention(self.width, self.heads, 0.0, self.dtype)

    def target(
        self, x: Float[Array, "B F P D"], tokens: Float[Array, "B F 4 D"]
    ) -> Float[Array, "B F P D"]:
        """Inject into generated rows."""
        layer = self.attention
        q = layer.queries(self.norm(x))
        return layer.attend(q, layer.keys(tokens), layer.values(tokens))

    def reference(
        self,
        x: Float[Array, "B R D"],
        tokens: Float[Array, "B F 4 D"],
        latent: Int[Array, "B R"],
    ) -> Float[Array, "B R D"]:
        """Inject into reference rows."""
        layer = self.attention
        q = layer.queries(self.norm(x))[:, :, None]
        k, v = (
            audio.gather_latents(a, latent)
            for a in (layer.keys(tokens), layer.values(tokens))
        )
        return layer.attend(q, k, v)[:, :, 0]


class MotionHead(nn.Module):
    """Predict the codes from features pooled over each latent frame."""

    motion_width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B F P D"]) -> Float[Array, "B frames Dm"]:
        """Return four codes per latent frame and one for the first."""
        pooled = norms.layer_norm(x.mean(2))
        out = nn.Dense(
            FRAMES_PER_LATENT * self.motion_width,
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
            name="projection",
        )(pooled)
        codes = rearrange(out, "B F (a Dm) -> B (F a) Dm", a=FRAMES_PER_LATENT)
        return codes[:, FRAMES_PER_LATENT - 1 :]


def _causal(width: int, dtype: jnp.dtype, name: str) -> nn.Conv:
    return nn.Conv(width, (KERNEL,), padding=[(KERNEL - 1, 0)], dtype=dtype, name=name)
