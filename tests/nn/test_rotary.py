"""Angles of positions are exact, and only distances count (~5 s)."""

import jax.numpy as jnp
import numpy as np
import pytest
from avatar_kernels import norm_rotary

from avatar_jax.nn import rotary

FAR = np.array([0, 1, 7, 256, 700, 1023])


@pytest.mark.parametrize("axis", rotary.AXES)
@pytest.mark.parametrize("head_dim", [8, 32, 128])
def test_float32_angles_are_the_exact_ones_less_full_turns(axis, head_dim):
    exact = rotary.exact_angles(FAR, axis, head_dim)
    ours = rotary.angles(FAR, axis, head_dim)
    assert ours.dtype == np.float32
    assert np.abs(ours).max() <= np.float32(np.pi)
    # Half a unit in the last place of pi.
    np.testing.assert_allclose(np.cos(ours.astype(float)), np.cos(exact), atol=1.3e-7)
    np.testing.assert_allclose(np.sin(ours.astype(float)), np.sin(exact), atol=1.3e-7)


@pytest.mark.parametrize("head_dim, pairs", [(8, (2, 1, 1)), (128, (22, 21, 21))])
def test_a_head_is_split_over_time_rows_and_columns(head_dim, pairs):
    tables = [rotary.angles(FAR, axis, head_dim) for axis in rotary.AXES]
    assert tuple(table.shape[1] for table in tables) == pairs
    times = rotary.angles(np.array([5, 0, 9]), rotary.TIME, head_dim)
    grid = rotary.grid_angles(times, 2, 4, 1.5, head_dim)
    row = 1 * 4 + 3  # of frame 0: second row, last column
    expected = [
        rotary.exact_angles(np.array([place]), axis, head_dim)[0]
        for axis, place in zip(rotary.AXES, (5, 1.5, 4.5), strict=True)
    ]
    assert grid.shape == (3 * 2 * 4, head_dim // 2)
    np.testing.assert_allclose(
        np.cos(grid[row]), np.cos(np.concatenate(expected)), atol=1e-6
    )


def test_frames_of_a_batch_have_times_of_their_own():
    places = rotary.angles(np.arange(5), rotary.TIME, 8)
    times = jnp.asarray(places)[np.array([[0, 1, 2], [4, 3, 0]])]
    ours = rotary.grid_angles(times, 2, 4, 0.7, 8)
    for sample, own in zip(ours, times, strict=True):
        np.testing.assert_array_equal(sample, rotary.grid_angles(own, 2, 4, 0.7, 8))


def test_products_of_turned_heads_know_distances_alone():
    draw = np.random.default_rng(0)
    q, k = draw.normal(size=(2, 1, 1, 3, 8)).astype(np.float32)

    def product(at, other):
        turns = (
            rotary.grid_angles(
                rotary.angles(np.array([place]), rotary.TIME, 8), 1, 1, 1.0, 8
            )
            for place in (at, other)
        )
        one, two = (
            norm_rotary.rotate(jnp.asarray(a), turn[None])
            for a, turn in zip((q, k), turns, strict=True)
        )
        return np.sum(one * two, -1)

    np.testing.assert_allclose(product(903, 900), product(3, 0), atol=3e-6)
    assert np.abs(product(903, 900) - product(4, 0)).max() > 1e-2
