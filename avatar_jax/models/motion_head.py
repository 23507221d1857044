"""The head of the motion stream: the codes' velocity, by a transformer of its own.

Codes are a short sequence, one row of a few numbers per frame, with structure over
seconds: glances, nods, blinks. So the head reads frames, not patches: noisy codes with
their estimate, driving speech, and the trunk's generated rows, pooled per latent. The
codes' time and the reference's manner set shift, scale and gate of each block (AdaLN):
how far to trust a noisy code depends on how much and how fast the person moves.

Choice, against model.md's head on pooled rows: it needs the trunk for what pictures
tell, not for the rest, and can learn alone (`FlowMatchingConfig.motion_alone`) at a
small part of the cost. With pooled rows alone sampled codes varied too little.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from avatar_kernels import norm_rotary
from avatar_kernels.modulated_norm import layer_norm, modulate
from einops import rearrange
from jaxtyping import Array, Bool, Float

from avatar_jax.models import audio
from avatar_jax.nn import attention, embeddings, rotary
from avatar_jax.types import FRAMES_PER_LATENT

# Choice: enough to copy a person's codes with 5,000 clips; not tuned.
LAYERS = 2
KERNEL = 5  # frames of the convolution in each block, half of them later ones
TIME_FEATURES = 64


class MotionHead(nn.Module):
    """Predict codes from what is known of them; the module describes the parts."""

    motion_width: int
    width: int
    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        codes: Float[Array, "B frames Dm"],
        estimate: Float[Array, "B frames Dm"],
        t: Float[Array, " B"],
        *,
        manner: Float[Array, "B D"],
        speech: tuple[Float[Array, "B frames Da"], Bool[Array, " B"]] | None,
        pooled: Float[Array, "B F D"],
    ) -> Float[Array, "B frames Dm"]:
        """Return one row per frame.

        Args:
          codes: noisy, clean where the prefix gives them.
          estimate: of the clean codes; zeros where there is none.
          t: of the codes.
          manner: of the reference; zeros without one.
          speech: rows `B frames Da` and whether they are valid, `B`; None: a network
            that does not hear.
          pooled: of the trunk's rows; zeros where the head is alone.
        """
        zero_dense = functools.partial(
            nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.zeros
        )
        frames = codes.shape[1]
        y = nn.Conv(self.width, (KERNEL,), dtype=self.dtype, name="enter")(
            jnp.concatenate([codes, estimate], -1)
        )
        if speech is not None:
            speech_rows = audio.AudioTokens(self.width, self.dtype, name="speech")(
                *speech
            )
            y = y + _per_frame(speech_rows, frames)
        pooled_rows = zero_dense(FRAMES_PER_LATENT * self.width, name="pooled")(
            layer_norm(pooled)
        )
        y = y + _per_frame(
            rearrange(pooled_rows, "B F (a D) -> B F a D", a=FRAMES_PER_LATENT), frames
        )
        time = embeddings.Mlp(self.width, activation=nn.silu, name="time")(
            embeddings.time_features(t, TIME_FEATURES)
        )
        conditioning = jax.nn.silu(time + manner.astype(time.dtype))
        for layer in range(LAYERS):
            name = f"block_{layer}"
            y = _Block(self.width, self.heads, self.dtype, name=name)(y, conditioning)
        return zero_dense(self.motion_width, name="codes")(layer_norm(y))


class _Block(nn.Module):
    """Attention over all frames, then a convolution with a hidden layer."""

    width: int
    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, y: Float[Array, "B frames D"], conditioning: Float[Array, "B D"]
    ) -> Float[Array, "B frames D"]:
        zeros = nn.initializers.zeros
        modulation = nn.Dense(6 * self.width, kernel_init=zeros, name="modulation")
        rows = rearrange(modulation(conditioning), "B (six D) -> six B 1 D", six=6)
        shift, scale, gate, late_shift, late_scale, late_gate = rows
        layer = attention.Attention(self.width, self.heads, 0.0, self.dtype, name="mix")
        x = modulate(y, shift, scale)
        head_dim, places = self.width // self.heads, np.arange(y.shape[1])
        turn = jnp.concatenate(
            [rotary.angles(places, axis, head_dim) for axis in rotary.AXES], -1
        )
        q, k = (
            rearrange(
                norm_rotary.rotate(attention.split_heads(a, self.heads), turn[None]),
                "B frames N K -> B frames (N K)",
            )
            for a in (layer.queries(x), layer.keys(x))
        )
        mixed = (1 + gate) * layer.attend(q, k, layer.values(x))
        y = (y + mixed).astype(y.dtype)
        x = modulate(y, late_shift, late_scale)
        x = nn.Conv(2 * self.width, (KERNEL,), dtype=self.dtype, name="near")(x)
        outer = nn.Dense(self.width, dtype=self.dtype, kernel_init=zeros, name="outer")
        return (y + (1 + late_gate) * outer(jax.nn.silu(x))).astype(y.dtype)


def _per_frame(
    rows: Float[Array, "B F 4 D"], frames: int
) -> Float[Array, "B frames D"]:
    """Return a row per frame; the first latent has one frame, its last."""
    return rearrange(rows, "B F a D -> B (F a) D")[:, -frames:]
