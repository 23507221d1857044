"""The mathematics of flow matching on closed forms (~5 s on 2 cores)."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.flow import guidance, path, solver, times


def gaussian_velocity(x, t, estimate):
    """The exact velocity where data ~ N(3, 0.5^2): E[e - x | x_t]."""
    t = path.expand(t, x)
    mean, std = 3.0, 0.5
    variance = (1 - t) ** 2 * std**2 + t**2
    residual = (x - (1 - t) * mean) / variance
    return t * residual - (mean + (1 - t) * std**2 * residual)


def test_clean_estimate_inverts_the_path():
    x, e = jax.random.normal(jax.random.key(0), (2, 3, 5))
    t = jnp.array([0.1, 0.5, 0.9])
    noisy = path.interpolate(x, e, t)
    estimate = path.clean_estimate(noisy, path.velocity_target(x, e), t)
    chex.assert_trees_all_close(estimate, x, atol=1e-5)


@pytest.mark.parametrize("overshoot", [0.0, 1.0, 2.0])
def test_solver_carries_noise_to_the_data_distribution(overshoot):
    noise = jax.random.normal(jax.random.key(1), (20_000, 1))
    sample = solver.solve(
        gaussian_velocity,
        noise,
        times.schedule(200),
        rng=jax.random.key(2),
        overshoot=overshoot,
    )
    np.testing.assert_allclose(jnp.mean(sample), 3.0, atol=0.02)
    np.testing.assert_allclose(jnp.std(sample), 0.5, atol=0.03)


def test_overshoot_zero_is_euler_and_last_step_has_no_noise():
    t0, t1 = jnp.array(0.6), jnp.array(0.4)
    advance, a, b = solver.overshoot_coefficients(t0, t1, 0.0)
    np.testing.assert_allclose([advance, a, b], [0.2, 1.0, 0.0], atol=1e-3)
    for c in (0.0, 1.0, 2.0):
        *_, b = solver.overshoot_coefficients(t1, jnp.array(0.0), c)
        assert b == 0


def test_solver_hands_the_previous_clean_estimate_on():
    seen = []

    def velocity_fn(x, t, estimate):
        jax.debug.callback(lambda e: seen.append(float(e[0, 0])), estimate)
        return jnp.ones_like(x)

    x = jnp.full((1, 1), 5.0)
    solver.solve(velocity_fn, x, times.schedule(2), rng=jax.random.key(0))
    jax.effects_barrier()
    # First zero; then x_1 - 1 * v = 4.
    assert seen == [0.0, 4.0]


def test_leaves_with_times_of_their_own_move_as_if_alone():
    noise = jax.random.normal(jax.random.key(3), (2, 16, 1))
    runs = [times.schedule(8), times.schedule(8, shift=0.25)]
    together = solver.solve(
        lambda x, t, estimate: [
            gaussian_velocity(*pair, None) for pair in zip(x, t, strict=True)
        ],
        list(noise),
        runs,
        rng=jax.random.key(0),
    )
    for leaf, run, sample in zip(noise, runs, together, strict=True):
        alone = solver.solve(gaussian_velocity, leaf, run, rng=jax.random.key(0))
        np.testing.assert_allclose(sample, alone, rtol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 0.1


@pytest.mark.parametrize("deviation", [1.0, 3.0])
def test_second_order_steps_keep_more_of_the_deviation(deviation):
    def velocity_fn(x, t, estimate):
        t = path.expand(t, x)
        variance = ((1 - t) * deviation) ** 2 + t**2
        return (t - (1 - t) * deviation**2) / variance * x

    one, few = jnp.ones((1, 1)), times.schedule(4)
    solve = functools.partial(solver.solve, velocity_fn, one, rng=jax.random.key(0))
    euler, bent = solve(few), solve(few, second_order=True)
    # The exact flow multiplies by the deviation.
    assert abs(bent - deviation) < 0.5 * abs(euler - deviation)
    errors = [
        abs(solve(times.schedule(n), second_order=True) - deviation) for n in (32, 64)
    ]
    assert errors[1] < 0.35 * errors[0]  # a quarter in the limit, Euler's is a half


def test_second_order_of_one_leaf_leaves_the_other_as_it_was():
    noise = list(jax.random.normal(jax.random.key(4), (2, 16, 1)))

    def solve(noise, **how):
        def velocity_fn(x, t, estimate):
            return [gaussian_velocity(leaf, t, None) for leaf in x]

        return solver.solve(
            velocity_fn, noise, times.schedule(6), rng=jax.random.key(0), **how
        )

    plain, bent = solve(noise), solve(noise, second_order=True)
    mixed = solve(noise, second_order=[False, True], overshoot=0.0)
    np.testing.assert_allclose(mixed[0], plain[0], rtol=1e-6)
    np.testing.assert_allclose(mixed[1], bent[1], rtol=1e-6)
    # Overshoot's noise is for the leaves of first order.
    noisy = solve(noise, second_order=[False, True], overshoot=1.0)
    assert np.abs(noisy[0] - plain[0]).max() > 1e-2
    np.testing.assert_allclose(noisy[1], bent[1], rtol=1e-6)


def test_a_share_of_the_times_is_uniform():
    drawn = times.sample_times(jax.random.key(0), 40_000, shift=2.5, uniform=0.4)
    plain = times.sample_times(jax.random.key(0), 40_000, shift=2.5)
    # Of the uniform ones 2 % lie at either end, of the others next to none.
    for at_end in (lambda t: t < 0.02, lambda t: t > 0.98):
        assert np.mean(at_end(drawn)) > 0.4 * 0.02 * 0.9
        assert np.mean(at_end(plain)) < 0.003


def test_shift_keeps_the_ends_and_moves_towards_noise():
    plain, shifted = times.schedule(8), times.schedule(8, shift=5.0)
    np.testing.assert_allclose(shifted[jnp.array([0, -1])], [1.0, 0.0])
    assert bool(jnp.all(shifted[1:-1] > plain[1:-1]))
    drawn = times.sample_times(jax.random.key(0), 20_000, shift=1.0)
    np.testing.assert_allclose(jnp.median(drawn), 0.5, atol=0.02)


def test_guidance_is_the_sum_of_its_differences():
    full, silent, negative = jnp.array([[1.0]]), jnp.array([[0.5]]), jnp.array([[0.25]])
    scales = guidance.Scales(audio=1.8, text=5.0)
    guided = guidance.guide(
        full, without_audio=silent, negative=negative, scales=scales
    )
    np.testing.assert_allclose(guided, 1 + 0.8 * 0.5 + 4 * 0.75, rtol=1e-6)
    moved = guidance.guide(
        full, without_motion=silent, scales=guidance.Scales(motion=2.5)
    )
    np.testing.assert_allclose(moved, 1 + 1.5 * 0.5, rtol=1e-6)
    alone = guidance.guide(full, scales=guidance.Scales())
    np.testing.assert_array_equal(alone, full)
    with pytest.raises(ValueError, match="second pass"):
        guidance.guide(full, scales=scales)
