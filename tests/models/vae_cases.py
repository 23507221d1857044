"""A small autoencoder whose weights are random, for tests that need no checkpoint."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.models import vae
from avatar_jax.models.vae_config import WanVAEConfig

SMALL = WanVAEConfig(
    width=2,
    multipliers=(1, 2, 3, 2),
    residual_blocks=1,
    channels=5,
    mean=(0.1, -0.2, 0.3, 0.0, 0.5),
    std=(1.0, 2.0, 0.5, 1.5, 0.8),
    decode_dtype="float32",
)
SHALLOW = dataclasses.replace(SMALL, multipliers=(1, 3, 2), time_down=(True, True))


def random_params(cfg):
    """Every leaf is random: an initialiser's zeros would hide what stands behind."""
    tree = jax.eval_shape(lambda: vae.init_params(cfg, jax.random.key(0)))
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    rng = np.random.default_rng(3)

    def draw(path, leaf):
        values = rng.standard_normal(leaf.shape).astype(np.float32)
        match path[-1].key:
            case "scale":
                return 1 + 0.2 * values
            case "bias":
                return 0.2 * values
            case _:
                return values / np.sqrt(np.prod(leaf.shape[:-1]))

    return treedef.unflatten([jnp.asarray(draw(*pair)) for pair in leaves])


def random_video(frames, height=16, width=24, batch=2):
    rng = np.random.default_rng(frames)
    shape = (batch, frames, height, width, 3)
    return jnp.asarray(rng.uniform(-1, 1, shape).astype(np.float32))


def random_latents(cfg, frames, height=2, width=3, batch=2):
    rng = np.random.default_rng(frames)
    shape = (batch, frames, height, width, cfg.channels)
    return jnp.asarray(rng.standard_normal(shape).astype(np.float32))
