"""Every extra off, the network is TAVR, number for number (~30 s; needs ../shared)."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from einops import rearrange

from avatar_jax.models import block, dit, embed
from avatar_jax.types import Conditions, Reference, VideoMotion

ATOL = 2e-5  # float32 sums in another order, on values up to 10


def _find(condition):
    """Return the cases of whose tensors something holds."""
    found = cases.find("dit")
    return [
        case
        for case in found
        if case.values[0] is None or condition(cases.load(case.values[0])[1])
    ]


def _has_intermediates(tensors):
    return "mid.e" in tensors


def _has_no_reference(tensors):
    reference = tensors["in.context_videoref"].shape[1]
    return not tensors["in.valid_masks"][-reference:].any()


@pytest.mark.parametrize("case", cases.find("dit"))
def test_velocity_equals_the_original(case):
    cfg, params = transformers.tavr(case)
    noisy, t, conditions = _inputs(case)
    velocity = _velocity(cfg, params, noisy, t, conditions)
    np.testing.assert_allclose(velocity, _expected(case), atol=ATOL)


@pytest.mark.parametrize("case", _find(_has_no_reference))
def test_a_reference_without_valid_rows_is_as_none_at_all(case):
    cfg, params = transformers.tavr(case)
    noisy, t, conditions = _inputs(case)
    velocity = _velocity(cfg, params, noisy, t, conditions.replace(reference=None))
    np.testing.assert_allclose(velocity, _expected(case), atol=ATOL)


@pytest.mark.parametrize("case", _find(_has_intermediates))
def test_packed_rows_give_the_same_velocity(case):
    """As the sampler runs it: valid rows first, cached, a bucket that holds them."""
    cfg, params = transformers.tavr(case)
    noisy, t, conditions = _inputs(case)
    rows = int(conditions.reference.valid.sum())
    reference = conditions.reference.replace(capacity=rows)
    make_cache = _jitted(cfg, "cache_reference")
    cache = make_cache({"params": params}, reference, conditions.null_text)
    assert cache.k.shape[2] == rows
    conditions = conditions.replace(reference=cache, null_text=None)
    velocity = _velocity(cfg, params, noisy, t, conditions)
    np.testing.assert_allclose(velocity, _expected(case), atol=ATOL)


@pytest.mark.parametrize("case", _find(_has_intermediates))
def test_embeddings_equal_the_original(case):
    tensors = cases.load(case)[1]
    cfg, params = transformers.tavr(case)
    x, target, time, rows, reference = _embed(cfg, params, case)
    ours = {
        "e": time,
        "e0": target.modulation,
        "e0_videoref": reference.modulation,
        "txt_embedded": target.text,
        "null_txt_embedded": reference.text,
        "aud_embedded": rearrange(target.audio, "B F a D -> B (F a) D"),
        "videoref_aud_embedded": rearrange(reference.audio, "B F a D -> B (F a) D"),
        # The original adds role vectors before it calls a block.
        "tokens_before_block0": jnp.concatenate(
            [x + target.role, rows + reference.role], 1
        ),
    }
    for name, value in ours.items():
        expected = tensors[f"mid.{name}"]
        np.testing.assert_allclose(value, expected, atol=ATOL, err_msg=name)


@pytest.mark.parametrize("case", _find(_has_intermediates))
def test_valid_rows_after_each_block_equal_the_original(case):
    tensors = cases.load(case)[1]
    cfg, params = transformers.tavr(case)
    x, target, _, rows, reference = _embed(cfg, params, case)
    valid = jnp.concatenate([target.valid, reference.rows.valid], 1)

    @jax.jit
    def run(layer, x, rows):
        one = block.Block(cfg, parent=None)
        rows, (k, v) = one.apply({"params": layer}, rows, reference, method="reference")
        cached = (k, v, reference.rows.valid)
        x = one.apply({"params": layer}, x, cached, target, method="target")
        return x, rows

    for i in range(cfg.layers):
        x, rows = run(transformers.layer(params, i), x, rows)
        expected = tensors[f"mid.tokens_after_block{i}"]
        ours = jnp.concatenate([x, rows], 1)
        np.testing.assert_allclose(ours[valid], expected[valid], atol=ATOL)


def _velocity(cfg, params, noisy, t, conditions):
    return _jitted(cfg, None)({"params": params}, noisy, t, conditions).latents[0]


@functools.cache
def _jitted(cfg, method):
    return jax.jit(functools.partial(dit.AvatarDiT(cfg).apply, method=method))


def _expected(case):
    return rearrange(cases.load(case)[1]["out.velocity"], "C F H W -> F H W C")


def _embed(cfg, params, case):
    """Return target rows, their context, the time, reference rows, their context."""
    noisy, t, conditions = _inputs(case)
    layer, tree = embed.Embed(cfg), {"params": params["embed"]}
    x, target, time, _ = layer.apply(tree, noisy, t, conditions, method="target")
    rows, reference = layer.apply(
        tree, conditions.reference, conditions.null_text, method="reference"
    )
    return x, target, time, rows, reference


def _inputs(case):
    """Return a case as noisy latents, time and conditions."""
    described, tensors = cases.load(case)
    x, valid = tensors["in.x"], jnp.asarray(tensors["in.valid_masks"])[None]
    frames, rows = x.shape[1] - 1, described["constants"]["TEXT_LEN"]
    generated = transformers.latents(x[:, :frames])
    prefix = int(x[-1, :, 0, 0].sum())  # frames that the last channel flags
    reference = transformers.latents(tensors["in.context_videoref"])
    conditions = Conditions(
        text=_pad(tensors["in.txt"], rows),
        null_text=_pad(tensors["in.null_txt"], rows),
        audio=transformers.optional(tensors, "in.aud"),
        still=transformers.latents(x[:, frames:]),
        still_valid=valid[:, frames],
        prefix=generated[:, :prefix] if prefix else None,
        reference=Reference(
            latents=reference,
            valid=valid[:, frames + 1 :],
            segment_ids=jnp.zeros(reference.shape[:2], jnp.int32),
            audio=transformers.optional(tensors, "in.context_videoref_audio"),
        ),
    )
    t = jnp.asarray(tensors["in.t"], jnp.float32) / 1000
    return VideoMotion(generated), t, conditions


def _pad(text, rows):
    return jnp.asarray(np.pad(text, ((0, rows - len(text)), (0, 0))))[None]
