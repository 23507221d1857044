"""One record to one example: still, prefix, noise and motion (~3 s, 2 cores)."""

import numpy as np
import pytest
from coded_records import DM, DT, LENGTHS, C, H, L, W, features_of, latents_of

from avatar_jax.data import transforms
from avatar_jax.types import InputError

CLIP = 3  # 12 latents
NOTHING = {
    "text_dropout": 0.0,
    "audio_dropout": 0.0,
    "still_dropout": 0.0,
    "prefix_probability": 0.0,
}
CASES = 60


def make_record(**changes):
    arrays = latents_of(CLIP, LENGTHS[CLIP]) | features_of(CLIP, LENGTHS[CLIP], "", "")
    names = ("person", "scene")
    arrays = {k: v for k, v in arrays.items() if k not in names} | changes
    return transforms.Record(**arrays)


def make_clip(record=None, seed=0, **rates):
    return transforms.make_clip(
        record or make_record(),
        np.zeros((L, DT), np.float16),
        np.random.default_rng(seed),
        transforms.ConditionRates(**{**NOTHING, **rates}),
        num_latents=5,
        patch=2,
    )


def same(first, second):
    np.testing.assert_array_equal(first, second)


def test_light_noise_falls_on_prefix_and_anchor_of_examples_with_prefix_alone():
    sigma, sizes = 0.4, []
    for seed in range(CASES):
        rates = {"prefix_probability": 0.5}
        clean = make_clip(seed=seed, **rates)
        noisy = make_clip(seed=seed, context_noise=sigma, **rates)
        told, expected = noisy.conditions, clean.conditions
        off = [
            getattr(told, name) - getattr(expected, name)
            for name in ("prefix", "still", "prefix_motion")
        ]
        if not told.prefix_valid:
            assert all((leaf == 0).all() for leaf in off)
        else:
            # One sigma for all three, drawn anew for each example.
            first, second, _ = (leaf.std() for leaf in off)
            np.testing.assert_allclose(first, second, rtol=0.2)
            sizes.append(first)
        same(noisy.target.latents, clean.target.latents)
        same(noisy.target.motion, clean.target.motion)
        same(told.audio, expected.audio)
    assert len(sizes) > CASES / 4
    assert max(sizes) < 1.1 * sigma and min(sizes) < sigma / 3 < max(sizes) / 2


def test_a_blank_still_hides_the_patches_that_are_blank_throughout():
    told = make_clip(blank_still=1.0).conditions
    same(told.still, np.full((1, H, W, C), -CLIP, np.float32))
    # Patch (1, 1) is blank, of (1, 2) beside it one column.
    wanted = np.ones((H // 2, W // 2), bool)
    wanted[1, 1] = False
    same(told.still_valid, wanted)


def test_a_still_is_blank_at_its_rate_at_starts_alone():
    blank = {True: [], False: []}
    for seed in range(200):
        rates = {"prefix_probability": 0.5, "blank_still": 0.75}
        told = make_clip(seed=seed, **rates).conditions
        blank[bool(told.prefix_valid)].append((told.still == -CLIP).all())
        anchor = 100 * CLIP
        assert blank[bool(told.prefix_valid)][-1] or (told.still == anchor).all()
    np.testing.assert_allclose(np.mean(blank[False]), 0.75, atol=0.12)
    assert not any(blank[True])


def test_a_dropped_still_is_nothing_however_blank_it_is():
    told = make_clip(still_dropout=1.0, blank_still=1.0).conditions
    assert not told.still_valid.any() and not told.still.any()


def test_motion_is_dropped_at_its_rate_and_its_codes_stay_targets():
    clips = [make_clip(seed=seed, motion_dropout=0.3) for seed in range(200)]
    valid = [clip.conditions.motion_valid for clip in clips]
    np.testing.assert_allclose(np.mean(valid), 0.7, atol=0.12)
    assert all(clip.target.motion.shape == (17, DM) for clip in clips)


def test_a_record_without_codes_is_an_example_whose_motion_is_dropped():
    clip = make_clip(make_record(motion=None), prefix_probability=1.0)
    assert clip.target.motion is None and clip.conditions.prefix_motion is None
    assert not clip.conditions.motion_valid and clip.conditions.prefix_valid


def test_a_prefix_brings_its_clean_codes():
    clip = make_clip(prefix_probability=1.0)
    assert clip.conditions.prefix_valid
    same(clip.conditions.prefix_motion, clip.target.motion[:5])
    assert clip.conditions.prefix_motion.any()
    assert not make_clip().conditions.prefix_motion.any()


@pytest.mark.parametrize("name", ["speech", "motion"])
def test_rows_that_end_before_the_video_are_an_input_error(name):
    whole = make_record()
    short = {"speech": whole.speech[:20]}
    short["motion"] = whole.motion[:20] if name == "motion" else None
    with pytest.raises(InputError, match=f"20 rows of {name} for 45 frames"):
        make_clip(make_record(**short), seed=1, prefix_probability=1.0)
