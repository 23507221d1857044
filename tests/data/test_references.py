"""References: whose clips, which rows of them, and what is told (~10 s, 2 cores)."""

import dataclasses

import numpy as np
import pytest
from coded_records import (
    CROPS,
    DI,
    DM,
    SCENES,
    SIDE,
    C,
    H,
    W,
    clip_of,
    make,
    take,
    write_dataset,
)
from test_pipeline import assert_same

from avatar_jax.data import references

# A clip for each scene of SCENES; clip 11 has no three latents after its first.
LENGTHS = (9, 6, 7, 12, 8, 7, 10, 9, 7, 11, 6, 3, 8, 7, 9, 10)
PERSON = [person for person, _ in SCENES]
SCENE = [scene for _, scene in SCENES]
LATENTS, SEGMENTS = 3, 2
CONFIG = references.ReferenceConfig(LATENTS, segments=(SEGMENTS,), whole=1.0)
ALL = {"audio_dropout": 0.0, "prefix_probability": 0.0, "reference": CONFIG}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("pairs"), lengths=LENGTHS)


def change(**fields):
    return {"reference": dataclasses.replace(CONFIG, **fields)}


def joined(batches):
    """Target clips, and the references of all batches as one."""
    clips = sum(map(clip_of, batches), [])
    leaves = [batch.conditions.reference for batch in batches]
    fields = {
        field.name: np.concatenate([getattr(leaf, field.name) for leaf in leaves])
        for field in dataclasses.fields(leaves[0])
        if field.name != "capacity"
    }
    return clips, leaves[0].replace(**fields)


