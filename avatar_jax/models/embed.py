"""From latents and conditions to rows and to what every block needs to know of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float

from avatar_jax.models import audio, block, motion, tokens
from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.nn import embeddings, rotary
from avatar_jax.types import (
    FRAMES_PER_LATENT,
    Conditions,
    Reference,
    VideoMotion,
    count_frames,
)

ROTARY_EXTENT = 720.0  # pixels of a short side whose rows and columns count by 1
STILL_TIME = 0  # temporal position of the still
ROWS = ("batch", "tokens", "width")


class Embed(nn.Module):
    """Everything of the network before its first block."""

    cfg: DiTConfig

    def setup(self) -> None:
        cfg, dtype = self.cfg, self.cfg.compute_dtype
        normal, zeros = nn.initializers.normal(0.02), nn.initializers.zeros
        # Slots are as large as the normed keys that they are added to; small ones leave
        # the softmax over the window flat for thousands of steps.
        unit = nn.initializers.normal(1.0)
        self.patch = nn.Dense(cfg.width, dtype=dtype)
        self.text = embeddings.Mlp(cfg.width, dtype=dtype)
        self.time = embeddings.Mlp(cfg.width, activation=nn.silu)
        self.modulation = nn.Dense(6 * cfg.width, kernel_init=zeros)
        self.still_role = self.param("still_role", normal, (cfg.width,))
        if cfg.audio_width:
            self.audio = audio.AudioTokens(cfg.width, dtype)
            shape = (audio.SLOTS, cfg.width)
            self.audio_slots = self.param("audio_slots", unit, shape)
        if cfg.motion_width:
            self.motion = motion.MotionTokens(cfg.width, dtype)
            if cfg.reference:
                self.manner = motion.Manner(cfg.width, dtype)
        if cfg.guidance_scales:
            self.guidance = nn.Dense(cfg.width, kernel_init=zeros)
        if cfg.reference:
            self.reference_time = self.param("reference_time", zeros, (cfg.width,))
            self.reference_role = self.param("reference_role", normal, (cfg.width,))
        if cfg.faces:
            self.face_role = self.param("face_role", normal, (cfg.width,))
        if cfg.reference_audio_width:
            self.reference_audio = audio.AudioTokens(cfg.width, dtype)
            shape = (FRAMES_PER_LATENT, cfg.width)
            self.reference_slots = self.param("reference_slots", unit, shape)
        if cfg.identity_width:
            self.identity = nn.Dense(cfg.identity_tokens * cfg.width, dtype=dtype)

    def target(
        self, noisy: VideoMotion, t: Float[Array, " B"], conditions: Conditions
    ) -> tuple[Array, block.TargetContext, Float[Array, "B D"], Array]:
        """Return [generated | still] rows, their context, the time embedding, cells.

        Rows are `B T D`; cells, the generated rows' input, `B F H W I`.
        """
        cfg = self.cfg
        time = self._embed_time(t, conditions.guidance)
        patches, still_valid = self._target_patches(noisy.latents, conditions)
        batch, frames, h, w, _ = patches.shape
        generated = frames - 1
        places = np.append(np.arange(generated), STILL_TIME)
        times = rotary.angles(places, rotary.TIME, cfg.head_dim)
        turn = rotary.grid_angles(times, h, w, self._scale(h, w), cfg.head_dim)
        own = jnp.ones((batch, generated * h * w), bool)
        is_still = jnp.arange(frames * h * w) >= generated * h * w
        context = block.TargetContext(
            modulation=self._modulation(time),
            turn=turn[None],
            valid=jnp.concatenate([own, rearrange(still_valid, "B h w -> B (h w)")], 1),
            role=jnp.where(is_still[:, None], self.still_role[None], 0)[None],
            text=self._embed_text(conditions.text, batch),
            audio=self._embed_audio(conditions, batch, generated),
            audio_slots=self.audio_slots if cfg.audio_width else None,
            motion=self._embed_motion(noisy, time, conditions),
            frames=generated,
        )
        x = self.patch(rearrange(patches, "B F h w P -> B (F h w) P"))
        cells = tokens.unpatchify(patches[:, :-1], cfg.patch)
        return nn.with_logical_constraint(x, ROWS), context, time, cells

    def reference(
        self, reference: Reference, null_text: Float[Array, "B L M"] | None
    ) -> tuple[Float[Array, "B R D"], block.ReferenceContext]:
        """Return packed reference rows and their context; nothing here knows t."""
        cfg = self.cfg
        batch, _, height, width, _ = reference.latents.shape
        if not cfg.faces:
            reference = reference.replace(faces=None, faces_valid=None)
        faces = reference.faces if cfg.faces else None
        side = reference.latents.shape if faces is None else faces.shape
        rows = tokens.reference_rows(
            reference,
            patch=cfg.patch,
            scale=self._scale(height // cfg.patch, width // cfg.patch),
            face_scale=self._scale(side[2] // cfg.patch, side[3] // cfg.patch),
            head_dim=cfg.head_dim,
            extra_channels=cfg.channels if cfg.still_concat else 0,
        )
        time = self._embed_time(jnp.zeros((1,)), None) + self.reference_time[None]
        role = self.reference_role[None, None]
        if cfg.faces:
            role = jnp.where(rows.is_face[..., None], self.face_role[None, None], role)
        context = block.ReferenceContext(
            modulation=self._modulation(time),
            rows=rows,
            role=role,
            text=self._embed_text(null_text, batch),
            audio=self._embed_reference_audio(reference),
            audio_slots=self.reference_slots if cfg.reference_audio_width else None,
            motion=self._embed_reference_motion(reference, time),
            identity=self._embed_identity(reference),
        )
        return nn.with_logical_constraint(self.patch(rows.patches), ROWS), context

    def embed_manner(self, reference: Reference) -> Float[Array, "B D"] | None:
        """Return how the person of a reference moves; None without a motion stream."""
        if not self.cfg.motion_width:
            return None
        if reference.motion is None:
            batch = reference.latents.shape[0]
            return jnp.zeros((batch, self.cfg.width), self.cfg.compute_dtype)
        return self.manner(reference)

    def _target_patches(
        self, latents: Float[Array, "B F H W C"], conditions: Conditions
    ) -> tuple[Float[Array, "B rows h w P"], Bool[Array, "B h w"]]:
        """Place the prefix, append the still and the flags, cut into patches."""
        cfg = self.cfg
        batch, _, height, width, _ = latents.shape
        latents, is_clean = tokens.place_prefix(latents, conditions)
        grid = (batch, height // cfg.patch, width // cfg.patch)
        still, valid = conditions.still, conditions.still_valid
        if still is None:
            still, valid = jnp.zeros_like(latents[:, :1]), jnp.zeros(grid, bool)
        elif valid is None:
            valid = jnp.ones(grid, bool)
        beside = nothing = None
        if cfg.still_concat:
            # A cell that may not be seen as a row may not be seen here either.
            seen = jnp.repeat(jnp.repeat(valid, cfg.patch, 1), cfg.patch, 2)
            beside = jnp.where(seen[:, None, :, :, None], still, 0)
            nothing = jnp.zeros_like(still)
        rows = [
            tokens.add_flags(
                latents, reference=0.0, motion_frame=is_clean, still=beside
            ),
            tokens.add_flags(still, reference=1.0, still=nothing),
        ]
        return tokens.patchify(jnp.concatenate(rows, 1), cfg.patch), valid

    def _scale(self, rows: int, columns: int) -> float:
        cfg = self.cfg
        if cfg.rotary_scale is not None:
            return cfg.rotary_scale
        return ROTARY_EXTENT / (min(rows, columns) * cfg.patch * cfg.spatial_stride)

    def _embed_time(
        self, t: Float[Array, " b"], guidance: Float[Array, "B scales"] | None
    ) -> Float[Array, "b D"]:
        time = self.time(embeddings.time_features(t, self.cfg.time_features))
        if not self.cfg.guidance_scales:
            return time
        if guidance is None:
            guidance = jnp.zeros((t.shape[0], self.cfg.guidance_scales))
        return time + self.guidance(guidance)

    def _modulation(self, time: Float[Array, "b D"]) -> Float[Array, "b 6 D"]:
        out = self.modulation(jax.nn.silu(time))
        return rearrange(out, "b (rows D) -> b rows D", rows=6)

    def _embed_text(
        self, text: Float[Array, "B L M"] | None, batch: int
    ) -> Float[Array, "B L D"]:
        if text is None:
            text = jnp.zeros((batch, 1, self.cfg.text_width))
        return self.text(text)

    def _embed_audio(
        self, conditions: Conditions, batch: int, frames: int
    ) -> Float[Array, "B F 4 D"] | None:
        if not self.cfg.audio_width:
            return None
        shape = (batch, count_frames(frames), self.cfg.audio_width)
        rows, valid = audio.fill_speech(conditions.audio, conditions.audio_valid, shape)
        out = self.audio(rows, valid)
        if out.shape[1] != frames:
            raise ValueError(
                f"{rows.shape[1]} rows of speech do not belong to {frames} latents; "
                f"give {count_frames(frames)} (4 per latent, 1 for the first)."
            )
        return out

    def _embed_reference_audio(
        self, reference: Reference
    ) -> Float[Array, "B F 4 D"] | None:
        width = self.cfg.reference_audio_width
        if not width:
            return None
        batch, frames = reference.latents.shape[:2]
        shape = (batch, FRAMES_PER_LATENT * frames, width)
        return self.reference_audio(
            *audio.fill_speech(reference.audio, reference.audio_valid, shape)
        )

    def _embed_motion(
        self, noisy: VideoMotion, time: Float[Array, "B D"], conditions: Conditions
    ) -> Float[Array, "B F 4 D"] | None:
        if not self.cfg.motion_width:
            return None
        if noisy.motion is None:
            raise ValueError("The motion stream is on; give noisy.motion codes.")
        if conditions.motion_time is not None:
            time = self._embed_time(conditions.motion_time, conditions.guidance)
        pair = tokens.place_codes(noisy.motion, conditions)
        return _keep(self.motion(*pair, time), conditions.motion_valid)

    def _embed_reference_motion(
        self, reference: Reference, time: Float[Array, "1 D"]
    ) -> Float[Array, "B F 4 D"] | None:
        if not self.cfg.motion_width:
            return None
        batch, frames = reference.latents.shape[:2]
        codes, valid = reference.motion, reference.motion_valid
        if codes is None:
            codes = jnp.zeros(
                (batch, FRAMES_PER_LATENT * frames, self.cfg.motion_width)
            )
            valid = jnp.zeros((batch,), bool)
        time = jnp.broadcast_to(time, (batch, time.shape[1]))
        out = self.motion(codes, codes, time, reference.segment_ids)
        return _keep(out, valid)

    def _embed_identity(
        self, reference: Reference
    ) -> Float[Array, "B identity D"] | None:
        if not self.cfg.identity_width or reference.identity is None:
            return None
        out = self.identity(reference.identity)
        return rearrange(out, "B (i D) -> B i D", i=self.cfg.identity_tokens)


def _keep(
    motion_tokens: Float[Array, "B F 4 D"], valid: Bool[Array, " B"] | None
) -> Float[Array, "B F 4 D"]:
    """Null the motion tokens of samples whose motion is dropped."""
    if valid is None:
        return motion_tokens
    return jnp.where(valid[:, None, None, None], motion_tokens, 0)
