"""A random network of the smallest useful size, as a weights file; 16 px or 64 px."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from avatar_jax import checkpoint
from avatar_jax.models.dit import AvatarDiT
from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.models.speech import LogMel
from avatar_jax.sampling import pretrained

CONFIG = DiTConfig(
    width=8,
    mlp_width=12,
    heads=2,
    layers=1,
    channels=5,
    text_width=4,
    time_features=6,
    audio_width=LogMel().width,
    still_concat=True,
    prediction="clean",
)

# The same with everything that reads a person's own video, and what its card says.
PERSON_CONFIG = dataclasses.replace(
    CONFIG,
    reference=True,
    reference_audio_width=LogMel().width,
    motion_width=12,
    identity_width=64,
    faces=True,
)
PERSON_CARD = {
    "reference_latents": 8,
    "segment_latents": 4,
    "face_crops": 2,
    "face_size": 32,
    "identity": "procedural",
    "motion": "procedural",
    "motion_mean": (0.1,) * 12,
    "motion_std": (0.5,) * 12,
}


def make_params(
    config: DiTConfig = CONFIG, *, size: int = 16, chunk_latents: int = 4, **card_fields
):
    """Return (card, random parameters); more fields are the card's."""
    card = pretrained.Card(
        config=config,
        size=size,
        chunk_latents=chunk_latents,
        codec=f"dct{config.channels}",
        text_length=3,
        **card_fields,
    )
    shapes = pretrained.expected_shapes(AvatarDiT(config), card)
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: draw.normal(scale=0.3, size=s.shape).astype(np.float32), shapes
    )
    return card, params


def write_weights(path: Path, config: DiTConfig = CONFIG, **card_fields) -> Path:
    """Write such a network as a weights file."""
    card, params = make_params(config, **card_fields)
    checkpoint.save_weights(path, params, card.to_metadata(), dtype=np.float16)
    return path
