"""Rows, positions, times and speech before any block (~15 s; needs ../shared)."""

import cases
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from avatar_kernels import norm_rotary
from avatar_kernels.modulated_norm import modulate
from einops import rearrange

from avatar_jax.models import audio, embed, tokens
from avatar_jax.nn import embeddings, rotary
from avatar_jax.types import Conditions, Reference, VideoMotion

ATOL = 2e-5  # float32 sums in another order
TABLE_ATOL, ROTATED_ATOL = 1e-12, 1e-6
AXES = {"temporal": rotary.TIME, "height": rotary.ROW, "width": rotary.COLUMN}


@pytest.mark.parametrize("case", cases.find("rope") + cases.find("rope_full"))
def test_rotary_tables_equal_the_original(case):
    described, tensors = cases.load(case)
    head_dim = tensors["in.x"].shape[-1]
    for name, axis in AXES.items():
        cos = tensors[f"out.{name}_rows.cos"]
        places = transformers.SPATIAL_STRIDE * np.arange(len(cos))
        if axis == rotary.TIME:
            places = transformers.times(described["constants"])
        turn = rotary.exact_angles(places, axis, head_dim)
        np.testing.assert_allclose(np.cos(turn), cos, atol=TABLE_ATOL)
        sin = tensors[f"out.{name}_rows.sin"]
        np.testing.assert_allclose(np.sin(turn), sin, atol=TABLE_ATOL)


@pytest.mark.parametrize("case", cases.find("rope"))
def test_rotary_rows_far_out_equal_the_original(case):
    tensors = cases.load(case)[1]
    head_dim = tensors["in.x"].shape[-1]
    turn = rotary.exact_angles(tensors["in.base_rows"], rotary.TIME, head_dim)
    for name, function in (("cos", np.cos), ("sin", np.sin)):
        expected = tensors[f"out.base_temporal_table_at_rows.{name}"]
        np.testing.assert_allclose(function(turn), expected, atol=TABLE_ATOL)


@pytest.mark.parametrize("case", cases.find("rope") + cases.find("rope_full"))
def test_rotated_heads_equal_the_original(case):
    described, tensors = cases.load(case)
    x = jnp.asarray(tensors["in.x"])
    turn = transformers.turn(described, x.shape[-1])
    rotated = norm_rotary.rotate(x, turn)
    np.testing.assert_allclose(rotated, tensors["out.rotated"], atol=ROTATED_ATOL)


@pytest.mark.parametrize("case", cases.find("time"))
def test_sinusoids_equal_the_original(case):
    tensors = cases.load(case)[1]
    t, expected = tensors["in.t"], tensors["out.sinusoid_f64"]
    angle = t[:, None] * embeddings.time_speeds(expected.shape[1])[None]
    exact = np.concatenate([np.cos(angle), np.sin(angle)], -1)
    np.testing.assert_allclose(exact, expected, atol=TABLE_ATOL)
    times = jnp.asarray(t, jnp.float32) / 1000
    ours = embeddings.time_features(times, expected.shape[1])
    np.testing.assert_allclose(ours, expected, atol=5e-7)  # float32


@pytest.mark.parametrize("case", cases.find("time"))
def test_modulation_and_head_equal_the_original(case):
    tensors = cases.load(case)[1]
    cfg, params = transformers.tavr(case)
    t = jnp.asarray(tensors["in.t"], jnp.float32) / 1000
    target, time, reference = _time(cfg, params, t)
    tables = params["blocks"]["modulation"][:, None]  # layers 1 6 D
    head = params["head_modulation"][None] + time[:, None]  # B 2 D
    y = modulate(jnp.asarray(tensors["in.tokens"]), head[:, :1], head[:, 1:])
    head_tokens = nn.Dense(params["head"]["bias"].size).apply(
        {"params": params["head"]}, y
    )
    ours = {
        "e": time,
        "e0": target,
        "e0_videoref": reference,
        "block_modulation": tables + target[None],
        "block_modulation_videoref": tables + reference[None],
        "head_shift_scale": head,
        "head_all_tokens": head_tokens,
    }
    for name, value in ours.items():
        expected = tensors[f"out.{name}"]
        value = jnp.broadcast_to(value, expected.shape)
        np.testing.assert_allclose(value, expected, atol=ATOL, err_msg=name)


@pytest.mark.parametrize("case", cases.find("patch"))
def test_patches_equal_the_original(case):
    tensors = cases.load(case)[1]
    cfg, params = transformers.tavr(case)
    cells = rearrange(tensors["in.x"], "C F H W -> 1 F H W C")
    patches = tokens.patchify(jnp.asarray(cells), cfg.patch)
    rows = rearrange(patches, "B F h w P -> B (F h w) P")
    ours = nn.Dense(cfg.width).apply({"params": params["embed"]["patch"]}, rows)
    np.testing.assert_allclose(ours, tensors["out.tokens"], atol=ATOL)


@pytest.mark.parametrize("case", cases.find("patch"))
def test_pixels_of_the_head_lie_as_in_the_original(case):
    described, tensors = cases.load(case)
    frames, height, width = described["meta"]["grid"]
    rows = rearrange(
        jnp.asarray(tensors["in.head_tokens"]),
        "B (F h w) P -> B F h w P",
        F=frames,
        h=height,
        w=width,
    )
    patch = described["constants"]["patch_size"][-1]
    ours = rearrange(tokens.unpatchify(rows, patch), "1 F H W C -> C F H W")
    np.testing.assert_array_equal(ours, tensors["out.unpatchified"])


@pytest.mark.parametrize("case", cases.find("audio_tokens"))
def test_rows_of_speech_equal_the_original(case):
    tensors = cases.load(case)[1]
    cfg, params = transformers.tavr(case)
    full = tensors["out.driving_full_length"].shape
    sizes = tensors["out.reference"].shape
    for use, given, expected in (
        ("audio", tensors["in.driving"], "driving"),
        ("audio", tensors["in.driving_full"], "driving_full_length"),
        ("audio", None, "driving_null"),
        ("reference_audio", tensors["in.reference"], "reference"),
        ("reference_audio", None, "reference_null"),
    ):
        shape = full if use == "audio" else sizes
        rows = None if given is None else jnp.asarray(given)
        rows, valid = audio.fill_speech(rows, None, shape)
        layer = audio.AudioTokens(cfg.width, cfg.compute_dtype)
        tree = {"params": params["embed"][use]}
        with transformers.as_identity("embedding"):
            ours = layer.apply(tree, rows, valid)
        ours = rearrange(ours, "B F a M -> B (F a) M")
        np.testing.assert_array_equal(ours, tensors[f"out.{expected}"])


def _time(cfg, params, t):
    """Return modulation of target rows, time embedding, modulation of references."""
    layer, tree = embed.Embed(cfg), {"params": params["embed"]}
    cells = jnp.zeros((len(t), 1, cfg.patch, cfg.patch, cfg.channels))
    _, target, time, _ = layer.apply(
        tree, VideoMotion(cells), t, Conditions(), method="target"
    )
    nobody = Reference(
        latents=cells,
        valid=jnp.zeros((len(t), 1, 1, 1), bool),
        segment_ids=jnp.zeros((len(t), 1), jnp.int32),
    )
    _, reference = layer.apply(tree, nobody, None, method="reference")
    return target.modulation, time, reference.modulation
