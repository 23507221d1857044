"""A random network of the smallest useful size, as a weights file; 16 px or 64 px."""

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


def make_params(config: DiTConfig = CONFIG, *, size: int = 16, chunk_latents: int = 4):
    """Return (card, random parameters)."""
    card = pretrained.Card(
        config=config,
        size=size,
        chunk_latents=chunk_latents,
        codec=f"dct{config.channels}",
        text_length=3,
    )
    shapes = pretrained.expected_shapes(AvatarDiT(config), card)
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: draw.normal(scale=0.3, size=s.shape).astype(np.float32), shapes
    )
    return card, params


def write_weights(path: Path, *, size: int = 16, chunk_latents: int = 4) -> Path:
    """Write such a network as a weights file."""
    card, params = make_params(size=size, chunk_latents=chunk_latents)
    checkpoint.save_weights(path, params, card.to_metadata(), dtype=np.float16)
    return path
