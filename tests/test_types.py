"""A reference that is dropped says nothing; one that is kept stays as it was (~1 s)."""

import chex
import numpy as np

from avatar_jax import types

B, F, H, W, C, CROPS = 3, 4, 4, 6, 5, 2


def make_reference(**changes):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal((B, *shape)).astype(np.float32)

    reference = types.Reference(
        latents=draw(F, H, W, C),
        valid=rng.random((B, F, H // 2, W // 2)) < 0.6,
        segment_ids=np.tile(np.array([0, 0, 1, 1], np.int32), (B, 1)),
        audio=draw(4 * F, 7),
        audio_valid=np.array([True, False, True]),
        motion=draw(4 * F, 3),
        motion_valid=np.array([True, True, False]),
        identity=draw(8),
        faces=draw(CROPS, 2, 2, C),
        faces_valid=np.array([[True, False], [True, True], [False, True]]),
    )
    return reference.replace(**changes)


def test_dropped_references_say_nothing_and_kept_ones_stay():
    kept = np.array([True, False, True])
    reference = make_reference()
    dropped = types.drop_reference(reference, kept)
    for name in ("valid", "audio_valid", "motion_valid", "identity", "faces_valid"):
        before, after = getattr(reference, name), getattr(dropped, name)
        np.testing.assert_array_equal(after[kept], before[kept], err_msg=name)
        assert not np.any(after[~kept]), name
    # What masks hide may stay, and all that is about shapes.
    for name in ("latents", "segment_ids", "audio", "motion", "faces"):
        chex.assert_trees_all_equal(getattr(dropped, name), getattr(reference, name))


def test_masks_that_are_absent_mean_all_valid():
    reference = make_reference(audio_valid=None, motion_valid=None, faces_valid=None)
    kept = np.array([False, True, True])
    dropped = types.drop_reference(reference, kept)
    np.testing.assert_array_equal(dropped.audio_valid, kept)
    np.testing.assert_array_equal(dropped.motion_valid, kept)
    np.testing.assert_array_equal(dropped.faces_valid, np.stack([kept, kept], 1))


def test_what_a_reference_lacks_stays_absent():
    bare = make_reference(identity=None, faces=None, faces_valid=None)
    dropped = types.drop_reference(bare, np.array([True, False, False]))
    assert dropped.identity is None and dropped.faces is None
    assert dropped.faces_valid is None
