"""Layers of the Wan2.1 video autoencoder, which are given a video piece by piece.

A layer that looks back keeps the last frames it has seen in the collection `cache`, and
finds them in front of the next piece:

  (1) y = conv([h, x]),   h <- the last frames of [h, x];   h = 0 before the video

so that pieces give what the whole video gives. The first frame of a video is a piece of
its own (`first`). Then one piece is 4 frames, or one latent:

  (2) temporal downsampling leaves the first frame as it is; later it is a convolution
      of kernel 3 and stride 2 over the frame before and the piece;
  (3) temporal upsampling leaves the first latent as it is, and that never enters h;
      later a causal convolution doubles the channels, whose halves are two frames.

Norms take the direction of each pixel's channels:

  (4) y = sqrt(C) g x / max(|x|, 1e-12)

Each layer works in its `dtype`; norms, softmax and sums of attention in float32. Rows
of the picture are constrained to lie on the mesh as tokens do, so that convolutions
trade one row with each neighbour and only keys and values are gathered.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

DType = jax.typing.DTypeLike

# Logical axes (`sharding.LOGICAL_RULES`): rows of pixels are divided as tokens are.
ROWS = ("batch", None, "tokens", None, "width")
WHOLE = ("batch", None, None, None, "width")

LONGEST = 8192  # keys whose scores are in memory at once


def divide_rows(x: Float[Array, "B F Y X C"]) -> Float[Array, "B F Y X C"]:
    """Lay rows on the mesh axis of tokens where rules and a mesh are set."""
    return nn.with_logical_constraint(x, ROWS)


def convolution(
    channels: int,
    kernel: tuple[int, ...],
    dtype: DType,
    *,
    strides: Sequence[int] | None = None,
    padding: Sequence[tuple[int, int]] | str = "VALID",
    name: str,
) -> nn.Conv:
    """Make a convolution that is exact in float32, where devices would round inputs."""
    return nn.Conv(
        channels,
        kernel,
        strides=strides,
        padding=padding,
        dtype=dtype,
        precision="highest" if dtype == jnp.float32 else None,
        name=name,
    )


def causal_convolution(
    module: nn.Module,
    x: Float[Array, "B F Y X C"],
    channels: int,
    dtype: DType,
    *,
    name: str,
) -> Float[Array, "B F Y X D"]:
    """Apply a convolution of 3 x 3 x 3 that sees no later frame (eq. 1).

    Call it in a compact method of `module`, which owns weights and history.
    """
    history = declare_history(module, x, 2, f"{name}_history")
    padding = [(0, 0), (1, 1), (1, 1)]
    conv = convolution(channels, (3, 3, 3), dtype, padding=padding, name=name)
    return conv(look_back(history, x))


def declare_history(
    module: nn.Module,
    x: Float[Array, "B F Y X C"],
    frames: int,
    name: str = "time_conv_history",
) -> nn.Variable:
    """Return h of eq. 1, which holds `frames` frames like those of x."""
    shape = (x.shape[0], frames, *x.shape[2:])
    return module.variable("cache", name, jnp.zeros, shape, x.dtype)


def look_back(
    history: nn.Variable, x: Float[Array, "B F Y X C"]
) -> Float[Array, "B longer Y X C"]:
    """Return [h, x] and remember its end."""
    longer = jnp.concatenate([history.value, x], axis=1)
    history.value = longer[:, -history.value.shape[1] :]
    return longer


class ChannelNorm(nn.Module):
    """Eq. 4."""

    @nn.compact
    def __call__(self, x: Float[Array, "B F Y X C"]) -> Float[Array, "B F Y X C"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        y = x.astype(jnp.float32)
        square = jnp.sum(jnp.square(y), axis=-1, keepdims=True)
        # Not by the root's own gradient, which is infinite where all channels are 0.
        y = y * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
        gain = scale * channels**0.5
        return (y * gain[None, None, None, None]).astype(x.dtype)


class ResidualBlock(nn.Module):
    """Two causal convolutions beside a shortcut."""

    channels: int
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "B F Y X C"]) -> Float[Array, "B F Y X D"]:
        h = nn.silu(ChannelNorm(name="norm_1")(x))
        h = causal_convolution(self, h, self.channels, self.dtype, name="conv_1")
        h = nn.silu(ChannelNorm(name="norm_2")(h))
        h = causal_convolution(self, h, self.channels, self.dtype, name="conv_2")
        if x.shape[-1] != self.channels:
            x = convolution(self.channels, (1, 1, 1), self.dtype, name="shortcut")(x)
        return divide_rows(x + h)


class FrameAttention(nn.Module):
    """Attention of one head among all pixels of one frame, beside a shortcut."""

    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "B F Y X C"]) -> Float[Array, "B F Y X C"]:
        channels = x.shape[-1]
        h = ChannelNorm(name="norm")(x)
        h = convolution(3 * channels, (1, 1), self.dtype, name="to_qkv")(h)
        q, k, v = jnp.split(h, 3, axis=-1)
        k, v = (nn.with_logical_constraint(a, WHOLE) for a in (k, v))
        h = attend(q, k, v)
        return divide_rows(
            x + convolution(channels, (1, 1), self.dtype, name="proj")(h)
        )


def attend(
    q: Float[Array, "B F Y X C"],
    k: Float[Array, "B F Y X C"],
    v: Float[Array, "B F Y X C"],
    longest: int = LONGEST,
) -> Float[Array, "B F Y X C"]:
    """Attend within frames; the softmax meets some rows of keys after the others.

    At 1080p all scores would take 4 GB. Queries keep their place on the mesh.
    """
    height, width = k.shape[2:4]
    rows = max(
        n
        for n in range(1, height + 1)
        if height % n == 0 and n * width <= longest or n == 1
    )
    blocks = tuple(
        rearrange(a, "B F (n y) X C -> n B F (y X) C", y=rows) for a in (k, v)
    )
    exact = {"precision": "highest", "preferred_element_type": jnp.float32}
    scale = q.shape[-1] ** -0.5

    @jax.checkpoint
    def meet(
        carry: tuple[Array, Array, Array], block: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array, Array], None]:
        largest, total, mixed = carry
        k, v = block
        scores = scale * jnp.einsum("BFYXC,BFSC->BFYXS", q, k, **exact)
        # It cancels out of the result, hence has no gradient.
        new = jax.lax.stop_gradient(jnp.maximum(largest, scores.max(-1)))
        weights, fade = jnp.exp(scores - new[..., None]), jnp.exp(largest - new)
        found = jnp.einsum("BFYXS,BFSC->BFYXC", weights.astype(v.dtype), v, **exact)
        total = total * fade + weights.sum(-1)
        return (new, total, mixed * fade[..., None] + found), None

    zeros = jnp.zeros(q.shape, jnp.float32)
    start = (jnp.full_like(zeros[..., 0], -jnp.inf), zeros[..., 0], zeros)
    (_, total, mixed), _ = jax.lax.scan(meet, start, blocks)
    return (mixed / total[..., None]).astype(q.dtype)


class Downsample(nn.Module):
    """Halve rows and columns, then frames if `time` (eq. 2)."""

    time: bool
    dtype: DType

    @nn.compact
    def __call__(
        self, x: Float[Array, "B F Y X C"], *, first: bool
    ) -> Float[Array, "B f y x C"]:
        channels = x.shape[-1]
        x = convolution(
            channels,
            (3, 3),
            self.dtype,
            strides=(2, 2),
            padding=[(0, 1), (0, 1)],
            name="conv",
        )(x)
        if self.time:
            history = declare_history(self, x, 1)
            longer = look_back(history, x)
            if not first:
                x = convolution(
                    channels, (3, 1, 1), self.dtype, strides=(2, 1, 1), name="time_conv"
                )(longer)
        return divide_rows(x)


class Upsample(nn.Module):
    """Double frames if `time` (eq. 3), then rows and columns; halve the channels."""

    time: bool
    dtype: DType

    @nn.compact
    def __call__(
        self, x: Float[Array, "B F Y X C"], *, first: bool
    ) -> Float[Array, "B f y x c"]:
        channels = x.shape[-1]
        if self.time:
            history = declare_history(self, x, 2)
            if not first:
                x = convolution(2 * channels, (3, 1, 1), self.dtype, name="time_conv")(
                    look_back(history, x)
                )
                x = rearrange(x, "B F Y X (two C) -> B (F two) Y X C", two=2)
        x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
        x = convolution(
            channels // 2, (3, 3), self.dtype, padding=[(1, 1), (1, 1)], name="conv"
        )(x)
        return divide_rows(x)
