"""Our transformer with the weights of a golden case: its config and its parameters."""

import functools
from pathlib import Path

import cases
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from avatar_jax.models import dit

Tensors = dict[str, np.ndarray]
FLAGS = 2  # channels after those of the latents: reference, motion prefix


@functools.cache
def tavr(case: Path) -> tuple[dit.DiTConfig, dict]:
    """Return TAVR's layout with a case's weights; sizes are read from these."""
    tensors, told = cases.weights(case)["dit"], cases.load(case)[0]["dit_config"]
    width, inputs = tensors["patch_embedding.weight"].shape[:2]
    rank = tensors["blocks.0.audio_attn.videoref_aud_q_adapter.1.weight"].shape[0]
    cfg = dit.DiTConfig(
        width=width,
        mlp_width=told["ffn_dim"],
        heads=told["num_heads"],
        layers=told["num_layers"],
        channels=inputs - FLAGS,
        text_width=tensors["text_embedding.0.weight"].shape[1],
        time_features=told["freq_dim"],
        audio_width=tensors["aud_embedding.0.weight"].shape[1],
        reference=True,
        reference_audio_width=tensors["videoref_aud_embedding.0.weight"].shape[1],
        adapter_rank=rank,
        rotary_scale=told["rope_spatial_stride"],
    )
    return cfg, jax.tree.map(jnp.asarray, _params(tensors, cfg.layers))


@functools.cache
def wan(case: Path) -> tuple[dit.DiTConfig, dict]:
    """Return Wan2.1's layout with a case's weights, whose names are diffusers'."""
    tensors, told = cases.weights(case)["dit"], cases.load(case)[0]["dit_config"]
    tensors = {_original_name(name): tensor for name, tensor in tensors.items()}
    cfg = dit.DiTConfig(
        width=told["num_attention_heads"] * told["attention_head_dim"],
        mlp_width=told["ffn_dim"],
        heads=told["num_attention_heads"],
        layers=told["num_layers"],
        channels=told["in_channels"],
        text_width=told["text_dim"],
        time_features=told["freq_dim"],
        rotary_scale=1.0,
    )
    return cfg, jax.tree.map(jnp.asarray, _params(tensors, cfg.layers))


def layer(params: dict, index: int) -> dict:
    """Return the parameters of one block."""
    return jax.tree.map(lambda leaf: leaf[index], params["blocks"])


def latents(array: np.ndarray) -> jax.Array:
    """Turn `C F H W` into one sample without flags, `1 F H W C`."""
    return jnp.asarray(rearrange(array, "C F H W -> 1 F H W C")[..., :-FLAGS])


def optional(tensors: Tensors, name: str) -> jax.Array | None:
    """Return an input that the case may have left out."""
    return jnp.asarray(tensors[name]) if name in tensors else None


def _dense(weights, name):
    return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}


def _norm(weights, name):
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}


def _mlp(weights, name):
    return {
        "inner": _dense(weights, f"{name}.0"),
        "outer": _dense(weights, f"{name}.2"),
    }


def _attention(weights, name):
    norms = {f"norm_{n}": {"scale": weights[f"{name}.norm_{n}.weight"]} for n in "qk"}
    return {n: _dense(weights, f"{name}.{n}") for n in "qkvo"} | norms


def _adapter(weights, name):
    return {
        "norm": _norm(weights, f"{name}.0"),
        "down": _dense(weights, f"{name}.1"),
        "up": _dense(weights, f"{name}.3"),
    }


def _block(weights, b):
    heard = f"{b}.audio_attn"
    adapters = f"{heard}.videoref_aud"
    block = {
        "modulation": weights[f"{b}.modulation"][0],
        "attention": _attention(weights, f"{b}.self_attn"),
        "text_norm": _norm(weights, f"{b}.norm3"),
        "text_attention": _attention(weights, f"{b}.cross_attn"),
        "feedforward": _mlp(weights, f"{b}.ffn"),
    }
    if f"{heard}.q.weight" in weights:
        block["audio"] = {
            "norm": _norm(weights, f"{b}.norm4"),
            "attention": _attention(weights, heard),
        } | {
            f"adapter_{n}": _adapter(weights, f"{adapters}_{n}_adapter") for n in "qkv"
        }
    return block


def _params(weights, layers):
    """Map the original's names to ours."""
    blocks = [_block(weights, f"blocks.{i}") for i in range(layers)]
    embed = {
        "patch": _patch(weights),
        "text": _mlp(weights, "text_embedding"),
        "time": _mlp(weights, "time_embedding"),
        "modulation": _dense(weights, "time_projection.1"),
    }
    if "aud_embedding.0.weight" in weights:
        embed |= _extras(weights)
    else:
        embed["still_role"] = np.zeros_like(weights["patch_embedding.bias"])
    return {
        "embed": embed,
        "blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks),
        "head_modulation": weights["head.modulation"][0],
        "head": _dense(weights, "head.head"),
    }


def _patch(weights):
    """Cut patches as the convolution does; Wan has no flags, so they count nothing."""
    kernel = weights["patch_embedding.weight"][:, :, 0]  # D C p q
    if "ref_pos_embedding.weight" not in weights:
        kernel = np.pad(kernel, ((0, 0), (0, FLAGS), (0, 0), (0, 0)))
    return {
        "kernel": rearrange(kernel, "D C p q -> (p q C) D"),
        "bias": weights["patch_embedding.bias"],
    }


def _extras(weights):
    return {
        "still_role": weights["ref_pos_embedding.weight"][0],
        "reference_role": weights["cross_videoref_pos_embedding.weight"][0],
        "reference_time": weights["time_embedding_videoref"][0],
        "audio": {
            "embedding": _mlp(weights, "aud_embedding"),
            "null": weights["null_audio_feature.weight"][0],
        },
        "audio_slots": weights["audio_pos_embedding.weight"],
        "reference_audio": {
            "embedding": _mlp(weights, "videoref_aud_embedding"),
            "null": weights["null_videoref_audio_feature.weight"][0],
        },
        "reference_slots": weights["videoref_audio_pos_embedding.weight"],
    }


def _original_name(name):
    """Turn diffusers' name of a tensor into the original's."""
    for theirs, ours in {
        "condition_embedder.text_embedder.linear_1": "text_embedding.0",
        "condition_embedder.text_embedder.linear_2": "text_embedding.2",
        "condition_embedder.time_embedder.linear_1": "time_embedding.0",
        "condition_embedder.time_embedder.linear_2": "time_embedding.2",
        "condition_embedder.time_proj": "time_projection.1",
        "proj_out": "head.head",
        "attn1": "self_attn",
        "attn2": "cross_attn",
        "to_out.0": "o",
        ".to_": ".",
        "ffn.net.0.proj": "ffn.0",
        "ffn.net.2": "ffn.2",
        "norm2": "norm3",
        "scale_shift_table": "modulation" if "blocks" in name else "head.modulation",
    }.items():
        name = name.replace(theirs, ours)
    return name
