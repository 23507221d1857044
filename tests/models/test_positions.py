"""Where reference rows stand: each segment restarts, each crop apart (~10 s)."""

import jax.numpy as jnp
import numpy as np
from dit_cases import C, H, R, W, make_reference

from avatar_jax.models import tokens
from avatar_jax.nn import rotary

HEAD_DIM, PATCH, SCALE, FACE_SCALE = 12, 2, 1.5, 4.5
GRID = H // PATCH, W // PATCH
SEGMENTS = jnp.array([[0, 0, 0, 1], [0, 1, 1, 2]])
TIMES = np.array([[0, 1, 2, 0], [0, 0, 1, 0]])  # of latents in their segments


def _rows(reference):
    return tokens.reference_rows(
        reference,
        patch=PATCH,
        scale=SCALE,
        face_scale=FACE_SCALE,
        head_dim=HEAD_DIM,
        extra_channels=0,
    )


def _expected(places, rows, columns, scale):
    times = rotary.angles(np.asarray(places), rotary.TIME, HEAD_DIM)
    return rotary.grid_angles(times, rows, columns, scale, HEAD_DIM)


def test_every_segment_restarts_at_the_time_of_references():
    turn = _rows(make_reference(segment_ids=SEGMENTS, faces=None)).turn
    assert turn.shape == (2, R * GRID[0] * GRID[1], HEAD_DIM // 2)
    for sample, times in zip(turn, TIMES, strict=True):
        expected = _expected(tokens.REFERENCE_TIME + times, *GRID, SCALE)
        np.testing.assert_array_equal(sample, expected)


def test_face_crops_stand_after_them_at_a_scale_of_their_own():
    reference = make_reference(segment_ids=SEGMENTS)
    crops, height, width = reference.faces.shape[1:4]
    turn = _rows(reference).turn[:, R * GRID[0] * GRID[1] :]
    places = tokens.FACE_TIME + np.arange(crops)
    expected = _expected(places, height // PATCH, width // PATCH, FACE_SCALE)
    for sample in turn:
        np.testing.assert_array_equal(sample, expected)


def test_packing_takes_angles_along():
    reference = make_reference(segment_ids=SEGMENTS)
    whole, capacity = _rows(reference), int(reference.valid.sum((1, 2, 3)).max()) + 4
    packed = _rows(reference.replace(capacity=capacity))
    assert packed.turn.shape[1] == capacity < whole.turn.shape[1]
    assert packed.patches.shape[2] == (C + 2) * PATCH**2
    for one, all_rows, valid in zip(packed.turn, whole.turn, whole.valid, strict=True):
        kept = all_rows[valid]
        np.testing.assert_array_equal(one[: len(kept)], kept)