def sources_of(reference):
    """The clip of each segment: B segments."""
    first = reference.latents[:, ::LATENTS, 0, 0, 0]
    return (first // 100).astype(int)


@pytest.fixture(scope="module")
def pairs(folder):
    return joined(take(make(folder, **ALL), 40))


def test_a_reference_has_the_documented_fields_and_shapes(pairs):
    clips, reference = pairs
    count, latents = len(clips), LATENTS * SEGMENTS
    assert reference.latents.shape == (count, latents, H, W, C)
    assert reference.valid.shape == (count, latents, H // 2, W // 2)
    assert reference.audio.shape[:2] == (count, 4 * latents)
    assert reference.motion.shape == (count, 4 * latents, DM)
    assert reference.identity.shape == (count, DI)
    assert reference.faces.shape == (count, CROPS, SIDE, SIDE, C)
    assert reference.faces_valid.shape == (count, CROPS)
    assert reference.segment_ids.dtype == np.int32
    assert (reference.segment_ids == np.repeat(np.arange(SEGMENTS), LATENTS)).all()
    for flag in (reference.audio_valid, reference.motion_valid):
        assert flag.shape == (count,) and flag.all()


def test_segments_come_from_other_clips_of_the_person_in_other_scenes(pairs):
    clips, reference = pairs
    for clip, sources in zip(clips, sources_of(reference), strict=True):
        assert {PERSON[source] for source in sources} == {PERSON[clip]}
        others = {i for i, p in enumerate(PERSON) if p == PERSON[clip]} - {clip, 11}
        elsewhere = {i for i in others if SCENE[i] != SCENE[clip]}
        # Fallbacks: any other clip of the person, else the clip itself.
        allowed = elsewhere or others or {clip}
        assert set(sources) <= allowed
        assert len(set(sources)) == min(SEGMENTS, len(allowed))


def test_the_share_of_other_scenes_rises_until_only_they_are_left(folder):
    batches = take(make(folder, **{**ALL, **change(cross_scene_from=50)}), 80)
    early, late = other_scenes(batches[:25]), other_scenes(batches[50:])
    assert 0.05 < early.mean() < 0.5 and late.all()


def other_scenes(batches):
    """Whether the first segment is of another scene, where there is a choice."""
    clips, reference = joined(batches)
    pairs = zip(clips, sources_of(reference)[:, 0], strict=True)
    # People of two scenes; the scene of clip 10 has no other that is long enough.
    return np.array([SCENE[a] != SCENE[b] for a, b in pairs if a < 10])


def test_buckets_and_datasets_of_any_share_come_to_other_scenes_at_one_step(folder):
    shares = {
        "directories": (folder, folder),
        "weights": (0.75, 0.25),
        "buckets": ((5, 4, 0.8), (3, 8, 0.2)),
    }
    fields = {**ALL, **shares, **change(cross_scene_from=60)}
    batches = take(make(folder, **fields), 120)
    # A batch comes up to five steps, one in a bucket's share, before or after its time.
    for latents in (5, 3):
        early, nearly, late = (
            other_scenes(
                [b for b in batches[steps] if b.target.latents.shape[1] == latents]
            )
            for steps in (slice(30), slice(30, 55), slice(65, None))
        )
        assert 0.05 < early.mean() < 0.45 < nearly.mean() < 1 and late.all()


def test_a_first_example_is_of_the_same_scene_and_a_late_one_never():
    config = references.ReferenceConfig(LATENTS, cross_scene_from=10)
    draws = np.linspace(0, 0.999, 200).tolist()
    shares = [
        np.mean([references.is_cross_scene(step, config, draw) for draw in draws])
        for step in (0.0, 5.0, 10.0, 100.0)
    ]
    np.testing.assert_allclose(shares, [0, 0.5, 1, 1], atol=0.01)
    assert references.is_cross_scene(0.0, references.ReferenceConfig(LATENTS), 0.999)


def test_rows_of_latents_speech_and_motion_belong_together(pairs):
    _, reference = pairs
    starts = set()
    for i, sources in enumerate(sources_of(reference)):
        for number, clip in enumerate(sources):
            window = slice(number * LATENTS, (number + 1) * LATENTS)
            places = reference.latents[i, window, 1, 2, 3] - 100 * clip
            start = int(places[0])
            np.testing.assert_array_equal(places, start + np.arange(LATENTS))
            # Latent 0 is one frame alone; latent i the frames 4i-3 .. 4i.
            assert start >= 1 and start + LATENTS <= LENGTHS[clip]
            rows = 100 * clip + 4 * start - 3 + np.arange(4 * LATENTS)
            frames = slice(4 * window.start, 4 * window.stop)
            np.testing.assert_array_equal(reference.audio[i, frames, 0], rows)
            np.testing.assert_array_equal(reference.motion[i, frames, 1], rows)
            starts.add((clip, start))
    assert {start for clip, start in starts if clip == 4} == {1, 2, 3, 4, 5}


def test_only_patches_with_a_face_are_valid(pairs):
    _, reference = pairs
    wanted = np.zeros((H // 2, W // 2), bool)
    wanted[0, 1] = True
    np.testing.assert_array_equal(
        reference.valid, np.broadcast_to(wanted[None, None], reference.valid.shape)
    )


def test_identity_is_the_unit_mean_of_the_clips_and_crops_are_of_one(pairs):
    _, reference = pairs
    np.testing.assert_allclose(np.linalg.norm(reference.identity, axis=1), 1, rtol=1e-5)
    for i, sources in enumerate(sources_of(reference)):
        mean = np.eye(DI)[[clip % DI for clip in sources]].mean(0)
        np.testing.assert_allclose(
            reference.identity[i], mean / np.linalg.norm(mean), rtol=1e-5
        )
        assert (reference.faces[i] == sources[0]).all()


def test_identity_is_of_the_clips_that_are_shown(folder):
    batches = take(make(folder, **{**ALL, **change(whole=0.0)}), 20)
    _, reference = joined(batches)
    clips_shown = -(-reference.valid.any((2, 3)).sum(1) // LATENTS)
    assert set(clips_shown) == set(range(1, SEGMENTS + 1))
    for i, sources in enumerate(sources_of(reference)):
        mean = np.eye(DI)[[clip % DI for clip in sources[: clips_shown[i]]]].mean(0)
        np.testing.assert_allclose(
            reference.identity[i], mean / np.linalg.norm(mean), rtol=1e-5
        )


def test_how_much_is_shown_varies_and_what_is_beyond_is_invalid(folder):
    batches = take(make(folder, **{**ALL, **change(whole=0.25)}), 100)
    _, reference = joined(batches)
    shown = reference.valid.any((2, 3))
    count = shown.sum(1)
    np.testing.assert_array_equal(shown, np.arange(shown.shape[1]) < count[:, None])
    total = LATENTS * SEGMENTS
    assert set(count) == set(range(1, total + 1))
    # All are shown in the share `whole`, and in one of `total` of the others.
    share = 0.25 + 0.75 / total
    np.testing.assert_allclose((count == total).mean(), share, atol=0.08)


def test_a_reference_moves_as_was_read_and_its_target_as_is_exact(folder, tmp_path):
    seen = write_dataset(tmp_path / "seen", lengths=LENGTHS, motion_read=True)
    both = (take(make(f, **ALL), 10) for f in (folder, seen))
    for exact, read in zip(*both, strict=True):
        was, told = exact.conditions.reference, read.conditions.reference
        np.testing.assert_array_equal(told.motion, -was.motion)
        unread = read.conditions.replace(reference=told.replace(motion=was.motion))
        assert_same(read.replace(conditions=unread), exact)


def test_conditions_are_dropped_at_their_rates_and_together(folder):
    rates = {
        "buckets": ((3, 100, 1.0),),
        "prefix_probability": 0.0,
        "text_dropout": 0.3,
        "audio_dropout": 0.2,
        "motion_dropout": 0.4,
        "reference_dropout": 0.25,
        "reference": CONFIG,
    }
    batches = take(make(folder, **rates), 6)
    _, reference = joined(batches)
    told = [batch.conditions for batch in batches]
    heard = np.concatenate([c.audio_valid for c in told])
    moving = np.concatenate([c.motion_valid for c in told])
    silent = np.concatenate([(c.text == 0).all((1, 2)) for c in told])
    shown = reference.valid.any((1, 2, 3))
    # The std of a rate is at most 0.02 at 600 draws.
    rates = [silent.mean(), 1 - heard.mean(), 1 - moving.mean(), 1 - shown.mean()]
    np.testing.assert_allclose(rates, [0.3, 0.2, 0.4, 0.25], atol=0.06)
    # Driving and reference speech are dropped together, motion of both too.
    np.testing.assert_array_equal(reference.audio_valid, shown & heard)
    np.testing.assert_array_equal(reference.motion_valid, shown & moving)
    np.testing.assert_array_equal((reference.identity != 0).any(1), shown)
    np.testing.assert_array_equal(reference.faces_valid.any(1), shown)


def test_pairs_are_the_same_at_a_place_after_a_resume_and_in_any_process(folder):
    fields = {**change(whole=0.5, cross_scene_from=10)}
    fields |= {"buckets": ((5, 4, 0.7), (3, 2, 0.3))}
    fields["reference"] = dataclasses.replace(fields["reference"], segments=(1, 2))
    iterator = iter(make(folder, **fields))
    for _ in range(4):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator) for _ in range(6)]
    resumed = iter(make(folder, **fields))
    resumed.set_state(state)
    assert_same(expected, [next(resumed) for _ in range(6)])
    lengths = {
        batch.target.latents.shape[1]: batch.conditions.reference.latents.shape[1]
        for batch in expected
    }
    assert lengths == {5: LATENTS, 3: 2 * LATENTS}  # segments by bucket
    whole = take(make(folder, **fields), 3)
    for index in range(2):
        share = take(make(folder, **fields, process_index=index, process_count=2), 3)
        for ours, all_ in zip(share, whole, strict=True):
            np.testing.assert_array_equal(
                ours.conditions.reference.latents,
                all_.conditions.reference.latents[index::2],
            )


def test_without_a_reference_there_is_none(folder):
    (batch,) = take(make(folder), 1)
    assert batch.conditions.reference is None


def test_a_clip_too_short_to_be_its_own_reference_is_left_out(folder):
    fields = {**ALL, **change(segment_latents=8, segments=(1,))}
    clips, reference = joined(take(make(folder, **fields), 20))
    enough = {n for n, length in enumerate(LENGTHS) if length > 8}
    assert set(clips) == enough
    assert reference.latents.shape[1] == 8


def test_a_clip_too_short_for_a_segment_gives_way_to_one_of_the_other_kind():
    """Where all clips in the scenes asked for are short, others of the person serve."""
    people = np.array([["a", "x"], ["a", "x"], ["a", "y"], ["b", "x"]])
    mates = references.Mates(people)
    long = np.ones(4, bool)
    short = np.array([True, True, False, True])
    assert mates.find(0, cross_scene=True, usable=long) == [[2], [1], [0]]
    assert mates.find(0, cross_scene=True, usable=short) == [[1], [0]]
    assert mates.find(3, cross_scene=True, usable=long) == [[3]]


def test_a_mean_direction_has_length_one():
    rows = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert references.mean_direction(rows) == pytest.approx(np.full(2, 0.5**0.5))
