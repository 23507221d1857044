"""Every extra off, the network is TAVR number for number (~25 s; needs ../shared)."""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from avatar_jax.models import dit
from avatar_jax.types import Conditions, Reference, VideoMotion

SHARED = Path(
    os.environ.get("AVATAR_JAX_SHARED")
    or Path(__file__).resolve().parents[3] / "shared"
)
ORACLE = SHARED / "oracle" / "tavr"
pytestmark = pytest.mark.skipif(
    not ORACLE.is_dir(), reason=f"needs the golden tensors in {ORACLE}, absent here"
)
TEXT_LENGTH = 24


@pytest.fixture(scope="module")
def tavr():
    config = json.loads((ORACLE / "dit_later_chunk.json").read_text())["dit_config"]
    cfg = dit.DiTConfig(
        width=config["dim"],
        mlp_width=config["ffn_dim"],
        heads=config["num_heads"],
        layers=config["num_layers"],
        channels=16,
        text_width=config["text_dim"],
        time_features=config["freq_dim"],
        audio_width=config["audio_dim"],
        reference=True,
        reference_audio_width=32,
        adapter_rank=16,
        rotary_scale=config["rope_spatial_stride"],
    )
    model = dit.AvatarDiT(cfg)
    weights = load_file(ORACLE / "dit_weights.safetensors")
    params = jax.tree.map(jnp.asarray, _params(weights, cfg.layers))
    return jax.jit(lambda *args: model.apply({"params": params}, *args))


@pytest.mark.parametrize(
    "case",
    [
        "dit_first_chunk",
        "dit_later_chunk",
        "dit_all_valid",
        "dit_null_audio",
        "dit_negative_text",
        "dit_audio_multiple_of_4",
    ],
)
def test_velocity_equals_the_original(tavr, case):
    tensors = load_file(ORACLE / f"{case}.safetensors")
    x, masks = tensors["in.x"], tensors["in.valid_masks"]
    frames = x.shape[1] - 1
    generated = _latents(x[:, :frames])
    reference = _latents(tensors["in.context_videoref"])
    has_prefix = x[17, :2].any()
    conditions = Conditions(
        text=_pad(tensors["in.txt"]),
        null_text=_pad(tensors["in.null_txt"]),
        audio=_optional(tensors, "in.aud"),
        still=_latents(x[:, frames:]),
        still_valid=jnp.asarray(masks[frames])[None],
        prefix=generated[:, :2] if has_prefix else None,
        reference=Reference(
            latents=reference,
            valid=jnp.asarray(masks[frames + 1 :])[None],
            segment_ids=jnp.zeros(reference.shape[:2], jnp.int32),
            audio=_optional(tensors, "in.context_videoref_audio"),
        ),
    )
    t = jnp.asarray(tensors["in.t"], jnp.float32) / 1000
    velocity = tavr(VideoMotion(generated), t, conditions).latents[0]
    expected = np.transpose(tensors["out.velocity"], (1, 2, 3, 0))
    # float32 sums in another order, and sinusoids of times in float32, not float64.
    np.testing.assert_allclose(velocity, expected, atol=5e-5)


def _latents(array):
    """C F H W with flags -> 1 F H W 16."""
    return jnp.asarray(np.transpose(array[:16], (1, 2, 3, 0)))[None]


def _pad(text):
    return jnp.asarray(np.pad(text, ((0, TEXT_LENGTH - len(text)), (0, 0))))[None]


def _optional(tensors, name):
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
    adapters = {
        f"adapter_{n}": _adapter(weights, f"{heard}.videoref_aud_{n}_adapter")
        for n in "qkv"
    }
    return {
        "modulation": weights[f"{b}.modulation"][0],
        "attention": _attention(weights, f"{b}.self_attn"),
        "text_norm": _norm(weights, f"{b}.norm3"),
        "text_attention": _attention(weights, f"{b}.cross_attn"),
        "audio": {
            "norm": _norm(weights, f"{b}.norm4"),
            "attention": _attention(weights, heard),
            **adapters,
        },
        "feedforward": _mlp(weights, f"{b}.ffn"),
    }


def _params(weights, layers):
    """Map the original's names to ours."""
    patch = weights["patch_embedding.weight"][:, :, 0]  # D C p q
    blocks = [_block(weights, f"blocks.{i}") for i in range(layers)]
    return {
        "embed": {
            "patch": {
                "kernel": np.transpose(patch, (2, 3, 1, 0)).reshape(-1, len(patch)),
                "bias": weights["patch_embedding.bias"],
            },
            "text": _mlp(weights, "text_embedding"),
            "time": _mlp(weights, "time_embedding"),
            "modulation": _dense(weights, "time_projection.1"),
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
        },
        "blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks),
        "head_modulation": weights["head.modulation"][0],
        "head": _dense(weights, "head.head"),
    }
