"""The loader: order, resume, shares, windows, dropout, corruption (~20 s, 2 cores)."""

import logging

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from coded_records import (
    DA,
    DM,
    DT,
    LENGTHS,
    C,
    H,
    L,
    W,
    clip_of,
    damage,
    make,
    take,
    write_dataset,
)

from avatar_jax.data import pipeline, records, references, transforms
from avatar_jax.types import InputError


@pytest.fixture
def folder(tmp_path):
    return write_dataset(tmp_path / "one")


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_batch_has_the_documented_fields_and_shapes(folder):
    (batch,) = take(make(folder), 1)
    conditions = batch.conditions
    assert batch.target.latents.shape == (4, 5, H, W, C)
    assert batch.target.motion.shape == (4, 17, DM)
    assert batch.mouth_mask.shape == batch.face_mask.shape == (4, 5, H, W)
    assert conditions.audio.shape == (4, 17, DA)
    assert conditions.text.shape == conditions.null_text.shape == (4, L, DT)
    assert conditions.still.shape == (4, 1, H, W, C)
    assert conditions.still_valid.shape == (4, H // 2, W // 2)
    assert conditions.prefix.shape == (4, 2, H, W, C)
    assert conditions.prefix_motion.shape == (4, 5, DM)
    assert conditions.audio_valid.shape == conditions.prefix_valid.shape == (4,)
    assert conditions.motion_valid.all() and conditions.reference is None
    kinds = {leaf.dtype for leaf in jax.tree.leaves(batch)}
    assert kinds == {np.dtype(np.float32), np.dtype(bool)}


def test_windows_align_latents_audio_motion_mask_and_prefix(folder):
    rates = {"audio_dropout": 0.0, "still_dropout": 0.5, "prefix_probability": 0.5}
    seen = set()
    for batch in take(make(folder, **rates), 20):
        for i, clip in enumerate(clip_of(batch)):
            one = jax.tree.map(lambda leaf, i=i: leaf[i], batch)
            told = one.conditions
            places = one.target.latents[:, 0, 0, 0] - 100 * clip
            start = int(places[0])
            np.testing.assert_array_equal(places, start + np.arange(5))
            np.testing.assert_array_equal(one.mouth_mask[:, 1, 1], 100 * clip + places)
            rows = 100 * clip + 4 * start + np.arange(17)
            np.testing.assert_array_equal(told.audio[:, 0], rows)
            # By motion_scale.npy, which differs between the codes.
            motion = one.target.motion
            np.testing.assert_array_equal(motion, np.stack([rows, rows], 1))
            assert told.prefix_valid == (start > 0)
            expected = one.target.latents[:2] * (start > 0)
            np.testing.assert_array_equal(told.prefix, expected)
            np.testing.assert_array_equal(told.prefix_motion, motion[:5] * (start > 0))
            assert told.still_valid.all() == told.still_valid.any()
            still = 100 * clip * told.still_valid.all()
            np.testing.assert_array_equal(told.still, np.full_like(told.still, still))
            assert start + 5 <= LENGTHS[clip]
            seen.add((start > 0, bool(told.still_valid.all())))
    assert seen == {(True, True), (False, True), (False, False)}


def test_a_clip_as_long_as_the_window_never_gets_a_prefix():
    rng = np.random.default_rng(0)
    draws = [transforms.draw(rng) for _ in range(60)]
    starts = [
        [transforms.choose_start(draw, n, 5, 1.0) for draw in draws] for n in (5, 6, 9)
    ]
    assert [set(chosen) for chosen in starts] == [{0}, {1}, {1, 2, 3, 4}]


def test_dropout_happens_at_its_rate_and_text_becomes_the_empty_prompt(folder):
    rates = {"text_dropout": 0.3, "audio_dropout": 0.2, "prefix_probability": 0.0}
    batches = take(make(folder, buckets=((3, 100, 1.0),), **rates), 6)
    dropped = np.concatenate([(b.conditions.text == 0).all((1, 2)) for b in batches])
    silent = ~np.concatenate([b.conditions.audio_valid for b in batches])
    absent = ~np.concatenate([b.conditions.still_valid[:, 0, 0] for b in batches])
    # The std of a rate is at most 0.02 at 600 draws.
    np.testing.assert_allclose(
        [dropped.mean(), silent.mean(), absent.mean()], [0.3, 0.2, 0.25], atol=0.06
    )
    assert not (dropped & silent).mean() > 0.12  # independent: 0.06


def test_the_same_seed_gives_the_same_batches_and_another_does_not(folder):
    first, again = take(make(folder, seed=3), 5), take(make(folder, seed=3), 5)
    assert_same(first, again)
    other = take(make(folder, seed=4), 5)
    assert [clip_of(b) for b in first] != [clip_of(b) for b in other]


def test_an_epoch_visits_every_clip_that_is_long_enough_once(folder):
    batches = take(make(folder, buckets=((7, 9, 1.0),)), 3)  # 9 clips have 7 latents
    orders = [clip_of(batch) for batch in batches]
    enough = [n for n, length in enumerate(LENGTHS) if length >= 7]
    assert [sorted(order) for order in orders] == [enough] * 3
    assert orders[0] != orders[1]


def test_resume_after_k_batches_equals_the_uninterrupted_run(folder):
    buckets = ((5, 4, 0.7), (3, 2, 0.3))
    iterator = iter(make(folder, buckets=buckets))
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator) for _ in range(4)]
    resumed = iter(make(folder, buckets=buckets))
    resumed.set_state(state)
    assert_same(expected, [next(resumed) for _ in range(4)])


