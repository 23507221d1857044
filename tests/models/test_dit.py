"""What the velocity network sees and what it does not (~60 s on 2 cores)."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dit_cases import (
    FULL,
    PLAIN,
    B,
    make_conditions,
    make_noisy,
    make_reference,
    normal,
    random_params,
)

from avatar_jax import checkpoint
from avatar_jax.models import dit, sizes, tokens
from avatar_jax.types import Conditions, VideoMotion

T = jnp.array([0.3, 0.7])


@pytest.fixture(scope="module")
def full():
    return random_params(FULL)


@functools.cache
def _jitted(cfg, method):
    model = dit.AvatarDiT(cfg)
    return jax.jit(
        lambda params, *args: model.apply({"params": params}, *args, method=method)
    )


def run(model, params, noisy, t, conditions):
    return _jitted(model.cfg, None)(params, noisy, t, conditions)


def make_cache(model, params, reference, null_text):
    return _jitted(model.cfg, "cache_reference")(params, reference, null_text)


def test_cached_equals_uncached(full):
    model, params = full
    conditions = make_conditions()
    cache = make_cache(model, params, conditions.reference, conditions.null_text)
    uncached = run(model, params, make_noisy(), T, conditions)
    cached = run(model, params, make_noisy(), T, conditions.replace(reference=cache))
    chex.assert_trees_all_close(cached, uncached, atol=1e-5)


def test_the_reference_reaches_the_output(full):
    model, params = full
    one = run(model, params, make_noisy(), T, make_conditions())
    other = make_conditions(reference=make_reference(latents=normal(99, 2, 4, 4, 6, 5)))
    two = run(model, params, make_noisy(), T, other)
    assert float(jnp.abs(one.latents - two.latents).max()) > 1e-2


def test_reference_activations_have_no_gradient_to_anything_of_the_target(full):
    """t, noise, prompt, driving speech, still, prefix: the cache depends on none.

    The whole network is differentiated: the output through the cache of block 1 and on
    would carry a gradient from the target rows if a reference row ever saw one.
    """
    model, params = full

    def cache_of(noisy, t, text, audio, still, prefix):
        conditions = make_conditions(text=text, audio=audio, still=still, prefix=prefix)
        _, sown = model.apply(
            {"params": params},
            noisy,
            t,
            conditions,
            capture_intermediates=lambda _, name: name == "cache_reference",
            mutable="intermediates",
        )
        cache = sown["intermediates"]["cache_reference"][0]
        return jnp.sum(cache.k**2) + jnp.sum(cache.v**3)

    c = make_conditions()
    inputs = (make_noisy(), T, c.text, c.audio, c.still, c.prefix)
    grads = jax.jit(jax.grad(cache_of, argnums=tuple(range(6))))(*inputs)
    for leaf in jax.tree.leaves(grads):
        np.testing.assert_array_equal(leaf, 0)

    def cache_of_reference(latents):
        reference = make_reference(latents=latents)
        cache = make_cache(model, params, reference, c.null_text)
        return jnp.sum(cache.k**2)

    assert float(jnp.abs(jax.grad(cache_of_reference)(c.reference.latents)).max()) > 0


def test_packed_equals_masked(full):
    model, params = full
    masked = make_conditions()
    rows = int(masked.reference.valid.sum((1, 2, 3)).max()) + 4
    packed = make_conditions(reference=make_reference(capacity=rows))
    assert rows < masked.reference.valid[0].size + 4
    chex.assert_trees_all_close(
        run(model, params, make_noisy(), T, packed),
        run(model, params, make_noisy(), T, masked),
        atol=1e-5,
    )


def test_an_invalid_reference_row_changes_nothing(full):
    model, params = full
    base = make_conditions()
    valid = base.reference.valid
    hidden = jnp.repeat(jnp.repeat(~valid, 2, 2), 2, 3)[..., None]
    garbage = jnp.where(hidden, 50.0, base.reference.latents)
    other = make_conditions(reference=make_reference(latents=garbage))
    chex.assert_trees_all_equal(
        run(model, params, make_noisy(), T, other),
        run(model, params, make_noisy(), T, base),
    )


def test_invalid_still_cells_and_dropped_audio_change_nothing(full):
    model, params = full
    silent = jnp.array([True, False])
    base = make_conditions(audio_valid=silent)
    hidden = jnp.repeat(jnp.repeat(~base.still_valid, 2, 1), 2, 2)[:, None, :, :, None]
    other = base.replace(
        still=jnp.where(hidden, 50.0, base.still),
        audio=base.audio.at[1].set(9.0),
        prefix=base.prefix.at[1].set(9.0),
    )
    chex.assert_trees_all_equal(
        run(model, params, make_noisy(), T, other),
        run(model, params, make_noisy(), T, base),
    )


def test_permuting_segments_changes_nothing():
    order = jnp.array([2, 3, 0, 1])
    base = make_reference()
    frames = (order[:, None] * 4 + jnp.arange(4)[None]).reshape(-1)
    swapped = base.replace(
        latents=base.latents[:, order],
        valid=base.valid[:, order],
        audio=base.audio[:, frames],
    )
    # Motion convolutions run over the whole clip: segments are compared without.
    quiet = dataclasses.replace(FULL, motion_width=None)
    model, params = random_params(quiet)
    noisy = VideoMotion(make_noisy().latents)
    one = run(model, params, noisy, T, make_conditions(reference=base))
    two = run(model, params, noisy, T, make_conditions(reference=swapped))
    chex.assert_trees_all_close(one, two, atol=1e-4)


def test_the_prefix_is_placed_clean_and_flagged(full):
    model, params = full
    noisy = make_noisy()
    # Sample 0 has a prefix: what the noisy latents hold there is not seen.
    changed = noisy.replace(latents=noisy.latents.at[:, :2].add(3.0))
    one = run(model, params, noisy, T, make_conditions())
    two = run(model, params, changed, T, make_conditions())
    chex.assert_trees_all_equal(one.latents[0, 2:], two.latents[0, 2:])
    assert float(jnp.abs(one.latents[1, 2:] - two.latents[1, 2:]).max()) > 1e-3


def test_a_new_stage_equals_its_parent_until_one_update():
    """Speech and motion present, reference rows invalid: the child is the parent."""
    parent, parent_params = random_params(PLAIN)
    child = dit.AvatarDiT(FULL)
    fresh = jax.jit(child.init)(jax.random.key(7), make_noisy(), T, make_conditions())
    params = checkpoint.overlay(fresh["params"], parent_params)
    nothing = make_reference(
        valid=jnp.zeros((B, 4, 2, 3), bool), faces_valid=jnp.zeros((B, 2), bool)
    )
    conditions = make_conditions(reference=nothing)
    before = run(child, params, make_noisy(), T, conditions)
    expected = run(
        parent, parent_params, make_noisy(), T, conditions.replace(reference=None)
    )
    chex.assert_trees_all_close(before.latents, expected.latents, atol=1e-6)

    noisy = make_noisy()

    def loss(params):
        out = child.apply({"params": params}, noisy, T, conditions)
        return jnp.mean(jnp.square(out.latents - 1.0))

    grads = jax.jit(jax.grad(loss))(params)
    for new in ("audio", "motion"):
        output = grads["blocks"][new]["attention"]["o"]["kernel"]
        assert float(jnp.abs(output).max()) > 0, f"{new} cannot learn"
    stepped = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    louder = conditions.replace(audio=conditions.audio + 1.0)
    one, two = (run(child, stepped, make_noisy(), T, c) for c in (conditions, louder))
    assert float(jnp.abs(one.latents - two.latents).max()) > 1e-6


def test_motion_of_reference_rows_does_not_depend_on_t(full):
    model, params = full
    conditions = make_conditions()
    cache = make_cache(model, params, conditions.reference, conditions.null_text)
    moved = conditions.reference.replace(motion=conditions.reference.motion + 1.0)
    other = make_cache(model, params, moved, conditions.null_text)
    assert float(jnp.abs(cache.k[1:] - other.k[1:]).max()) > 1e-4
    np.testing.assert_array_equal(cache.k[0], other.k[0])  # injected after attention


def test_scanned_blocks_rematerialise_to_the_same_gradient():
    small = dataclasses.replace(PLAIN, reference=True)
    model, params = random_params(small)
    again = dit.AvatarDiT(dataclasses.replace(small, remat=True))

    noisy, conditions = make_noisy(), make_conditions()

    def grad_of(model):
        def loss(params):
            out = model.apply({"params": params}, noisy, T, conditions)
            return jnp.mean(jnp.square(out.latents))

        return jax.jit(jax.grad(loss))(params)

    chex.assert_trees_all_close(grad_of(model), grad_of(again), rtol=1e-3, atol=1e-5)


def test_clean_prediction_is_the_velocity_of_a_preconditioned_estimate(full):
    """An output of zero is the best linear guess of x, given data of variance 1."""
    model, params = full
    as_velocity = dit.AvatarDiT(dataclasses.replace(FULL, prediction="velocity"))
    noisy = make_noisy()
    raw = run(as_velocity, params, noisy, T, make_conditions())
    velocity = run(model, params, noisy, T, make_conditions())

    def expect(x, out):
        t = np.reshape(T, (B,) + (1,) * (x.ndim - 1))
        spread = np.sqrt((1 - t) ** 2 + t**2)
        estimate = (1 - t) / spread**2 * x + t / spread * out
        return (x - estimate) / t

    chex.assert_trees_all_close(
        velocity, jax.tree.map(expect, noisy, raw), rtol=1e-4, atol=1e-4
    )


def test_switched_off_it_has_exactly_the_parameters_of_tavr():
    model = dit.AvatarDiT(sizes.LARGE)
    noisy = VideoMotion(jnp.zeros((1, 2, 4, 4, 16)))
    shapes = jax.eval_shape(model.init, jax.random.key(0), noisy, T[:1], Conditions())
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert set(shapes["params"]["head"]) == {"kernel", "bias"}  # no convolutions
    assert count == 18_905_907_264  # the published file


def test_patches_survive_the_round_trip():
    latents = normal(0, 2, 3, 4, 6, 5)
    there = tokens.patchify(latents, 2)
    assert there.shape == (2, 3, 2, 3, 20)
    np.testing.assert_array_equal(tokens.unpatchify(there, 2), latents)
    with pytest.raises(ValueError, match="do not divide"):
        tokens.patchify(latents, 4)
