"""Start a network with more parts from the weights of Wan2.1 or TAVR.

What a checkpoint has takes its place; every other part keeps the values that the model
starts with, and these leave the checkpoint's function as it is:

  speech, adapters, motion    their output projections are zero
  flags, still beside rows    the added channels of the patch embedding are zero
  guidance scales             zero
  roles, time offset          of rows that the parent does not have
  motion head                 an output of its own

So with conditions that the parent knows, step 0 is the parent. Identity tokens and face
crops are rows that attention shares its weight with: given, they change step 0 by their
share; absent or dropped, they do not.

`initialise` holds everything in memory. Large networks start from a folder that
`conversion` wrote, through `init_from` of a training run: the same values, leaf by leaf
onto the devices.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from avatar_jax import checkpoint
from avatar_jax.models import dit
from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.types import Conditions, InputError, VideoMotion
from avatar_jax.weights import networks, table, tavr, wan


def initialise(
    cfg: DiTConfig, tensors: Mapping[str, np.ndarray], rng: jax.Array
) -> dict:
    """Return the parameters of `cfg`'s network, started from a checkpoint's tensors.

    Args:
      tensors: of TAVR or Wan2.1, in either dialect.

    Raises:
      InputError: they are neither, sizes differ, or the config has another read-out or
        other positions.
    """
    kind = networks.find_kind(tensors)
    if kind not in ("tavr", "wan"):
        raise InputError(
            f"expected the tensors of tavr or wan, came {kind or 'unknown ones'}."
        )
    if cfg.detail_width or cfg.prediction != "velocity":
        raise InputError(
            f"detail_width={cfg.detail_width}, prediction={cfg.prediction!r}: {kind} "
            "has a linear head that predicts velocity; use None and 'velocity'."
        )
    scale = tavr.ROTARY_SCALE if kind == "tavr" else wan.ROTARY_SCALE
    if cfg.rotary_scale != scale:
        raise InputError(
            f"expected the positions that {kind} was trained with, came rotary_scale="
            f"{cfg.rotary_scale}; use {scale}."
        )
    network = networks.describe(kind, cfg, tensors)
    loaded = table.assemble(network.entries, tensors)
    made = {path: np.zeros(shape) for path, shape in network.made.items()}
    flat = traverse_util.flatten_dict(loaded, sep="/") | made
    fresh = jax.jit(lambda rng: _init(cfg, rng))(rng)
    return checkpoint.overlay(fresh, traverse_util.unflatten_dict(flat, sep="/"))


def _init(cfg: DiTConfig, rng: jax.Array) -> dict:
    """Make all parameters, on the smallest input."""
    latents = jnp.zeros((1, 1, cfg.patch, cfg.patch, cfg.channels))
    motion = jnp.zeros((1, 1, cfg.motion_width)) if cfg.motion_width else None
    noisy = VideoMotion(latents, motion)
    return dit.AvatarDiT(cfg).init(rng, noisy, jnp.ones((1,)), Conditions())["params"]
