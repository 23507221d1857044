"""Inputs of the smallest shape, in which every part of the network is used."""

import jax.numpy as jnp
from jaxtyping import Array

from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.types import Conditions, Reference, VideoMotion, count_frames


def make(cfg: DiTConfig) -> tuple[VideoMotion, Array, Conditions]:
    """Make inputs of the smallest shape in which every part of the model is used."""
    side = cfg.patch
    latents = jnp.zeros((1, 1, side, side, cfg.channels))
    prompt = jnp.zeros((1, 1, cfg.text_width))
    motion = None
    if cfg.motion_width:
        motion = jnp.zeros((1, count_frames(1), cfg.motion_width))
    conditions = Conditions(
        text=prompt,
        null_text=prompt,
        audio=jnp.zeros((1, 1, cfg.audio_width)) if cfg.audio_width else None,
        still=latents,
        reference=_make_reference(cfg, latents) if cfg.reference else None,
    )
    return VideoMotion(latents, motion), jnp.ones((1,)), conditions


def _make_reference(cfg: DiTConfig, latents: Array) -> Reference:
    rows = jnp.zeros((1, 4, 1))
    return Reference(
        latents=latents,
        valid=jnp.ones((1, 1, 1, 1), bool),
        segment_ids=jnp.zeros((1, 1), jnp.int32),
        audio=rows.repeat(cfg.reference_audio_width, -1)
        if cfg.reference_audio_width
        else None,
        motion=rows.repeat(cfg.motion_width, -1) if cfg.motion_width else None,
        identity=jnp.zeros((1, cfg.identity_width)) if cfg.identity_width else None,
        faces=latents if cfg.faces else None,
    )
