"""Networks of random weights for clips of 64 pixels, as weights files."""

from pathlib import Path

import jax
import numpy as np

from avatar_jax import checkpoint
from avatar_jax.models.dit import AvatarDiT
from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.models.speech import LogMel
from avatar_jax.sampling import pretrained


def save_random(folder: Path, *, parts: dict | None = None, **card_fields) -> Path:
    """Save a network that hears speech; `parts` are what else its config has."""
    config = DiTConfig(
        width=8,
        mlp_width=12,
        heads=1,
        layers=1,
        channels=64,
        text_width=4,
        audio_width=LogMel().width,
        **(parts or {}),
    )
    fields = {"size": 64, "chunk_latents": 7, "text_length": 5, **card_fields}
    card = pretrained.Card(config=config, **fields)
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: draw.normal(scale=0.1, size=s.shape).astype(np.float16),
        pretrained.expected_shapes(AvatarDiT(config), card),
    )
    path = folder / "w.safetensors"
    checkpoint.save_weights(path, params, card.to_metadata())
    return path
