"""wav2vec 2.0 (arXiv 2006.11477): 16 kHz speech to hidden states at 50 Hz.

Seven convolutions, a projection, a positional convolution and transformer layers, in
the two layouts that are published:

  LARGE  layer norm after every convolution, norms before each sublayer (xlsr-53)
  BASE   group norm over time after the first convolution only, norms after sublayers

State 0 enters the first layer, state i leaves layer i; the last state of LARGE has had
the final norm. A clip may be padded: samples behind its end change nothing, group norm
and positional convolution included.
"""

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from avatar_jax.nn import norms

_EPS = 1e-5  # of every norm here


@dataclasses.dataclass(frozen=True)
class Wav2Vec2Config:
    """Sizes and layout; the defaults are LARGE, 24 layers of width 1024."""

    width: int = 1024
    heads: int = 16
    mlp_width: int = 4096
    layers: int = 24
    conv_widths: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = True
    conv_norm: Literal["layer", "group"] = "layer"
    norm_first: bool = True  # norms before sublayers, one more behind all layers
    positional_kernel: int = 128
    positional_groups: int = 16
    dtype: Literal["float32", "bfloat16"] = "float32"  # of products; states are float32

    def __post_init__(self) -> None:
        if self.conv_norm not in ("layer", "group"):
            raise ValueError(f"conv_norm={self.conv_norm!r}; use layer or group.")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype={self.dtype!r}; use float32 or bfloat16.")
        convs = self.conv_widths, self.conv_kernels, self.conv_strides
        if len({len(values) for values in convs}) > 1:
            raise ValueError(f"convolutions {convs} are of different number.")
        if self.width % self.heads or self.width % self.positional_groups:
            raise ValueError(
                f"width={self.width} must divide into {self.heads} heads and "
                f"{self.positional_groups} positional groups."
            )

    @property
    def stride(self) -> int:
        """Samples from row to row."""
        return math.prod(self.conv_strides)

    @property
    def precision(self) -> jax.lax.Precision:
        """Of products: float32 means float32, on every device."""
        exact = self.dtype == "float32"
        return jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT

    def count_rows(
        self, samples: int | Int[Array, " B"], *, convs: int | None = None
    ) -> int | Int[Array, " B"]:
        """Count the rows of a clip after all convolutions, or the first few.

        Below one window of the convolutions the count is 0 or negative.
        """
        shapes = zip(self.conv_kernels, self.conv_strides, strict=True)
        for kernel, stride in list(shapes)[:convs]:
            samples = (samples - kernel) // stride + 1
        return samples


LARGE = Wav2Vec2Config()
BASE = Wav2Vec2Config(
    width=768,
    heads=12,
    mlp_width=3072,
    layers=12,
    conv_bias=False,
    conv_norm="group",
    norm_first=False,
)


class Wav2Vec2(nn.Module):
    """See the module's docstring; layers are stacked along a leading axis, scanned."""

    cfg: Wav2Vec2Config

    @nn.compact
    def __call__(
        self,
        wave: Float[Array, "B samples"],
        length: Int[Array, " B"],
        chosen: tuple[int, ...],
    ) -> Float[Array, "chosen B T D"]:
        """Return the chosen hidden states.

        Args:
          wave: of zero mean and unit variance, padded with anything.
          length: samples before the padding; rows of padding mean nothing.
          chosen: states 0 to `layers`; negative ones count from the end.
        """
        cfg = self.cfg
        features = _Features(cfg, name="features")(wave, length)
        y = norms.LayerNorm(_EPS, name="projection_norm")(features)
        x = _dense(cfg, cfg.width, "projection")(y).astype(jnp.float32)
        valid = _mark_valid(cfg.count_rows(length), x.shape[1])
        x = jnp.where(valid[..., None], x, 0)  # as if the clip ended there
        x = x + _PositionalConvolution(cfg, name="positions")(x)
        norm = norms.LayerNorm(_EPS, name="norm")
        if not cfg.norm_first:
            x = norm(x)
        layers = nn.scan(
            _Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=cfg.layers,
        )
        last, states = layers(cfg, name="layers")(x, valid)
        if cfg.norm_first:
            last = norm(last)
        states = [x, *states[:-1], last]
        return jnp.stack([states[index] for index in chosen])


class _Features(nn.Module):
    """The convolutions: a wave to rows at 50 Hz."""

    cfg: Wav2Vec2Config

    @nn.compact
    def __call__(
        self, wave: Float[Array, "B samples"], length: Int[Array, " B"]
    ) -> Float[Array, "B T C"]:
        cfg, x = self.cfg, wave[..., None]
        shapes = zip(cfg.conv_widths, cfg.conv_kernels, cfg.conv_strides, strict=True)
        for i, (width, kernel, stride) in enumerate(shapes):
            x = nn.Conv(
                width,
                (kernel,),
                (stride,),
                padding="VALID",
                use_bias=cfg.conv_bias,
                dtype=jnp.dtype(cfg.dtype),
                precision=cfg.precision,
                name=f"conv_{i}",
            )(x)
            if cfg.conv_norm == "layer":
                x = norms.LayerNorm(_EPS, name=f"norm_{i}")(x)
            elif i == 0:
                valid = _mark_valid(cfg.count_rows(length, convs=1), x.shape[1])
                x = _TimeNorm(name="norm_0")(x, valid)
            x = jax.nn.gelu(x, approximate=False)
        return x


