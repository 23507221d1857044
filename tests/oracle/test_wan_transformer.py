"""With every part off, the network is Wan2.1, number for number (~10 s)."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from einops import rearrange

from avatar_jax.models import dit, embed
from avatar_jax.nn import embeddings
from avatar_jax.types import Conditions, VideoMotion

ATOL = 2e-5  # float32 sums in another order, on values up to 6


@pytest.mark.parametrize("case", cases.find("wan_dit"))
def test_velocity_equals_the_original(case, monkeypatch):
    _use_float32_features(monkeypatch, case)
    np.testing.assert_allclose(_velocity(case), _expected(case), atol=ATOL)


@pytest.mark.parametrize("case", cases.find("wan_dit"))
def test_exact_sinusoids_move_the_velocity_a_little(case):
    """diffusers rounds angles of times to float32; Wan's own code and ours do not."""
    # 3e-5 in the angle of t = 999, times what the network makes of it.
    np.testing.assert_allclose(_velocity(case), _expected(case), atol=2e-4)


@pytest.mark.parametrize("case", cases.find("wan_dit"))
def test_embeddings_equal_the_original(case, monkeypatch):
    _use_float32_features(monkeypatch, case)
    tensors = cases.load(case)[1]
    cfg, params = transformers.wan_text_to_video(case)
    x, context, time, _ = embed.Embed(cfg).apply(
        {"params": params["embed"]}, *_inputs(case), method="target"
    )
    rows = tensors["mid.tokens_before_block0"].shape[1]  # without our still
    ours = {
        "tokens_before_block0": x[:, :rows],
        "temb": time,
        "timestep_proj": rearrange(context.modulation, "B six D -> B (six D)"),
        "text_embedded": context.text,
    }
    for name, value in ours.items():
        expected = tensors[f"mid.{name}"]
        np.testing.assert_allclose(value, expected, atol=ATOL, err_msg=name)
    turn = context.turn[0, :rows]
    # Angles up to pi in float32.
    np.testing.assert_allclose(jnp.cos(turn), tensors["mid.rope.cos"], atol=3e-7)
    np.testing.assert_allclose(jnp.sin(turn), tensors["mid.rope.sin"], atol=3e-7)


def _velocity(case):
    cfg, params = transformers.wan_text_to_video(case)
    model = dit.AvatarDiT(cfg)
    run = jax.jit(lambda *args: model.apply({"params": params}, *args))
    return run(*_inputs(case)).latents


def _expected(case):
    return rearrange(cases.load(case)[1]["out.sample"], "B C F H W -> B F H W C")


def _inputs(case):
    tensors = cases.load(case)[1]
    noisy = rearrange(tensors["in.hidden_states"], "B C F H W -> B F H W C")
    t = jnp.asarray(tensors["in.timestep"], jnp.float32) / 1000
    text = jnp.asarray(tensors["in.encoder_hidden_states"])
    return VideoMotion(jnp.asarray(noisy)), t, Conditions(text=text)


def _use_float32_features(monkeypatch, case):
    """Round frequencies and angles to float32, as diffusers does."""
    timestep = np.float32(cases.load(case)[1]["in.timestep"])

    def features(t, width):
        exponent = np.arange(width // 2, dtype=np.float32) * np.float32(-np.log(1e4))
        angle = timestep[:, None] * np.exp(exponent / np.float32(width // 2))[None]
        return jnp.asarray(np.concatenate([np.cos(angle), np.sin(angle)], -1))

    monkeypatch.setattr(embeddings, "time_features", features)
