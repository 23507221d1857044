"""The umT5 text encoder (arXiv 2304.09151), which Wan2.1 and TAVR are prompted by.

With rows x of one prompt, in each of the stacked layers:

  (1) x' = x + W_o sum_s softmax_s(q . k_s + b[bucket(s - t)]) v_s    q, k, v of RMS(x)
  (2) o  = x' + W_2 (GELU(W_g y) W_1 y)                               y = RMS(x')

No bias vectors, no 1/sqrt(head_dim), tanh GELU, and a table b of distances in every
layer. Rows stay float32 between layers in bfloat16 too: they grow large with depth.
"""

import dataclasses
import functools
import logging
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from avatar_jax.models import prompts as prompt_text
from avatar_jax.models.tokenizer import Tokenizer
from avatar_jax.nn import norms
from avatar_jax.types import InputError

SHORTEST = 32  # tokens; a prompt is padded to a power of two from here on
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class UMT5Config:
    """Sizes of the encoder; the defaults are umT5-xxl's, 5.68 B parameters."""

    vocabulary: int = 256_384
    width: int = 4096
    heads: int = 64
    head_dim: int = 64
    mlp_width: int = 10_240
    layers: int = 24
    buckets: int = 32  # of distances, half of them for keys after the query
    farthest: int = 128  # tokens; all beyond share a bucket
    dtype: Literal["float32", "bfloat16"] = "float32"  # of products; params keep theirs

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype={self.dtype!r}; use float32 or bfloat16.")
        if self.buckets % 4 or self.farthest <= self.buckets // 4:
            raise ValueError(
                f"buckets={self.buckets}, farthest={self.farthest}; use a multiple of "
                "4, and a distance beyond a quarter of it."
            )

    @property
    def precision(self) -> jax.lax.Precision:
        """Of products: float32 means float32, on every device."""
        exact = self.dtype == "float32"
        return jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT


@dataclasses.dataclass(frozen=True)
class UMT5Encoder:
    """Prompts to rows, zero behind the last token: a `text.TextEncoder`.

    Choice: a prompt of more than `length` tokens is cut there, with a warning in the
    log, as Wan and TAVR do (they say nothing).

    Attributes:
      params: of `UMT5`, on the device that is to encode; bfloat16 will do (11 GB).
      length: rows L of every prompt.
    """

    cfg: UMT5Config
    params: dict
    tokenizer: Tokenizer
    length: int = 512

    @property
    def width(self) -> int:
        return self.cfg.width

    def __call__(self, prompts: list[str]) -> Float[np.ndarray, "B L D"]:
        texts = [prompt_text.clean(prompt) for prompt in prompts]
        encoded = {text: self._encode(text) for text in dict.fromkeys(texts)}
        rows = np.zeros((len(texts), self.length, self.width), np.float32)
        for row, text in zip(rows, texts, strict=True):
            row[: len(encoded[text])] = encoded[text]
        return rows

    def _encode(self, text: str) -> Float[np.ndarray, "tokens D"]:
        """Encode one prompt alone, so that its rows do not depend on the others."""
        ids = self._read_ids(text)
        padded = max(SHORTEST, 1 << (len(ids) - 1).bit_length())
        valid = np.arange(min(padded, self.length)) < len(ids)
        row = np.zeros(valid.shape, np.int32)
        row[: len(ids)] = ids
        out = encode_tokens(self.cfg, self.params, row[None], valid[None])
        return np.asarray(out)[0, : len(ids)]

    def _read_ids(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text)
        if len(ids) >= self.length:
            kept, came = self.length - 1, len(ids)
            _log.warning("prompt of %d tokens cut to %d: %.40r...", came, kept, text)
            ids = ids[:kept]
        ids = [*ids, self.tokenizer.end]
        if max(ids) >= self.cfg.vocabulary:
            raise InputError(
                f"expected tokens below {self.cfg.vocabulary}, came {max(ids)}: the "
                "tokenizer belongs to another model; give the one of this text encoder."
            )
        return ids


@functools.partial(jax.jit, static_argnums=0)
def encode_tokens(
    cfg: UMT5Config,
    params: dict,
    ids: Int[Array, "B L"] | Int[np.ndarray, "B L"],
    valid: Bool[Array, "B L"] | Bool[np.ndarray, "B L"],
) -> Float[Array, "B L D"]:
    """Run the network, compiled once per shape; see `UMT5`."""
    return UMT5(cfg).apply({"params": params}, ids, valid)


