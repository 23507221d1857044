"""Driving and reference speech as tokens, four per latent frame, and their attention.

Generated latent i sees the 12 tokens of latents i - 1, i, i + 1; slots outside the
chunk are zero keys and values that are attended (TAVR). A reference row sees the four
tokens of its own latent, through low-rank adapters on the same weights.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from avatar_jax.nn import attention, embeddings, norms
from avatar_jax.types import FRAMES_PER_LATENT

WINDOW = 3  # latents that a generated latent hears
SLOTS = WINDOW * FRAMES_PER_LATENT
ADAPTER_NORM_EPS = 1e-5  # torch's default, which TAVR's adapters keep


def fill_speech(
    rows: Float[Array, "B rows M"] | None,
    valid: Bool[Array, " B"] | None,
    shape: tuple[int, int, int],
) -> tuple[Float[Array, "B rows M"], Bool[Array, " B"]]:
    """Return rows of speech and whether each sample's count.

    Args:
      rows: None: no sample has any; zeros of `shape`, which are not valid.
      valid: None: all are.
    """
    if rows is None:
        return jnp.zeros(shape), jnp.zeros(shape[:1], bool)
    return rows, jnp.ones(rows.shape[:1], bool) if valid is None else valid


class AudioTokens(nn.Module):
    """Put learned nulls in front and in place of absent speech, then embed."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, rows: Float[Array, "B rows M"], valid: Bool[Array, " B"]
    ) -> Float[Array, "B F 4 D"]:
        """Embed 4 (F - 1) + 1 rows (three nulls go in front) or 4 F rows."""
        null = self.param("null", nn.initializers.normal(0.02), (rows.shape[-1],))
        null = jnp.broadcast_to(null[None, None], (rows.shape[0], 1, rows.shape[-1]))
        rows = jnp.where(valid[:, None, None], rows, null)
        missing = -rows.shape[1] % FRAMES_PER_LATENT
        rows = jnp.concatenate([jnp.repeat(null, missing, 1), rows], 1)
        tokens = embeddings.Mlp(self.width, dtype=self.dtype, name="embedding")(rows)
        return rearrange(tokens, "B (F a) D -> B F a D", a=FRAMES_PER_LATENT)


class Adapter(nn.Module):
    """Low-rank correction for reference audio: norm, down, exact GELU, up (zero)."""

    width: int
    rank: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        y = norms.LayerNorm(eps=ADAPTER_NORM_EPS, name="norm")(x)
        y = nn.Dense(self.rank, dtype=self.dtype, name="down")(y)
        zeros = nn.initializers.zeros
        up = nn.Dense(self.width, dtype=self.dtype, kernel_init=zeros, name="up")
        return up(jax.nn.gelu(y, approximate=False))


class AudioAttention(nn.Module):
    """Cross-attention to speech, for generated rows and for reference rows."""

    width: int
    heads: int
    adapter_rank: int | None  # None: no reference rows
    dtype: jnp.dtype

    def setup(self) -> None:
        self.norm = norms.LayerNorm()
        # Zero output: a parent without speech is left as it was at step 0.
        self.attention = attention.Attention(self.width, self.heads, 0.0, self.dtype)
        if self.adapter_rank is not None:
            rank = (self.width, self.adapter_rank, self.dtype)
            self.adapter_q, self.adapter_k = Adapter(*rank), Adapter(*rank)
            self.adapter_v = Adapter(*rank)

    def target(
        self,
        x: Float[Array, "B F P D"],
        tokens: Float[Array, "B F 4 D"],
        slots: Float[Array, "12 D"],
    ) -> Float[Array, "B F P D"]:
        """Let generated rows hear their window."""
        k = _window(self.attention.keys(tokens)) + slots.astype(x.dtype)[None, None]
        v = _window(self.attention.values(tokens))
        return self.attention.attend(self.attention.queries(self.norm(x)), k, v)

    def reference(
        self,
        x: Float[Array, "B R D"],
        tokens: Float[Array, "B F 4 D"],
        slots: Float[Array, "4 D"],
        latent: Int[Array, "B R"],
    ) -> Float[Array, "B R D"]:
        """Let each reference row hear its own latent."""
        y = self.norm(x)
        q = self.attention.queries(y, self.adapter_q(y))
        k = self.attention.keys(tokens, self.adapter_k(tokens))
        k = k + slots.astype(x.dtype)[None, None]
        v = self.attention.values(tokens) + self.adapter_v(tokens)
        k, v = (gather_latents(a, latent) for a in (k, v))  # B R 4 D
        return self.attention.attend(q[:, :, None], k, v)[:, :, 0]


def gather_latents(
    tokens: Float[Array, "B F a D"], latent: Int[Array, "B R"]
) -> Float[Array, "B R a D"]:
    """Give each row the tokens of its latent frame."""
    return jnp.take_along_axis(tokens, latent[:, :, None, None], axis=1)


def _window(tokens: Float[Array, "B F 4 D"]) -> Float[Array, "B F 12 D"]:
    padded = jnp.pad(tokens, ((0, 0), (1, 1), (0, 0), (0, 0)))
    frames = tokens.shape[1]
    return jnp.concatenate([padded[:, i : i + frames] for i in range(WINDOW)], 2)
