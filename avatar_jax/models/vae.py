"""The Wan2.1 video autoencoder (arXiv:2503.20314, section 4.1) as a codec.

A causal convolutional network of stride (4, 8, 8) and 16 channels. `WanVAE` is the
network and sees one piece of a video at a time; `WanCodec` is a `LatentCodec`: it walks
over videos, carries the cache, and scales latents,

  (1) z = (mu - mean) / std

with mu the first half of what the encoder says (the rest is log sigma^2) and published
constants. Whatever the length of a video, two programs serve it, one for its first
frame and one for each later piece, and a stream needs the memory of one piece.

Pictures too large for one device: set a mesh whose axis `context` has several devices
(`jax.set_mesh(sharding.make_mesh(...))`) and `nn.logical_axis_rules(LOGICAL_RULES)`.
All activations and caches are then divided by rows; convolutions trade one row with
each neighbour; the middle attention gathers keys and values of one latent frame (50 MB
in float16 at 1080p). Rows that devices do not divide are padded.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray

from avatar_jax.models import vae_layers
from avatar_jax.models.codec import DecodeState
from avatar_jax.models.vae_config import WanVAEConfig
from avatar_jax.types import FRAMES_PER_LATENT, InputError, Leaf, count_latents

LEAD_FRAMES = 25  # copies of a clip's first frame that are encoded in front of it


class Encoder(nn.Module):
    """Pixels of one piece to mean and log-variance, before `quant`."""

    cfg: WanVAEConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B frames Y X 3"], *, first: bool
    ) -> Float[Array, "B F H W moments"]:
        cfg, slot = self.cfg, 0
        dtype = jnp.dtype(cfg.encode_dtype)
        x = vae_layers.causal_convolution(self, x, cfg.width, dtype, name="conv_in")
        for level, multiplier in enumerate(cfg.multipliers):
            for _ in range(cfg.residual_blocks):
                block = vae_layers.ResidualBlock
                x = block(cfg.width * multiplier, dtype, name=f"down_{slot}")(x)
                slot += 1
            if level < len(cfg.time_down):
                halve = vae_layers.Downsample
                x = halve(cfg.time_down[level], dtype, name=f"down_{slot}")(
                    x, first=first
                )
                slot += 1
        x = _look_around(x, dtype)
        x = nn.silu(vae_layers.ChannelNorm(name="norm_out")(x))
        last = vae_layers.causal_convolution
        return last(self, x, 2 * cfg.channels, dtype, name="conv_out")


class Decoder(nn.Module):
    """Latents of one piece, after `post_quant`, to pixels that are not clipped."""

    cfg: WanVAEConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B F H W C"], *, first: bool
    ) -> Float[Array, "B frames Y X 3"]:
        cfg, slot = self.cfg, 0
        dtype = jnp.dtype(cfg.decode_dtype)
        widest = cfg.width * cfg.multipliers[-1]
        x = vae_layers.causal_convolution(self, x, widest, dtype, name="conv_in")
        x = _look_around(x, dtype)
        for level in reversed(range(len(cfg.multipliers))):
            for _ in range(cfg.residual_blocks + 1):
                block = vae_layers.ResidualBlock
                x = block(cfg.width * cfg.multipliers[level], dtype, name=f"up_{slot}")(
                    x
                )
                slot += 1
            if level > 0:
                double = vae_layers.Upsample
                x = double(cfg.time_down[level - 1], dtype, name=f"up_{slot}")(
                    x, first=first
                )
                slot += 1
        x = nn.silu(vae_layers.ChannelNorm(name="norm_out")(x))
        return vae_layers.causal_convolution(self, x, 3, dtype, name="conv_out")


def _look_around(x: Float[Array, "B F H W D"], dtype: jnp.dtype) -> Array:
    """Add the middle of encoder or decoder, where pixels of a frame see each other."""
    block = functools.partial(vae_layers.ResidualBlock, x.shape[-1], dtype)
    x = block(name="middle_in")(x)
    x = vae_layers.FrameAttention(dtype, name="middle_attention")(x)
    return block(name="middle_out")(x)


class WanVAE(nn.Module):
    """The network; each call is given the next piece, and the cache of those before.

    `first`: the piece is one frame or latent, the first. Other pieces are 4 frames or
    one latent, or several times that. Apply it with `mutable=["cache"]`; without a
    cache it starts from zeros.
    """

    cfg: WanVAEConfig

    def setup(self) -> None:
        cfg = self.cfg
        self.encoder, self.decoder = Encoder(cfg), Decoder(cfg)
        self.quant = vae_layers.convolution(
            2 * cfg.channels, (1, 1, 1), jnp.dtype(cfg.encode_dtype), name="quant"
        )
        self.post_quant = vae_layers.convolution(
            cfg.channels, (1, 1, 1), jnp.dtype(cfg.decode_dtype), name="post_quant"
        )

    def __call__(
        self, video: Float[Array, "B frames Y X 3"]
    ) -> Float[Array, "B frames Y X 3"]:
        """Encode and decode a later piece: every parameter has its part."""
        moments = self.encode(video, first=False)
        return self.decode(moments[..., : self.cfg.channels], first=False)

    def encode(
        self, video: Float[Array, "B frames Y X 3"], *, first: bool
    ) -> Float[Array, "B F H W moments"]:
        """Return mean and log-variance in float32, not scaled."""
        video = vae_layers.divide_rows(video.astype(self.cfg.encode_dtype))
        return self.quant(self.encoder(video, first=first)).astype(jnp.float32)

    def decode(
        self, latents: Float[Array, "B F H W C"], *, first: bool
    ) -> Float[Array, "B frames Y X 3"]:
        """Return pixels in float32, not clipped; latents are not scaled."""
        latents = vae_layers.divide_rows(latents.astype(self.cfg.decode_dtype))
        pixels = self.decoder(self.post_quant(latents), first=first)
        return pixels.astype(jnp.float32)


def init_params(cfg: WanVAEConfig, rng: PRNGKeyArray) -> dict:
    """Draw parameters."""
    side = cfg.spatial_stride
    video = jnp.zeros((1, FRAMES_PER_LATENT, side, side, 3))
    return WanVAE(cfg).init(rng, video)["params"]


Half = Callable[..., Array]  # `WanVAE.encode` or `WanVAE.decode`


def run_pieces(
    params: dict,
    cache: Leaf,
    x: Float[Array, "B frames Y X C"],
    *,
    cfg: WanVAEConfig,
    half: Half,
) -> tuple[Leaf, Float[Array, "B some y x c"]]:
    """Run one half of the network over the next frames, or latents, of a video.

    Args:
      cache: what the call before returned; None: x starts with a video's first frame.
    """
    made = []
    if cache is None:
        cache, first = run_first(params, x[:, :1], cfg=cfg, half=half)
        made.append(first)
        x = x[:, 1:]
    if x.shape[1]:
        cache, later = run_later(params, cache, x, cfg=cfg, half=half)
        made.append(later)
    return cache, jnp.concatenate(made, axis=1)


@functools.partial(jax.jit, static_argnames=("cfg", "half"))
def run_first(
    params: dict, x: Float[Array, "B 1 Y X C"], *, cfg: WanVAEConfig, half: Half
) -> tuple[Leaf, Float[Array, "B 1 y x c"]]:
    """Run the first frame or latent of a video."""
    variables = {"params": params}
    y, left = WanVAE(cfg).apply(
        variables, x, first=True, method=half, mutable=["cache"]
    )
    return left["cache"], y


@functools.partial(jax.jit, static_argnames=("cfg", "half"))
def run_later(
    params: dict,
    cache: Leaf,
    x: Float[Array, "B frames Y X C"],
    *,
    cfg: WanVAEConfig,
    half: Half,
) -> tuple[Leaf, Float[Array, "B some y x c"]]:
    """Run what follows, 4 frames or one latent at a time."""

    def run(cache: Leaf, piece: Array) -> tuple[Leaf, Array]:
        variables = {"params": params, "cache": cache}
        y, left = WanVAE(cfg).apply(
            variables, piece, first=False, method=half, mutable=["cache"]
        )
        return left["cache"], y

    if cfg.remat:
        run = jax.checkpoint(run, prevent_cse=False)
    frames = FRAMES_PER_LATENT if half is WanVAE.encode else 1
    pieces = rearrange(x, "B (n f) ... -> n B f ...", f=frames)
    cache, made = jax.lax.scan(run, cache, pieces)
    return cache, rearrange(made, "n B f ... -> B (n f) ...")


@struct.dataclass
class EncodeState:
    """What a streaming encoder carries from one call to the next."""

    cache: Leaf = None  # of the layers that look back
    # False: the next frame is a video's first.
    started: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass(eq=False)
class WanCodec:
    """`LatentCodec` of a `WanVAE` and its parameters.

    It is a pytree: give it to jitted functions as an argument like any other, since
    what they close over, or take as static, is compiled into the program.

    Attributes:
      params: of `WanVAE`.
      name: of the folder of latents; other weights need another one.
    """

    params: dict
    cfg: WanVAEConfig = struct.field(pytree_node=False, default=WanVAEConfig())
    name: str = struct.field(pytree_node=False, default="wan21")

    @property
    def channels(self) -> int:
        return self.cfg.channels

    @property
    def spatial_stride(self) -> int:
        return self.cfg.spatial_stride

    @property
    def energy(self) -> Float[np.ndarray, " C"]:
        return np.array(self.cfg.std, np.float32) / max(self.cfg.std)

    def encode(
        self, video: Float[Array, "B frames Y X 3"]
    ) -> Float[Array, "B F H W C"]:
        return self.encode_next(self.init_encode(), video)[1]

    def encode_clips(
        self, video: Float[Array, "B frames Y X 3"]
    ) -> Float[Array, "B F H W C"]:
        """Encode after 25 copies of the first frame, whose latents are left out."""
        self._check_video(video, started=True)
        lead = jnp.repeat(video[:, :1], LEAD_FRAMES, axis=1)
        state, _ = self.encode_next(self.init_encode(), lead)
        return self.encode_next(state, video)[1]

    def decode(
        self, latents: Float[Array, "B F H W C"]
    ) -> Float[Array, "B frames Y X 3"]:
        return self.decode_next(self.init_decode(), latents)[1]

    def decode_clips(
        self, latents: Float[Array, "B F H W C"]
    ) -> Float[Array, "B frames Y X 3"]:
        """Decode after copies of the first latent, whose frames are left out.

        Choice: as many as `encode_clips` leaves out; nobody has published a way. They
        are context, so that no gradient goes back through them.
        """
        lead = jnp.repeat(latents[:, :1], count_latents(LEAD_FRAMES), axis=1)
        state, _ = self.decode_next(self.init_decode(), jax.lax.stop_gradient(lead))
        return self.decode_next(state, latents)[1]

    def init_encode(self) -> EncodeState:
        """Begin to encode a video in pieces."""
        return EncodeState()

    def encode_next(
        self, state: EncodeState, video: Float[Array, "B frames Y X 3"]
    ) -> tuple[EncodeState, Float[Array, "B F H W C"]]:
        """Encode the next 4F frames, 3 fewer at the start of the video."""
        self._check_video(video, started=state.started)
        cache, moments = run_pieces(
            self.params,
            state.cache,
            video,
            cfg=self.cfg,
            half=WanVAE.encode,
        )
        mean, std = self._statistics()
        latents = (moments[..., : self.channels] - mean) / std
        return state.replace(cache=cache, started=True), latents

    def init_decode(self) -> DecodeState:
        return DecodeState()

    def decode_next(
        self, state: DecodeState, latents: Float[Array, "B F H W C"]
    ) -> tuple[DecodeState, Float[Array, "B frames Y X 3"]]:
        if latents.shape[1] == 0 or latents.shape[-1] != self.channels:
            raise InputError(
                f"{self.name} decodes latents of {self.channels} channels, came shape "
                f"{list(latents.shape)} (B F H W C); use its own latents."
            )
        mean, std = self._statistics()
        cache, pixels = run_pieces(
            self.params,
            state.cache,
            latents.astype(jnp.float32) * std + mean,
            cfg=self.cfg,
            half=WanVAE.decode,
        )
        state = state.replace(cache=cache, started=True)
        return state, jnp.clip(pixels, -1, 1)

    def _statistics(
        self,
    ) -> tuple[Float[Array, "1 1 1 1 C"], Float[Array, "1 1 1 1 C"]]:
        """Return mean and std of eq. 1."""
        values = jnp.array([self.cfg.mean, self.cfg.std], jnp.float32)
        mean, std = values[:, None, None, None, None]
        return mean, std

    def _check_video(
        self, video: Float[Array, "B frames Y X 3"], *, started: bool
    ) -> None:
        _, frames, height, width, _ = video.shape
        wanted, rest = ("4n", 0) if started else ("4n+1", 1)
        if frames % FRAMES_PER_LATENT != rest or frames == 0:
            raise InputError(
                f"{self.name} expects {wanted} frames here, came {frames}; cut or "
                "repeat the last one."
            )
        stride = self.spatial_stride
        if height % stride or width % stride:
            raise InputError(
                f"{self.name} expects sides that are multiples of {stride}, came "
                f"{height}x{width}; cut or resize."
            )
