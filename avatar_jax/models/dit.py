"""The velocity network: a reference-conditioned diffusion transformer.

`model(noisy, t, conditions)` returns the velocity of eq. 2 in `flow/path.py`, whatever
the network itself predicts. It runs in two passes over one stack of blocks:

  reference pass  reference rows alone -> keys and values of all blocks, and the manner
                  of the motion codes (ReferenceCache)
  target pass     [generated | still] rows, reading that cache -> latents, and codes
                  by the motion head, which `predict_codes` asks without the trunk

Nothing in the first depends on t, noise, prompt or driving speech, so its result serves
all steps and all chunks (Avatar V 4.3). Block parameters are stacked along a leading
layer axis and scanned; `remat` recomputes blocks in the backward pass.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from avatar_kernels.modulated_norm import modulate
from einops import rearrange
from jaxtyping import Array, Float

from avatar_jax.flow import path
from avatar_jax.models import audio, block, detail, embed, motion_head, tokens
from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.types import (
    FRAMES_PER_LATENT,
    Conditions,
    Reference,
    ReferenceCache,
    VideoMotion,
)

NO_REFERENCE = (
    "This model was built with reference=False; leave conditions.reference out, or use "
    "a model of stage 3 or later."
)


class AvatarDiT(nn.Module):
    """See the module's docstring; `cfg` says which parts there are."""

    cfg: DiTConfig

    def setup(self) -> None:
        cfg = self.cfg
        zeros = nn.initializers.zeros
        self.embed = embed.Embed(cfg)
        self.blocks = self.param("blocks", lambda rng: block.init_stack(cfg, rng))
        self.head_modulation = self.param("head_modulation", zeros, (2, cfg.width))
        if cfg.detail_width:
            self.head = detail.DetailHead(
                cfg.detail_width,
                cfg.channels,
                cfg.patch,
                cfg.still_concat,
                cfg.compute_dtype,
            )
        else:
            self.head = nn.Dense(
                cfg.patch**2 * cfg.channels, dtype=cfg.compute_dtype, kernel_init=zeros
            )
        if cfg.motion_width:
            self.motion_head = motion_head.MotionHead(
                cfg.motion_width, cfg.width, cfg.heads, cfg.compute_dtype
            )

    def __call__(
        self, noisy: VideoMotion, t: Float[Array, " B"], conditions: Conditions
    ) -> VideoMotion:
        """Predict the velocity at time t (1 is noise).

        Args:
          noisy: latents `B F H W C`, and motion codes where that stream is on.
          t: one time per sample.
          conditions: an absent field is a dropped condition.
        """
        if self.is_initializing() and self.cfg.reference:
            self.cache_reference(self._example_reference(noisy), None)
        reference = conditions.reference
        if isinstance(reference, Reference):
            reference = self.cache_reference(reference, conditions.null_text)
        elif reference is None:
            reference = self._empty_cache(noisy.latents.shape[0])
        x, context, time, cells = self.embed.target(noisy, t, conditions)

        def body(x: Array, layer: tuple[Any, Array, Array]) -> tuple[Array, None]:
            params, k, v = layer
            cached = (k, v, reference.valid)
            return self._run(params, block.Block.target, x, cached, context), None

        layers = (self.blocks, reference.k, reference.v)
        x, _ = jax.lax.scan(self._remat(body), x, layers)
        frames = noisy.latents.shape[1]
        patches = rearrange(x, "B (F P) D -> B F P D", F=frames + 1)[:, :-1]  # no still
        latents = self._read_out(patches, cells, noisy, time)
        out = VideoMotion(latents.astype(jnp.float32))
        if self.cfg.motion_width:
            pooled, manner = patches.mean(2), reference.manner
            codes = self._predict_codes(noisy.motion, t, conditions, manner, pooled)
            out = out.replace(motion=codes)
        if self.cfg.prediction == "velocity":
            return out
        noisy = noisy.replace(motion=None if out.motion is None else noisy.motion)
        times = VideoMotion(t, None if out.motion is None else conditions.code_time(t))
        floor = self.cfg.time_floor
        return jax.tree.map(
            lambda x, o, t: _velocity_of_clean(x, o, t, floor), noisy, out, times
        )

    def predict_codes(
        self,
        codes: Float[Array, "B frames Dm"],
        t: Float[Array, " B"],
        conditions: Conditions,
    ) -> Float[Array, "B frames Dm"]:
        """Predict the velocity of noisy codes without the trunk, as if it saw nothing.

        Args:
          t: of the video; the codes' own where `conditions.motion_time` says it.
          conditions: of those, speech, codes and the reference's codes count.

        Raises:
          ValueError: if the model was built without a motion stream.
        """
        if not self.cfg.motion_width:
            raise ValueError("This model has no motion stream; set motion_width.")
        reference = conditions.reference
        if reference is None:
            reference = self._empty_cache(len(codes))
        elif isinstance(reference, Reference) and not self.cfg.reference:
            raise ValueError(NO_REFERENCE)
        manner = (
            self.embed.embed_manner(reference)
            if isinstance(reference, Reference)
            else reference.manner
        )
        latents = -(-codes.shape[1] // FRAMES_PER_LATENT)
        nothing = jnp.zeros((len(codes), latents, self.cfg.width))
        out = self._predict_codes(codes, t, conditions, manner, nothing)
        if self.cfg.prediction == "velocity":
            return out
        own_time = conditions.code_time(t)
        return _velocity_of_clean(codes, out, own_time, self.cfg.time_floor)

    def cache_reference(
        self, reference: Reference, null_text: Float[Array, "B L M"] | None
    ) -> ReferenceCache:
        """Run the reference pass: keys, values and manner, once per condition.

        Raises:
          ValueError: if the model was built without reference rows.
        """
        if not self.cfg.reference:
            raise ValueError(NO_REFERENCE)
        x, context = self.embed.reference(reference, null_text)

        def body(x: Array, params: Any) -> tuple[Array, tuple[Array, Array]]:
            return self._run(params, block.Block.reference, x, context)

        _, (k, v) = jax.lax.scan(self._remat(body), x, self.blocks)
        valid = context.rows.valid
        if context.identity is not None:
            # A dropped reference takes its identity along.
            present = jnp.any(reference.identity != 0, -1) & jnp.any(valid, -1)
            tokens_valid = jnp.repeat(present[:, None], self.cfg.identity_tokens, 1)
            valid = jnp.concatenate([valid, tokens_valid], 1)
        manner = self.embed.embed_manner(reference)
        return ReferenceCache(k=k, v=v, valid=valid, manner=manner)

    def _run(self, params: Any, method: Any, *args: Any) -> Any:
        layer = block.Block(self.cfg, parent=None)
        return layer.apply({"params": params}, *args, method=method)

    def _remat(self, body: Any) -> Any:
        return jax.checkpoint(body, prevent_cse=False) if self.cfg.remat else body

    def _empty_cache(self, batch: int) -> ReferenceCache:
        cfg = self.cfg
        shape = (cfg.layers, batch, 0, cfg.heads, cfg.head_dim)
        empty = jnp.zeros(shape, cfg.compute_dtype)
        manner = None
        if cfg.motion_width:
            manner = jnp.zeros((batch, cfg.width), cfg.compute_dtype)
        nothing = jnp.zeros((batch, 0), bool)
        return ReferenceCache(k=empty, v=empty, valid=nothing, manner=manner)

    def _predict_codes(
        self,
        noisy: Float[Array, "B frames Dm"],
        t: Float[Array, " B"],
        conditions: Conditions,
        manner: Float[Array, "B D"],
        pooled: Float[Array, "B F D"],
    ) -> Float[Array, "B frames Dm"]:
        """Ask the motion head."""
        speech = None
        if self.cfg.audio_width:
            shape = (*noisy.shape[:2], self.cfg.audio_width)
            speech = audio.fill_speech(conditions.audio, conditions.audio_valid, shape)
        pair = tokens.place_codes(noisy, conditions)
        return self.motion_head(
            *pair,
            conditions.code_time(t),
            manner=manner,
            speech=speech,
            pooled=pooled,
        ).astype(jnp.float32)

    def _read_out(
        self,
        patches: Float[Array, "B F P D"],
        cells: Float[Array, "B F H W I"],
        noisy: VideoMotion,
        time: Float[Array, "B D"],
    ) -> Float[Array, "B F H W C"]:
        """Turn the generated rows into the prediction of latents."""
        cfg = self.cfg
        frames, height = noisy.latents.shape[1:3]
        x = rearrange(patches, "B F P D -> B (F P) D")
        table = self.head_modulation[None] + time[:, None]  # B 2 D
        y = modulate(x, table[:, :1], table[:, 1:])
        if cfg.detail_width:
            return self.head(y, cells, time)
        cut = rearrange(
            self.head(y),
            "B (F h w) P -> B F h w P",
            F=frames,
            h=height // cfg.patch,
        )
        return tokens.unpatchify(cut, cfg.patch)

    def _example_reference(self, noisy: VideoMotion) -> Reference:
        """Return one empty reference latent, so that `init` makes every parameter."""
        cfg, latents = self.cfg, noisy.latents[:, :1]
        batch, _, height, width, _ = latents.shape
        grid = (batch, 1, height // cfg.patch, width // cfg.patch)
        rows = (batch, FRAMES_PER_LATENT)
        return Reference(
            latents=latents,
            valid=jnp.zeros(grid, bool),
            segment_ids=jnp.zeros((batch, 1), jnp.int32),
            motion=jnp.zeros((*rows, cfg.motion_width)) if cfg.motion_width else None,
            identity=jnp.zeros((batch, cfg.identity_width or 1)),
        )


def _velocity_of_clean(
    noisy: Float[Array, "B ..."],
    output: Float[Array, "B ..."],
    t: Float[Array, " B"],
    floor: float,
) -> Float[Array, "B ..."]:
    """Read the output as a clean estimate, preconditioned; return its velocity.

      x^ = c_skip x_t + c_out o,   c_skip = (1 - t) / s^2,  c_out = t / s,
      v  = (x_t - x^) / max(t, floor),   s^2 = (1 - t)^2 + t^2

    (EDM, arXiv 2206.00364, eq. 7 and table 1, on the path of `flow/path.py` with data
    of variance 1: an output of zero is then the best linear guess at every t.) The
    floor is there as the quotient loses its digits at 0.
    """
    variance = jnp.square(1 - t) + jnp.square(t)
    skip, scale = (1 - t) / variance, t * jax.lax.rsqrt(variance)
    estimate = path.expand(skip, noisy) * noisy + path.expand(scale, noisy) * output
    return (noisy - estimate) / path.expand(jnp.maximum(t, floor), noisy)