def test_worker_processes_change_nothing_and_resume(folder):
    expected = take(make(folder), 5)
    iterator, resumed = (iter(make(folder, num_workers=2)) for _ in range(2))
    assert_same([next(iterator) for _ in range(3)], expected[:3])
    resumed.set_state(iterator.get_state())
    iterator.close()
    assert_same([next(resumed) for _ in range(2)], expected[3:])
    resumed.close()


def test_the_iterator_goes_through_an_orbax_checkpoint(folder, tmp_path):
    iterator = iter(make(folder))
    next(iterator)
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        save = ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator))
        manager.save(1, args=save)
        manager.wait_until_finished()
        expected = next(iterator)
        resumed = iter(make(folder))
        restore = grain.checkpoint.CheckpointRestore(resumed)
        manager.restore(1, args=ocp.args.Composite(data=restore))
    assert_same(next(resumed), expected)


def test_processes_share_an_epoch_without_overlap(folder):
    whole = take(make(folder, buckets=((7, 9, 1.0),)), 4)
    shares = [
        take(
            make(folder, buckets=((7, 9, 1.0),), process_index=index, process_count=3),
            4,
        )
        for index in range(3)
    ]
    for step, batch in enumerate(whole):
        parts = [clip_of(share[step]) for share in shares]
        assert [len(part) for part in parts] == [3, 3, 3]
        assert sorted(sum(parts, [])) == sorted(clip_of(batch))
        joined = np.concatenate([share[step].target.latents for share in shares])
        order = np.arange(9).reshape(3, 3).T.ravel()  # process p has p, p + 3, ...
        np.testing.assert_array_equal(joined, batch.target.latents[order])


def test_buckets_have_their_shapes_and_shares_at_the_same_steps_everywhere(folder):
    buckets = ((5, 4, 0.75), (3, 8, 0.25))
    shapes = [
        [
            batch.target.latents.shape[:2]
            for batch in take(
                make(folder, buckets=buckets, process_index=p, process_count=2), 16
            )
        ]
        for p in range(2)
    ]
    assert shapes[0] == shapes[1]
    assert sorted(set(shapes[0])) == [(2, 5), (4, 3)]
    assert shapes[0].count((2, 5)) == 12


def test_datasets_are_mixed_by_weight(folder, tmp_path):
    other = write_dataset(tmp_path / "two", lengths=(8, 8), first=20)
    config = pipeline.PipelineConfig(
        directories=(folder, other), weights=(3.0, 1.0), buckets=((5, 8, 1.0),)
    )
    batches = take(pipeline.make_dataset(config, process_index=0, process_count=1), 10)
    clips = np.array([clip_of(batch) for batch in batches])
    np.testing.assert_allclose((clips >= 20).mean(), 0.25, atol=0.02)


def test_corrupt_records_are_skipped_counted_and_named(folder, caplog):
    tier = records.tier_directory(folder, records.FEATURES)
    for clip in (3, 4):
        damage(tier, clip)
    with caplog.at_level(logging.WARNING):
        batches = take(make(folder), 12)
    seen = {clip for batch in batches for clip in clip_of(batch)}
    assert seen == {n for n, length in enumerate(LENGTHS) if length >= 5} - {3, 4}
    lines = [r.message for r in caplog.records if "skipped" in r.message]
    assert len(lines) == 2 and "(2 so far)" in lines[1]
    assert sorted("record 3 of" in line for line in lines) == [False, True]
    assert_same(batches, take(make(folder), 12))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"buckets": ((13, 4, 1.0),)},
            "no clip of .* has 13 latents, the longest .* 12",
        ),
        ({"buckets": ((5, 4, 1.0),), "process_count": 3}, "not divisible by 3"),
        ({"split": "test"}, "no split 'test'"),
        ({"codec": "wan"}, "holds no records"),
        ({"weights": (1.0, 2.0)}, "1 directories came with 2"),
        (
            {"reference": references.ReferenceConfig(12)},
            "no clip of .* has 13 latents",
        ),
        (
            {"reference": references.ReferenceConfig(2, segments=(1, 2))},
            "for each of the 1 buckets, or one number for all, came .1, 2.",
        ),
    ],
)
def test_what_cannot_be_satisfied_is_an_input_error(folder, fields, message):
    with pytest.raises(InputError, match=message):
        make(folder, **fields)


def test_clips_of_several_sizes_are_an_input_error(folder, tmp_path):
    tall = write_dataset(tmp_path / "tall", height=H + 2)
    config = pipeline.PipelineConfig(directories=(folder, tall))
    with pytest.raises(InputError, match="several sizes"):
        pipeline.make_dataset(config, process_index=0, process_count=1)


def test_motion_without_its_scale_is_an_input_error(folder):
    scale = records.tier_directory(folder, records.FEATURES) / "motion_scale.npy"
    scale.unlink()
    with pytest.raises(InputError, match="no motion_scale.npy: prepare it again"):
        make(folder)
