"""A block and its attentions alone, number for number (~20 s; needs ../shared)."""

import functools

import cases
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from einops import rearrange

from avatar_jax.models import audio, block, tokens
from avatar_jax.nn import attention, context_parallel, fused
from avatar_jax.types import Reference

ATOL, SMALL_ATOL = 2e-5, 1e-5


@pytest.mark.parametrize("case", cases.find("self_attn"))
def test_self_attention_equals_the_original(case):
    described, tensors = cases.load(case)
    cfg, params = transformers.tavr(case)
    tree = {"params": _block_of(case, params)["attention"]}
    layer = attention.Attention(cfg.width, cfg.heads, 1.0, cfg.compute_dtype)
    x, turn = jnp.asarray(tensors["in.x"]), transformers.turn(described, cfg.head_dim)
    norm = functools.partial(fused.norm_rotary, turn=turn)
    split = functools.partial(attention.split_heads, heads=cfg.heads)
    q = split(layer.apply(tree, x, norm=norm, method="queries"))
    k = split(layer.apply(tree, x, norm=norm, method="keys"))
    v = split(layer.apply(tree, x, method="values"))
    valid = _rows(tensors["in.valid_masks"])
    own = _own_rows(described)
    (q0, q1), (k0, k1), (v0, v1) = ((a[:, :own], a[:, own:]) for a in (q, k, v))
    target = context_parallel.target_attention(
        q0, k0, v0, k1, v1, valid=valid[:, :own], reference_valid=valid[:, own:]
    )
    ids = jnp.zeros(k1.shape[:2], jnp.int32)
    reference = context_parallel.segment_attention(
        q1, k1, v1, valid=valid[:, own:], segment_ids=ids
    )
    mixed = rearrange(jnp.concatenate([target, reference], 1), "B T N K -> B T (N K)")
    y = layer.apply(tree, mixed, method="output")
    expected = {"out.y": y, "mid.q_after_rope": q, "mid.k_after_rope": k}
    for name, ours in expected.items():
        if name in tensors:
            _assert_valid_close(ours, tensors[name], valid)


@pytest.mark.parametrize("case", cases.find("text_attn"))
def test_text_attention_equals_the_original(case):
    tensors = cases.load(case)[1]
    cfg, params = transformers.tavr(case)
    tree = {"params": _block_of(case, params)["text_attention"]}
    layer = attention.Attention(cfg.width, cfg.heads, 1.0, cfg.compute_dtype)
    text = jnp.asarray(tensors["in.context"])[0]  # F L D: each frame has its own
    x = rearrange(tensors["in.x"], "1 (F P) D -> F P D", F=len(text))
    q = layer.apply(tree, jnp.asarray(x), method="queries")
    k = layer.apply(tree, text, method="keys")
    v = layer.apply(tree, text, method="values")
    q, k, v = (attention.split_heads(a, cfg.heads) for a in (q, k, v))
    mixed = context_parallel.cross_attention(q, k, v)
    y = layer.apply(tree, rearrange(mixed, "F P N K -> F P (N K)"), method="output")
    y = rearrange(y, "F P D -> 1 (F P) D")
    _assert_valid_close(y, tensors["out.y"], _rows(tensors["in.valid_masks"]))


@pytest.mark.parametrize("case", cases.find("audio_attn"))
def test_audio_attention_equals_the_original(case):
    tensors = cases.load(case)[1]
    cfg, params = transformers.tavr(case)
    layer = audio.AudioAttention(
        cfg.width, cfg.heads, cfg.adapter_rank, cfg.compute_dtype
    )
    tree = {"params": _block_of(case, params)["audio"]}
    x, heard = jnp.asarray(tensors["in.x_generated"]), _latents(tensors["in.aud"])
    frames = heard.shape[1]
    rows = jnp.asarray(tensors["in.x_reference"])
    spoken = _latents(tensors["in.videoref_aud"])
    cells = rows.shape[1] // spoken.shape[1]
    with transformers.as_identity("norm"):  # the case's rows are normed
        generated = layer.apply(
            tree,
            rearrange(x, "B (F P) D -> B F P D", F=frames),
            heard,
            jnp.asarray(tensors["in.aud_pos_emb"]),
            method="target",
        )
        reference = layer.apply(
            tree,
            rows,
            spoken,
            jnp.asarray(tensors["in.videoref_aud_pos_emb"]),
            jnp.repeat(jnp.arange(spoken.shape[1]), cells)[None],
            method="reference",
        )
    generated = rearrange(generated, "B F P D -> B (F P) D")
    valid = _rows(tensors["in.valid_masks"])
    atol = _atol(case)
    np.testing.assert_allclose(generated, tensors["out.y_generated"], atol=atol)
    valid = valid[:, -rows.shape[1] :]
    _assert_valid_close(reference, tensors["out.y_reference"], valid, atol)