class _TimeNorm(nn.Module):
    """Group norm with one channel per group: over the valid rows of a clip."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T C"], valid: Bool[Array, "B T"]
    ) -> Float[Array, "B T C"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        y, rows = x.astype(jnp.float32), valid[..., None]
        count = jnp.maximum(rows.sum(1, keepdims=True), 1)
        y = y - jnp.where(rows, y, 0).sum(1, keepdims=True) / count
        variance = jnp.square(jnp.where(rows, y, 0)).sum(1, keepdims=True) / count
        y = y * jax.lax.rsqrt(variance + _EPS)
        return (y * scale[None, None] + bias[None, None]).astype(x.dtype)


class _PositionalConvolution(nn.Module):
    """A wide grouped convolution; each tap's weights have norm `scale`.

    An even kernel sees one row more before than after.
    """

    cfg: Wav2Vec2Config

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        cfg, taps = self.cfg, self.cfg.positional_kernel
        shape = (taps, cfg.width // cfg.positional_groups, cfg.width)
        direction = self.param("direction", nn.initializers.lecun_normal(), shape)
        scale = self.param("scale", nn.initializers.ones, (taps,))
        bias = self.param("bias", nn.initializers.zeros, (cfg.width,))
        direction = direction.astype(jnp.float32)
        size = jnp.sqrt(jnp.square(direction).sum((1, 2)))
        kernel = direction * (scale / size)[:, None, None]
        dtype = jnp.dtype(cfg.dtype)
        y = jax.lax.conv_general_dilated(
            x.astype(dtype),
            kernel.astype(dtype),
            window_strides=(1,),
            padding=((taps // 2, (taps - 1) // 2),),
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=cfg.positional_groups,
            precision=cfg.precision,
        )
        y = jax.nn.gelu(y + bias[None, None].astype(dtype), approximate=False)
        return y.astype(jnp.float32)


class _Layer(nn.Module):
    """Attention and feed-forward, each with its residual and its norm."""

    cfg: Wav2Vec2Config

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], valid: Bool[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
        attention = _Attention(self.cfg, name="attention")
        feedforward = _FeedForward(self.cfg, name="feedforward")
        first = norms.LayerNorm(_EPS, name="attention_norm")
        second = norms.LayerNorm(_EPS, name="feedforward_norm")
        if self.cfg.norm_first:
            x = x + attention(first(x), valid)
            x = x + feedforward(second(x))
        else:
            x = first(x + attention(x, valid))
            x = second(x + feedforward(x))
        return x, x


class _Attention(nn.Module):
    """Every row attends to all valid rows; softmax in float32."""

    cfg: Wav2Vec2Config

    @nn.compact
    def __call__(
        self, y: Float[Array, "B T D"], valid: Bool[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        cfg = self.cfg
        q, k, v = (
            rearrange(
                _dense(cfg, cfg.width, name)(y), "B T (N K) -> B T N K", N=cfg.heads
            )
            for name in "qkv"
        )
        scores = jnp.einsum(
            "BTNK,BSNK->BNTS",
            q * q.shape[-1] ** -0.5,
            k,
            precision=cfg.precision,
            preferred_element_type=jnp.float32,
        )
        scores = jnp.where(valid[:, None, None], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, -1).astype(v.dtype)
        mixed = jnp.einsum("BNTS,BSNK->BTNK", weights, v, precision=cfg.precision)
        mixed = rearrange(mixed, "B T N K -> B T (N K)")
        return _dense(cfg, cfg.width, "o")(mixed).astype(jnp.float32)


class _FeedForward(nn.Module):
    """Linear, exact GELU, linear."""

    cfg: Wav2Vec2Config

    @nn.compact
    def __call__(self, y: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        inner = _dense(self.cfg, self.cfg.mlp_width, "inner")(y)
        outer = _dense(self.cfg, self.cfg.width, "outer")
        return outer(jax.nn.gelu(inner, approximate=False)).astype(jnp.float32)


def _dense(cfg: Wav2Vec2Config, width: int, name: str) -> nn.Dense:
    dtype, precision = jnp.dtype(cfg.dtype), cfg.precision
    return nn.Dense(width, dtype=dtype, precision=precision, name=name)


def _mark_valid(rows: Int[Array, " B"], padded: int) -> Bool[Array, "B T"]:
    return jnp.arange(padded)[None] < rows[:, None]
