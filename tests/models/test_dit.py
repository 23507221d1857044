"""What the velocity network sees and what it does not (~60 s on 2 cores)."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dit_cases import (
    FULL,
    HEARING,
    PLAIN,
    B,
    T,
    make_cache,
    make_conditions,
    make_noisy,
    make_reference,
    normal,
    random_params,
    run,
)

from avatar_jax import checkpoint
from avatar_jax.models import dit, sizes, tokens
from avatar_jax.types import Conditions, VideoMotion, drop_reference


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
    """t, noise, prompt, speech, still, prefix, motion: the cache depends on none.

    The whole network is differentiated: the output through the cache of block 1 and on
    would carry a gradient from the target rows if a reference row ever saw one.
    """
    model, params = full

    names = ("text", "audio", "still", "prefix", "motion", "prefix_motion")

    def cache_of(noisy, t, *told):
        conditions = make_conditions(**dict(zip(names, told, strict=True)))
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
    inputs = (make_noisy(), T, *(getattr(c, name) for name in names))
    grads = jax.jit(jax.grad(cache_of, argnums=tuple(range(8))))(*inputs)
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
        rtol=1e-5,
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


def test_permuting_segments_changes_nothing(full):
    """With the latents of a segment go its speech and its motion."""
    model, params = full
    order = jnp.array([2, 3, 0, 1])
    base = make_reference()
    frames = (order[:, None] * 4 + jnp.arange(4)[None]).reshape(-1)
    swapped = base.replace(
        latents=base.latents[:, order],
        valid=base.valid[:, order],
        audio=base.audio[:, frames],
        motion=base.motion[:, frames],
    )
    one = run(model, params, make_noisy(), T, make_conditions(reference=base))
    two = run(model, params, make_noisy(), T, make_conditions(reference=swapped))
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


def test_a_dropped_reference_is_as_none_at_all(full):
    model, params = full
    base = make_conditions()
    dropped = drop_reference(base.reference, jnp.array([True, False]))
    one = run(model, params, make_noisy(), T, base.replace(reference=dropped))
    whole = run(model, params, make_noisy(), T, base)
    none = run(model, params, make_noisy(), T, base.replace(reference=None))
    chex.assert_trees_all_equal(one.latents[0], whole.latents[0])
    chex.assert_trees_all_close(one.latents[1], none.latents[1], atol=1e-5)
    assert float(jnp.abs(whole.latents[1] - none.latents[1]).max()) > 1e-3


def grow(parent_params, cfg):
    """Make a network of `cfg` that starts from a parent's weights."""
    child = dit.AvatarDiT(cfg)
    noisy, conditions = make_noisy(), make_conditions()
    if not cfg.reference:
        conditions = conditions.replace(reference=None)
    fresh = jax.jit(child.init)(jax.random.key(7), noisy, T, conditions)["params"]
    return child, checkpoint.overlay(fresh, parent_params)


def test_stage_2_with_speech_equals_stage_1_at_step_0():
    parent, parent_params = random_params(PLAIN)
    child, params = grow(parent_params, HEARING)
    conditions = make_conditions(reference=None)
    one = run(child, params, make_noisy(), T, conditions)
    two = run(parent, parent_params, make_noisy(), T, conditions)
    chex.assert_trees_all_equal(one.latents, two.latents)


def test_stage_3_equals_stage_2_until_one_update():
    """Speech and motion codes present, reference rows invalid."""
    parent, parent_params = random_params(HEARING)
    child, params = grow(parent_params, FULL)
    nothing = make_reference(
        valid=jnp.zeros((B, 4, 2, 3), bool), faces_valid=jnp.zeros((B, 2), bool)
    )
    noisy, conditions = make_noisy(), make_conditions(reference=nothing)
    before = run(child, params, noisy, T, conditions)
    plain = conditions.replace(reference=None)
    expected = run(parent, parent_params, noisy, T, plain)
    chex.assert_trees_all_equal(before.latents, expected.latents)

    def with_output(output):
        injection = {**params["blocks"]["motion"]}
        injection["attention"] = {**injection["attention"], "o": output}
        return {**params, "blocks": {**params["blocks"], "motion": injection}}

    @jax.jit
    def update(output):
        def loss(output):
            out = child.apply({"params": with_output(output)}, noisy, T, conditions)
            return jnp.mean(jnp.square(out.latents - 1.0))

        # Of one layer alone, which compiles sooner.
        return jax.tree.map(lambda p, g: p - g, output, jax.grad(loss)(output))

    stepped = with_output(update(params["blocks"]["motion"]["attention"]["o"]))
    after = run(child, stepped, noisy, T, conditions)
    assert float(jnp.abs(after.latents - expected.latents).max()) > 1e-5
    moved = conditions.replace(motion=conditions.motion + 1.0)
    other = run(child, stepped, noisy, T, moved)
    assert float(jnp.abs(after.latents - other.latents).max()) > 1e-6


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