class UMT5(nn.Module):
    """See the module's docstring; layers are stacked along a leading axis, scanned."""

    cfg: UMT5Config

    @nn.compact
    def __call__(
        self, ids: Int[Array, "B L"], valid: Bool[Array, "B L"]
    ) -> Float[Array, "B L D"]:
        """Encode tokens; rows where not `valid` change no other and mean nothing."""
        cfg = self.cfg
        table = self.param(
            "embedding", nn.initializers.normal(1.0), (cfg.vocabulary, cfg.width)
        )
        x = jnp.take(table, ids, axis=0).astype(jnp.float32)
        buckets = jnp.asarray(distance_buckets(ids.shape[1], cfg))
        layers = nn.scan(
            _Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=cfg.layers,
        )
        x, _ = layers(cfg, name="layers")(x, valid, buckets)
        return norms.RMSNorm(name="norm")(x)


class _Layer(nn.Module):
    """Eqs. 1 and 2."""

    cfg: UMT5Config

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        valid: Bool[Array, "B L"],
        buckets: Int[Array, "L L"],
    ) -> tuple[Float[Array, "B L D"], None]:
        y = norms.RMSNorm(name="attention_norm")(x)
        x = x + _Attention(self.cfg, name="attention")(y, valid, buckets)
        y = norms.RMSNorm(name="feedforward_norm")(x)
        x = x + _FeedForward(self.cfg, name="feedforward")(y)
        return x, None


class _Attention(nn.Module):
    """Eq. 1 without the residual; softmax in float32."""

    cfg: UMT5Config

    @nn.compact
    def __call__(
        self,
        y: Float[Array, "B L D"],
        valid: Bool[Array, "B L"],
        buckets: Int[Array, "L L"],
    ) -> Float[Array, "B L D"]:
        cfg, inner = self.cfg, self.cfg.heads * self.cfg.head_dim
        q, k, v = (
            rearrange(
                _dense(cfg, inner, name)(y), "B L (N K) -> B L N K", K=cfg.head_dim
            )
            for name in "qkv"
        )
        table = self.param(
            "distance", nn.initializers.normal(1.0), (cfg.buckets, cfg.heads)
        )
        bias = rearrange(table[buckets], "T S N -> N T S").astype(jnp.float32)
        scores = bias[None] + jnp.einsum(
            "BTNK,BSNK->BNTS",
            q,
            k,
            precision=cfg.precision,
            preferred_element_type=jnp.float32,
        )
        scores = jnp.where(valid[:, None, None], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, -1).astype(v.dtype)
        mixed = jnp.einsum("BNTS,BSNK->BTNK", weights, v, precision=cfg.precision)
        mixed = rearrange(mixed, "B L N K -> B L (N K)")
        return _dense(cfg, cfg.width, "o")(mixed).astype(jnp.float32)


class _FeedForward(nn.Module):
    """Eq. 2 without the residual."""

    cfg: UMT5Config

    @nn.compact
    def __call__(self, y: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        gate = _dense(self.cfg, self.cfg.mlp_width, "gate")(y)
        inner = _dense(self.cfg, self.cfg.mlp_width, "inner")(y)
        outer = _dense(self.cfg, self.cfg.width, "outer")
        return outer(jax.nn.gelu(gate) * inner).astype(jnp.float32)


def _dense(cfg: UMT5Config, width: int, name: str) -> nn.Dense:
    dtype, precision = jnp.dtype(cfg.dtype), cfg.precision
    return nn.Dense(width, use_bias=False, dtype=dtype, precision=precision, name=name)


def distance_buckets(length: int, cfg: UMT5Config) -> Int[np.ndarray, "T S"]:
    """Return the bucket of every pair of query t and key s.

    Half of the buckets are for s > t. Of each half, the first half are for one distance
    each, the others for distances in equal ratios up to `farthest`:

      near + floor(near ln(|s - t| / near) / ln(farthest / near)),   near = buckets / 4

    compared as distance^near >= near^(near - i) farthest^i in whole numbers, since
    floats round the borders to either side.
    """
    near, half = cfg.buckets // 4, cfg.buckets // 2
    limits = np.array(
        [cfg.farthest**i * near ** (near - i) for i in range(near)], object
    )
    powers = np.arange(length).astype(object) ** near
    steps = (powers[:, None] >= limits[None]).sum(axis=1)
    distance = np.arange(length)
    by_distance = np.where(distance < near, distance, near - 1 + steps).astype(np.int32)
    offset = distance[None, :] - distance[:, None]  # s - t
    return by_distance[np.abs(offset)] + (half * (offset > 0)).astype(np.int32)