@pytest.mark.parametrize("case", cases.find("block"))
def test_a_block_equals_the_original(case):
    described, tensors = cases.load(case)
    cfg, params = transformers.tavr(case)
    own, x = _own_rows(described), jnp.asarray(tensors["in.x"])
    valid = _rows(tensors["in.valid_masks"])
    target = block.TargetContext(
        modulation=jnp.asarray(tensors["in.e0"]),
        turn=transformers.turn(described, cfg.head_dim)[:, :own],
        valid=valid[:, :own],
        role=jnp.zeros((1, own, cfg.width)),
        text=jnp.asarray(tensors["in.txt"]),
        audio=_latents(tensors["in.aud"]),
        audio_slots=jnp.asarray(tensors["in.aud_pos_emb"]),
        motion=None,
        frames=described["constants"]["generated_latents"],
    )
    rows = _reference_rows(described, cfg, valid[:, own:])
    reference = block.ReferenceContext(
        modulation=jnp.asarray(tensors["in.e0_videoref"]),
        rows=rows,
        role=jnp.zeros((1, 1, cfg.width)),
        text=jnp.asarray(tensors["in.null_txt"]),
        audio=_latents(tensors["in.videoref_aud"]),
        audio_slots=jnp.asarray(tensors["in.videoref_aud_pos_emb"]),
        motion=None,
        identity=None,
    )
    one, tree = block.Block(cfg), {"params": _block_of(case, params)}
    after, (k, v) = one.apply(tree, x[:, own:], reference, method="reference")
    cached = (k, v, rows.valid)
    before = one.apply(tree, x[:, :own], cached, target, method="target")
    y = jnp.concatenate([before, after], 1)
    _assert_valid_close(y, tensors["out.y"], valid, _atol(case))


def _reference_rows(described, cfg, valid):
    """Return the rows of a reference of one segment, without latents."""
    frames, (_, height, width) = valid.shape[1], described["meta"]["grid"]
    frames //= height * width
    shape = (1, frames, height * cfg.patch, width * cfg.patch, cfg.channels)
    return tokens.reference_rows(
        Reference(
            latents=jnp.zeros(shape),
            valid=rearrange(valid, "B (F h w) -> B F h w", h=height, w=width),
            segment_ids=jnp.zeros((1, frames), jnp.int32),
        ),
        patch=cfg.patch,
        scale=cfg.rotary_scale,
        face_scale=cfg.rotary_scale,
        head_dim=cfg.head_dim,
        extra_channels=0,
    )


def _block_of(case, params):
    return transformers.layer(params, cases.load(case)[0]["meta"]["block_index"])


def _own_rows(described):
    """Count the generated and still rows."""
    constants, (_, height, width) = described["constants"], described["meta"]["grid"]
    frames = constants["generated_latents"] + constants["still_latents"]
    return frames * height * width


def _rows(masks):
    return jnp.asarray(masks).reshape(1, -1)


def _latents(rows):
    return rearrange(jnp.asarray(rows), "B (F a) D -> B F a D", a=4)


def _atol(case):
    return SMALL_ATOL if case.stem.endswith("small_inputs") else ATOL


def _assert_valid_close(ours, expected, valid, atol=ATOL):
    """Rows that are not valid are nobody's: the original leaves biases there."""
    valid = np.asarray(valid)
    np.testing.assert_allclose(np.asarray(ours)[valid], expected[valid], atol=atol)
