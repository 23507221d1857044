"""The motion representation stream: codes in, an injection per block.

The stream is a target and a condition at once (Avatar V 2.1). What is injected into
generated rows is the pair (m_t, m^): the noisy codes and the model's own clean
estimate, zero where there is none; reference rows carry the pair (m, m) of their clean
codes. The embedding also knows the codes' own time, that of `Conditions.motion_time` on
generated rows, 0 on reference rows. Convolutions do not cross from one segment of a
reference into the next.

Rows read a reference code by code; how much and how fast its person moves is in no one
code. `Manner` says it, once per reference:

  (1) s = (mean of c; log(deviation of c + e); log(mean |c_f+1 - c_f| + e))
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, Shaped

from avatar_jax.models import audio
from avatar_jax.nn import attention, norms
from avatar_jax.types import FRAMES_PER_LATENT, Reference

KERNEL = 3  # frames of each causal convolution
TINY = 1e-8  # keeps the derivative of the root finite
LEAST = 0.05  # Choice: e of eq. 1, of codes that have a deviation of 1 over all people


class Manner(nn.Module):
    """Embed the statistics of a reference's codes; zeros where they are dropped.

    Choice: statistics, as a few rows of attention average codes, not their squares.
    Without them a small network took over the means of the reference's codes, and
    neither their spread nor their speed.
    """

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, reference: Reference) -> Float[Array, "B D"]:
        """Read eq. 1 over the frames of which a row is valid, changes inside segments.

        Nothing here knows t.
        """
        codes, valid = reference.motion, reference.valid.any((2, 3))
        if reference.motion_valid is not None:
            valid = valid & reference.motion_valid[:, None]
        valid, ids = (
            jnp.repeat(x, FRAMES_PER_LATENT, axis=1)
            for x in (valid, reference.segment_ids)
        )
        mean = _mean(codes, valid)
        spread = jnp.sqrt(_mean(jnp.square(codes - mean[:, None]), valid) + TINY)
        steady = valid[:, 1:] & valid[:, :-1] & (ids[:, 1:] == ids[:, :-1])
        change = _mean(jnp.abs(jnp.diff(codes, axis=1)), steady)
        logs = (jnp.log(x + LEAST) for x in (spread, change))
        said = jnp.concatenate([mean, *logs], -1)
        y = nn.Dense(self.width, dtype=self.dtype, name="enter")(said)
        y = nn.Dense(self.width, dtype=self.dtype, name="mix")(jax.nn.silu(y))
        return jnp.where(valid.any(1)[:, None], y, 0)


class MotionTokens(nn.Module):
    """Two causal convolutions over frames, then four tokens per latent frame.

    Attention does not see the order of the four; a learned slot tells each its place.
    """

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        codes: Float[Array, "B frames Dm"],
        estimate: Float[Array, "B frames Dm"],
        time: Float[Array, "B D"],
        segment_ids: Int[Array, "B F"] | None = None,
    ) -> Float[Array, "B F 4 D"]:
        """Embed 4 (F - 1) + 1 codes (zeros go in front) or 4 F codes.

        Args:
          codes: noisy on generated rows, clean on reference rows.
          estimate: of the clean codes.
          time: embedded.
          segment_ids: of each latent frame; None: all are one.
        """
        pair = jnp.concatenate([codes, estimate], -1)
        missing = -pair.shape[1] % FRAMES_PER_LATENT
        pair = jnp.pad(pair, ((0, 0), (missing, 0), (0, 0)))
        if segment_ids is None:
            segment_ids = jnp.zeros((1, pair.shape[1] // FRAMES_PER_LATENT), int)
        ids = jnp.repeat(segment_ids, FRAMES_PER_LATENT, axis=1)
        y = CausalConvolution(self.width, self.dtype, name="enter")(pair, ids)
        y = jax.nn.silu(y)
        y = CausalConvolution(self.width, self.dtype, name="mix")(y, ids)
        y = y + nn.Dense(self.width, dtype=self.dtype, name="time")(time)[:, None]
        y = rearrange(y, "B (F a) D -> B F a D", a=FRAMES_PER_LATENT)
        shape = (FRAMES_PER_LATENT, self.width)
        slots = self.param("slots", nn.initializers.normal(1.0), shape)
        return y + slots.astype(self.dtype)[None, None]


class CausalConvolution(nn.Module):
    """Look at each frame and the `KERNEL - 1` before it, inside its segment."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "B frames M"], ids: Int[Array, "b frames"]
    ) -> Float[Array, "B frames D"]:
        shape = (KERNEL, x.shape[-1], self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        taps = []
        for back in reversed(range(KERNEL)):
            same = _shift(ids[..., None], back, -1) == ids[..., None]
            taps.append(jnp.where(same, _shift(x, back, 0), 0))
        taps = jnp.stack(taps).astype(self.dtype)
        y = jnp.einsum("kBfm,kmD->BfD", taps, kernel.astype(self.dtype))
        return y + bias.astype(self.dtype)[None, None]


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


def _mean(
    x: Float[Array, "B frames Dm"], valid: Bool[Array, "B frames"]
) -> Float[Array, "B Dm"]:
    """Average over the valid frames; 0 where there are none."""
    count = jnp.maximum(valid.sum(1), 1)[:, None]
    return jnp.where(valid[..., None], x, 0).sum(1) / count


def _shift(
    x: Shaped[Array, "B frames M"], back: int, fill: int
) -> Shaped[Array, "B frames M"]:
    """Move frames later by `back`; what comes in front is `fill`."""
    moved = jnp.pad(x, ((0, 0), (back, 0), (0, 0)), constant_values=fill)
    return moved[:, : x.shape[1]]
