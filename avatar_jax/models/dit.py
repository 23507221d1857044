"""The velocity network: a reference-conditioned diffusion transformer.

`model(noisy, t, conditions)` returns the velocity of eq. 2 in `flow/path.py`, whatever
the network itself predicts. It runs in two passes over one stack of blocks:

  reference pass  reference rows alone -> keys and values of all blocks (ReferenceCache)
  target pass     [generated | still] rows, reading that cache

Nothing in the first depends on t, noise, prompt or driving speech, so its result serves
all steps and all chunks (Avatar V 4.3). Block parameters are stacked along a leading
layer axis and scanned; `remat` recomputes blocks in the backward pass.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from avatar_jax.flow import path
from avatar_jax.models import block, detail, embed, motion, tokens
from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.nn import norms
from avatar_jax.types import (
    FRAMES_PER_LATENT,
    Conditions,
    Reference,
    ReferenceCache,
    VideoMotion,
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
            self.motion_head = motion.MotionHead(cfg.motion_width, cfg.compute_dtype)

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
        own_time = conditions.code_time(t) if self.cfg.motion_width else None
        times = VideoMotion(t, own_time)
        return self._read_out(x, cells, noisy, times, time, context.motion)

    def cache_reference(
        self, reference: Reference, null_text: Float[Array, "B L M"] | None
    ) -> ReferenceCache:
        """Run the reference pass: keys and values of every block, once per condition.

        Raises:
          ValueError: if the model was built without reference rows.
        """
        if not self.cfg.reference:
            raise ValueError(
                "This model was built with reference=False; leave conditions.reference "
                "out, or use a model of stage 3 or later."
            )
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
        return ReferenceCache(k=k, v=v, valid=valid)

    def _run(self, params: Any, method: Any, *args: Any) -> Any:
        layer = block.Block(self.cfg, parent=None)
        return layer.apply({"params": params}, *args, method=method)

    def _remat(self, body: Any) -> Any:
        return jax.checkpoint(body, prevent_cse=False) if self.cfg.remat else body

    def _empty_cache(self, batch: int) -> ReferenceCache:
        cfg = self.cfg
        shape = (cfg.layers, batch, 0, cfg.heads, cfg.head_dim)
        empty = jnp.zeros(shape, cfg.compute_dtype)
        return ReferenceCache(k=empty, v=empty, valid=jnp.zeros((batch, 0), bool))

    def _read_out(
        self,
        x: Float[Array, "B T D"],
        cells: Float[Array, "B F H W I"],
        noisy: VideoMotion,
        times: VideoMotion,
        time: Float[Array, "B D"],
        motion_tokens: Float[Array, "B F 4 D"] | None,
    ) -> VideoMotion:
        """Turn the generated rows into velocities of latents and of motion codes."""
        cfg = self.cfg
        frames, height, width = noisy.latents.shape[1:4]
        h, w = height // cfg.patch, width // cfg.patch
        x = x[:, : frames * h * w]  # without the still
        table = self.head_modulation[None] + time[:, None]  # B 2 D
        y = norms.modulate(x, table[:, :1], table[:, 1:])
        if cfg.detail_width:
            latents = self.head(y, cells, time)
        else:
            patches = rearrange(self.head(y), "B (F h w) P -> B F h w P", F=frames, h=h)
            latents = tokens.unpatchify(patches, cfg.patch)
        out = VideoMotion(latents=latents.astype(jnp.float32))
        if cfg.motion_width:
            pooled = rearrange(x, "B (F P) D -> B F P D", F=frames)
            codes = self.motion_head(pooled, motion_tokens).astype(jnp.float32)
            out = out.replace(motion=codes)
        if cfg.prediction == "velocity":
            return out
        return _velocity_of_clean(noisy, out, times, cfg.time_floor)

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
    noisy: VideoMotion, output: VideoMotion, times: VideoMotion, floor: float
) -> VideoMotion:
    """Read the output as a clean estimate, preconditioned; return its velocity.

      x^ = c_skip x_t + c_out o,   c_skip = (1 - t) / s^2,  c_out = t / s,
      v  = (x_t - x^) / max(t, floor),   s^2 = (1 - t)^2 + t^2

    (EDM, arXiv 2206.00364, eq. 7 and table 1, on the path of `flow/path.py` with data
    of variance 1: an output of zero is then the best linear guess at every t.) The
    floor is there as the quotient loses its digits at 0.
    """
    noisy = noisy.replace(motion=None if output.motion is None else noisy.motion)

    def divide(x: Array, out: Array, t: Float[Array, " B"]) -> Array:
        variance = jnp.square(1 - t) + jnp.square(t)
        skip, scale = (1 - t) / variance, t * jax.lax.rsqrt(variance)
        estimate = path.expand(skip, x) * x + path.expand(scale, x) * out
        return (x - estimate) / path.expand(jnp.maximum(t, floor), x)

    return jax.tree.map(divide, noisy, output, times)
