"""Each piece of the transformer alone, number for number (~30 s; needs ../shared)."""

import functools

import cases
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from avatar_kernels import norm_rotary
from avatar_kernels.modulated_norm import modulate
from einops import rearrange

from avatar_jax.models import audio, block, embed, tokens
from avatar_jax.nn import attention, context_parallel, embeddings, fused, rotary
from avatar_jax.types import Conditions, Reference, VideoMotion

ATOL, SMALL_ATOL = 2e-5, 1e-5
TABLE_ATOL, ROTATED_ATOL = 1e-12, 1e-6
SPATIAL_STRIDE = 1.5  # of rows and columns, as released
AXES = {"temporal": rotary.TIME, "height": rotary.ROW, "width": rotary.COLUMN}


@pytest.mark.parametrize("case", cases.find("rope") + cases.find("rope_full"))
def test_rotary_tables_equal_the_original(case):
    described, tensors = cases.load(case)
    head_dim = tensors["in.x"].shape[-1]
    for name, axis in AXES.items():
        cos = tensors[f"out.{name}_rows.cos"]
        places = SPATIAL_STRIDE * np.arange(len(cos))
        if axis == rotary.TIME:
            places = _times(described["constants"])
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
    turn = _turn(described, x.shape[-1])
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
        with _as_identity("embedding"):
            ours = layer.apply(tree, rows, valid)
        ours = rearrange(ours, "B F a M -> B (F a) M")
        np.testing.assert_array_equal(ours, tensors[f"out.{expected}"])


@pytest.mark.parametrize("case", cases.find("self_attn"))
def test_self_attention_equals_the_original(case):
    described, tensors = cases.load(case)
    cfg, params = transformers.tavr(case)
    tree = {"params": _block_of(case, params)["attention"]}
    layer = attention.Attention(cfg.width, cfg.heads, 1.0, cfg.compute_dtype)
    x, turn = jnp.asarray(tensors["in.x"]), _turn(described, cfg.head_dim)
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
    with _as_identity("norm"):  # the case's rows are normed
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
        turn=_turn(described, cfg.head_dim)[:, :own],
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


def _times(constants):
    """Return temporal positions of generated, still and reference latents."""
    generated = np.arange(constants["generated_latents"])
    reference = tokens.REFERENCE_TIME + np.arange(constants["reference_latents"])
    assert constants["videoref_rope_offset"] == tokens.REFERENCE_TIME
    return np.concatenate([generated, [embed.STILL_TIME], reference])


def _turn(described, head_dim):
    """Return the angles of all rows of a case, as `embed` and `tokens` make them."""
    _, height, width = described["meta"]["grid"]
    times = rotary.angles(_times(described["constants"]), rotary.TIME, head_dim)
    stride = (described["dit_config"] or {}).get("rope_spatial_stride", SPATIAL_STRIDE)
    return rotary.grid_angles(times, height, width, stride, head_dim)[None]


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


def _as_identity(name):
    """Let the submodule of this name return what it is given."""

    def skip(call, args, kwargs, context):
        is_it = context.module.path == (name,)
        return args[0] if is_it and args else call(*args, **kwargs)

    return nn.intercept_methods(skip)


def _atol(case):
    return SMALL_ATOL if case.stem.endswith("small_inputs") else ATOL


def _assert_valid_close(ours, expected, valid, atol=ATOL):
    """Rows that are not valid are nobody's: the original leaves biases there."""
    valid = np.asarray(valid)
    np.testing.assert_allclose(np.asarray(ours)[valid], expected[valid], atol=atol)
