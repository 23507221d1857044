"""Our transformer with the weights of a golden case: its config and its parameters."""

import dataclasses
import functools
from pathlib import Path

import cases
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from avatar_jax.models import dit, embed, tokens
from avatar_jax.nn import rotary
from avatar_jax.weights import table, wan
from avatar_jax.weights import tavr as tavr_weights

SPATIAL_STRIDE = 1.5  # of rotary rows and columns, as released
Tensors = dict[str, np.ndarray]


@functools.cache
def tavr(case: Path) -> tuple[dit.DiTConfig, dict]:
    """Return TAVR's layout with a case's weights, which show most sizes."""
    tensors, told = cases.weights(case)["dit"], cases.load(case)[0]["dit_config"]
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    cfg = dataclasses.replace(
        tavr_weights.read_config(shapes, heads=told["num_heads"]),
        rotary_scale=told["rope_spatial_stride"],
        dtype="float32",
        remat=False,
    )
    params = table.assemble(tavr_weights.entries(cfg), tensors)
    return cfg, jax.tree.map(jnp.asarray, params)


@functools.cache
def wan_text_to_video(case: Path) -> tuple[dit.DiTConfig, dict]:
    """Return Wan2.1's layout with a case's weights, whose names are diffusers'."""
    told = cases.load(case)[0]["dit_config"]
    cfg = dit.DiTConfig(
        width=told["num_attention_heads"] * told["attention_head_dim"],
        mlp_width=told["ffn_dim"],
        heads=told["num_attention_heads"],
        layers=told["num_layers"],
        channels=told["in_channels"],
        patch=told["patch_size"][-1],
        text_width=told["text_dim"],
        time_features=told["freq_dim"],
        rotary_scale=wan.ROTARY_SCALE,
    )
    entries = [
        dataclasses.replace(entry, name=wan.diffusers_name(entry.name))
        for entry in wan.entries(cfg)
    ]
    params = table.assemble(entries, cases.weights(case)["dit"])
    params["embed"]["still_role"] = np.zeros(cfg.width, np.float32)  # no still here
    return cfg, jax.tree.map(jnp.asarray, params)


def layer(params: dict, index: int) -> dict:
    """Return the parameters of one block."""
    return jax.tree.map(lambda leaf: leaf[index], params["blocks"])


def latents(array: np.ndarray) -> jax.Array:
    """Turn `C F H W` into one sample without flags, `1 F H W C`."""
    return jnp.asarray(
        rearrange(array, "C F H W -> 1 F H W C")[..., : -tavr_weights.FLAGS]
    )


def optional(tensors: Tensors, name: str) -> jax.Array | None:
    """Return an input that the case may have left out."""
    return jnp.asarray(tensors[name]) if name in tensors else None


def times(constants):
    """Return temporal positions of generated, still and reference latents."""
    generated = np.arange(constants["generated_latents"])
    reference = tokens.REFERENCE_TIME + np.arange(constants["reference_latents"])
    assert constants["videoref_rope_offset"] == tokens.REFERENCE_TIME
    return np.concatenate([generated, [embed.STILL_TIME], reference])


def turn(described, head_dim):
    """Return the angles of all rows of a case, as `embed` and `tokens` make them."""
    _, height, width = described["meta"]["grid"]
    places = rotary.angles(times(described["constants"]), rotary.TIME, head_dim)
    stride = (described["dit_config"] or {}).get("rope_spatial_stride", SPATIAL_STRIDE)
    return rotary.grid_angles(places, height, width, stride, head_dim)[None]


def as_identity(name):
    """Let the submodule of this name return what it is given."""

    def skip(call, args, kwargs, context):
        is_it = context.module.path == (name,)
        return args[0] if is_it and args else call(*args, **kwargs)

    return nn.intercept_methods(skip)
