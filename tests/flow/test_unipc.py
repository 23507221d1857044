"""UniPC on closed forms, without the original's numbers (~15 s on 2 cores)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.flow import path, times, unipc

MEAN, DEVIATION = 2.0, 0.5


def gaussian_velocity(x, t, estimate):
    """The exact velocity where data ~ N(MEAN, DEVIATION^2)."""
    t = path.expand(t, x)
    variance = (1 - t) ** 2 * DEVIATION**2 + t**2
    residual = (x - (1 - t) * MEAN) / variance
    return t * residual - (MEAN + (1 - t) * DEVIATION**2 * residual)


def solve(velocity_fn, noise, num_steps, *, shift=1.0, **how):
    """Solve with the network told the noise levels themselves, not whole timesteps."""
    sigmas, _ = unipc.schedule(num_steps, shift=shift)
    steps = unipc.make_steps(sigmas)
    return unipc.solve(velocity_fn, noise, jnp.asarray(sigmas), steps=steps, **how)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
def test_one_datum_is_reached_in_any_number_of_steps(num_steps):
    noise = jax.random.normal(jax.random.key(0), (2, 3, 5))
    datum = jax.random.normal(jax.random.key(1), (2, 3, 5))

    def towards(x, t, estimate):
        return (x - datum) / path.expand(t, x)

    made = solve(towards, noise, num_steps, shift=5.0)
    np.testing.assert_allclose(made, datum, atol=1e-5)


def test_one_step_is_the_prediction_of_data():
    noise = jax.random.normal(jax.random.key(0), (3, 2))
    sigma = jnp.asarray(unipc.schedule(1, shift=3.0)[0])[:1]
    velocity = gaussian_velocity(noise, sigma.repeat(3), None)
    expected = path.clean_estimate(noise, velocity, sigma.repeat(3))
    made = solve(gaussian_velocity, noise, 1, shift=3.0)
    np.testing.assert_allclose(made, expected, atol=1e-6)


def test_twice_the_steps_leave_a_quarter_of_the_error():
    noise = jnp.array([[1.3], [-0.4]])

    def error(num_steps):
        sigma = float(unipc.schedule(num_steps)[0][0])
        spread = np.hypot((1 - sigma) * DEVIATION, sigma)
        # The flow keeps each value's place in the distribution.
        place = (np.asarray(noise) - (1 - sigma) * MEAN) / spread
        exact = MEAN + DEVIATION * place
        return np.abs(solve(gaussian_velocity, noise, num_steps) - exact).max()

    errors = [error(n) for n in (32, 64, 128)]
    assert errors[1] < 0.3 * errors[0] and errors[2] < 0.3 * errors[1]
    assert errors[0] < 0.01


def test_the_estimate_of_the_step_before_is_handed_on():
    seen = []

    def velocity_fn(x, t, estimate):
        jax.debug.callback(lambda e: seen.append(float(e[0, 0])), estimate)
        return jnp.ones_like(x)

    solve(velocity_fn, jnp.full((1, 1), 5.0), 2)
    jax.effects_barrier()
    sigma = unipc.schedule(2)[0][0]
    np.testing.assert_allclose(seen, [0.0, 5.0 - sigma], rtol=1e-6)


def test_leaves_with_steps_of_their_own_move_as_if_alone():
    noise = list(jax.random.normal(jax.random.key(3), (2, 16, 1)))
    levels = [unipc.schedule(6, shift=shift)[0] for shift in (5.0, 0.5)]
    made = unipc.solve(
        lambda x, t, estimate: [
            gaussian_velocity(*pair, None) for pair in zip(x, t, strict=True)
        ],
        noise,
        [jnp.asarray(sigmas) for sigmas in levels],
        steps=[unipc.make_steps(sigmas) for sigmas in levels],
    )
    for leaf, shift, sample in zip(noise, (5.0, 0.5), made, strict=True):
        alone = solve(gaussian_velocity, leaf, 6, shift=shift)
        np.testing.assert_allclose(sample, alone, rtol=1e-5)


def test_rounded_samples_are_bfloat16_and_no_further_off_than_that():
    noise = jax.random.normal(jax.random.key(5), (64, 1))
    rounded = solve(gaussian_velocity, noise, 8, bfloat16=True)
    np.testing.assert_array_equal(rounded, rounded.astype(jnp.bfloat16))
    exact = solve(gaussian_velocity, noise, 8)
    assert 0 < np.abs(rounded - exact).max() < 0.03


def test_levels_fall_from_near_noise_to_none_and_times_are_whole():
    for num_steps, shift in ((1, 1.0), (5, 3.0), (24, 5.0)):
        sigmas, timesteps = unipc.schedule(num_steps, shift=shift)
        assert len(sigmas) == num_steps + 1 and sigmas[-1] == 0
        assert np.all(np.diff(sigmas) < 0) and 0.99 < sigmas[0] < 1
        np.testing.assert_array_equal(timesteps, np.floor(1000 * sigmas[:-1] + 1e-4))
        told = unipc.told_times(num_steps, shift=shift)
        np.testing.assert_array_equal(told[:-1], np.float32(timesteps / 1000))
        np.testing.assert_array_equal(told[-1], 0)


def test_shifts_multiply():
    plain = jnp.asarray(unipc.schedule(6)[0])
    twice = times.shift_times(times.shift_times(plain, 6.0), 0.5)
    np.testing.assert_allclose(twice, unipc.schedule(6, shift=3.0)[0], rtol=1e-5)


def test_schedules_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="num_steps=0"):
        unipc.schedule(0)
    with pytest.raises(ValueError, match="shift=1000000000.0"):
        unipc.schedule(4, shift=1e9)
