"""What motion codes do in the velocity network and what they do not (~20 s)."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from dit_cases import (
    DM,
    PREFIX_FRAMES,
    B,
    R,
    T,
    make_cache,
    make_conditions,
    make_noisy,
    make_reference,
    normal,
    run,
)

from avatar_jax.models import motion


def test_motion_of_a_segment_does_not_reach_another(full):
    model, params = full
    base = make_conditions().reference.replace(valid=jnp.ones((B, 4, 2, 3), bool))
    moved = base.replace(motion=base.motion.at[:, :8].add(1.0))  # segment 0
    one, two = (make_cache(model, params, r, None) for r in (base, moved))
    change = jnp.abs(one.k - two.k).max((0, 1, 3, 4))  # by row
    rows = 2 * 6  # of a segment: 2 latents of 6 patches
    assert (change[:rows] > 1e-4).all()
    np.testing.assert_array_equal(change[rows:], 0)


def test_codes_of_the_prefix_are_placed_clean_and_count_as_their_own_estimate(full):
    model, params = full
    noisy, base = make_noisy(), make_conditions()
    # Sample 0 has a prefix: neither noisy codes nor the estimate are seen there.
    first = noisy.motion.at[:, :PREFIX_FRAMES]
    told = base.replace(motion=base.motion.at[:, :PREFIX_FRAMES].add(2.0))
    one = run(model, params, noisy, T, base)
    two = run(model, params, noisy.replace(motion=first.add(3.0)), T, told)
    chex.assert_trees_all_equal(one.latents[0], two.latents[0])
    after = slice(PREFIX_FRAMES, None)
    chex.assert_trees_all_equal(one.motion[0, after], two.motion[0, after])
    assert float(jnp.abs(one.latents[1] - two.latents[1]).max()) > 1e-3
    other = base.replace(prefix_motion=base.prefix_motion + 1.0)
    three = run(model, params, noisy, T, other)
    assert float(jnp.abs(one.latents[0] - three.latents[0]).max()) > 1e-3
    chex.assert_trees_all_equal(one.latents[1], three.latents[1])


def test_dropped_motion_is_null_whatever_the_codes(full):
    model, params = full
    kept = jnp.array([True, False])
    base = make_conditions(
        motion_valid=kept, reference=make_reference(motion_valid=kept)
    )
    other = base.replace(
        motion=base.motion + 2.0,
        prefix_motion=base.prefix_motion - 1.0,
        reference=base.reference.replace(motion=base.reference.motion + 3.0),
    )
    noisy = make_noisy()
    louder = noisy.replace(motion=noisy.motion + 1.0)
    one = run(model, params, noisy, T, base)
    two = run(model, params, louder, T, other)
    chex.assert_trees_all_equal(one.latents[1], two.latents[1])
    assert float(jnp.abs(one.latents[0] - two.latents[0]).max()) > 1e-3


def test_the_four_codes_of_a_latent_know_their_places():
    embed = motion.MotionTokens(16, jnp.dtype("float32"))
    codes, time = jnp.ones((1, 12, DM)), jnp.zeros((1, 16))
    ids = jnp.zeros((1, 3), int)
    tokens_of, _ = embed.init_with_output(jax.random.key(0), codes, codes, time, ids)
    last = tokens_of[0, -1]  # codes that never change: places alone tell them apart
    apart = jnp.linalg.norm(last[:, None] - last[None], axis=-1)
    assert (apart + 9 * jnp.eye(4)).min() > 1


def test_manner_is_said_of_valid_frames_and_of_changes_inside_segments():
    embed = motion.Manner(16, jnp.dtype("float32"))
    base = make_reference(valid=jnp.ones((B, 4, 2, 3), bool))
    params = embed.init(jax.random.key(0), base)

    def say(**changes):
        return embed.apply(params, base.replace(**changes))

    whole = say()
    # Segments in another order: no change across the border between them counts.
    turned = jnp.roll(base.motion, 8, axis=1)
    np.testing.assert_allclose(say(motion=turned), whole, atol=1e-5)
    mixed = base.motion[:, jnp.array([0, 8, 2, 10, 4, 12, 6, 14, *range(1, 16, 2)])]
    assert np.abs(say(motion=mixed) - whole).max() > 1e-3  # other changes, same codes
    # What cannot be seen does not count.
    seen = base.valid.at[:, 2:].set(False)
    louder = base.motion.at[:, 8:].multiply(5.0)
    np.testing.assert_array_equal(say(valid=seen, motion=louder), say(valid=seen))
    assert np.abs(say(motion=louder) - whole).max() > 1e-2
    dropped = say(motion_valid=jnp.array([True, False]))
    np.testing.assert_array_equal(dropped[1], 0)
    np.testing.assert_array_equal(dropped[0], whole[0])


def test_manner_of_the_reference_reaches_the_codes_alone(full):
    model, params = full
    conditions, noisy = make_conditions(), make_noisy()
    cache = make_cache(model, params, conditions.reference, conditions.null_text)
    moved = cache.replace(manner=cache.manner + 2.0)
    one, two = (
        run(model, params, noisy, T, conditions.replace(reference=each))
        for each in (cache, moved)
    )
    assert np.abs(one.motion - two.motion).max() > 1e-2
    chex.assert_trees_all_equal(one.latents, two.latents)


def test_codes_predicted_alone_see_no_pictures(full):
    model, params = full
    conditions, noisy = make_conditions(), make_noisy()

    def move(conditions):
        return model.apply(
            {"params": params}, noisy.motion, T, conditions, method="predict_codes"
        )

    plain = move(conditions)
    blind = conditions.replace(still=None, text=None, prefix=conditions.prefix + 1.0)
    np.testing.assert_array_equal(move(blind), plain)
    for told in (
        conditions.replace(audio=conditions.audio + 1.0),
        conditions.replace(prefix_motion=conditions.prefix_motion + 1.0),
        conditions.replace(reference=make_reference(motion=normal(99, B, 4 * R, DM))),
    ):
        assert np.abs(move(told) - plain).max() > 1e-3
    # What the trunk adds is the pooled rows: without their weights both agree.
    head = params["motion_head"]
    zero = jax.tree.map(jnp.zeros_like, head["pooled"])
    params = params | {"motion_head": head | {"pooled": zero}}
    whole = run(model, params, noisy, T, conditions)
    np.testing.assert_allclose(move(conditions), whole.motion, rtol=1e-3, atol=1e-4)


def test_codes_have_the_time_of_the_video_unless_told_another(full):
    model, params = full
    conditions, noisy = make_conditions(), make_noisy()
    plain = run(model, params, noisy, T, conditions)
    same = run(model, params, noisy, T, conditions.replace(motion_time=T))
    chex.assert_trees_all_close(plain, same, atol=1e-6)
    other = run(model, params, noisy, T, conditions.replace(motion_time=T / 2))
    assert np.abs(other.latents - plain.latents).max() > 1e-4
    # Read at its own time: an output of zero is the linear guess at T / 2.
    still = jax.tree.map(jnp.zeros_like, params)
    guess = run(model, still, noisy, T, conditions.replace(motion_time=T / 2))
    t = (T / 2)[:, None, None]
    skip = (1 - t) / ((1 - t) ** 2 + t**2)
    expected = (1 - skip) * noisy.motion / t
    np.testing.assert_allclose(guess.motion, expected, rtol=1e-4)


def test_motion_of_reference_rows_reaches_their_keys_after_the_first_block(full):
    model, params = full
    conditions = make_conditions()
    cache = make_cache(model, params, conditions.reference, conditions.null_text)
    moved = conditions.reference.replace(motion=conditions.reference.motion + 1.0)
    other = make_cache(model, params, moved, conditions.null_text)
    assert float(jnp.abs(cache.k[1:] - other.k[1:]).max()) > 1e-4
    np.testing.assert_array_equal(cache.k[0], other.k[0])  # injected after attention
