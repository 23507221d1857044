"""How judges are trained, and what the shipped ones see; ~40 s on 2 cores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.data.talking_heads import clips, people
from avatar_jax.evaluation import (
    judge_commands,
    judge_frames,
    judge_quality,
    judge_sync,
    judge_training,
)
from avatar_jax.evaluation.metrics import sync
from avatar_jax.media import loudness
from avatar_jax.models import judges
from avatar_jax.models.speech import LogMel
from avatar_jax.models.sync import PATCHES


def test_the_people_of_a_judge_are_of_one_split():
    indices = judge_frames.people_of("validation", 5)
    assert len(set(indices)) == 5
    assert {people.split_of(index) for index in indices} == {"validation"}


def test_degrading_keeps_the_picture_recognisable():
    frames = jnp.linspace(-1, 1, 3 * 20 * 20 * 3).reshape(3, 20, 20, 3)
    worse = judge_frames.degrade(jax.random.key(0), frames)
    assert worse.shape == frames.shape
    error = jnp.sqrt(jnp.mean((worse - frames) ** 2))
    assert 0 < error < 0.15


@pytest.mark.parametrize("variant", judge_frames.VARIANTS)
def test_each_variant_shows_the_same_face(variant):
    clip = judge_frames.make_clips("validation", 1, seed=1, variant="raw")
    shown = judge_frames.degrade_clip(clip.frames, variant, crf=20)
    assert shown.shape == clip.frames.shape
    assert np.abs(shown.astype(int) - clip.frames).mean() < 8
    assert clip.places.shape == (len(shown), len(PATCHES), 2)


def test_each_fault_alone_changes_the_picture_and_no_fault_leaves_it():
    draw = np.random.default_rng(0)
    frames, others = (
        jnp.asarray(draw.uniform(-0.5, 0.5, (6, 16, 16, 3)), jnp.float32)
        for _ in range(2)
    )
    severity = jnp.eye(6, len(judge_quality.FAULTS))
    shown = judge_quality.spoil(jax.random.key(0), frames, others, severity)
    change = jnp.abs(shown - frames).mean(axis=(1, 2, 3))
    assert (change[:-1] > 0.05).all()
    assert change[-1] < 1e-6


def test_the_contrast_is_least_for_rows_that_match():
    rows = jnp.eye(4)
    right = judge_training.contrast(rows, rows, 0.1)
    assert right < 0.01 < judge_training.contrast(rows, jnp.roll(rows, 1, axis=0), 0.1)


@pytest.mark.parametrize("name", judge_commands.KINDS)
def test_a_few_steps_of_training_run_and_give_a_table(monkeypatch, tmp_path, name):
    monkeypatch.setattr(judge_frames, "TRACKS", 3)
    kind = judge_commands.KINDS[name]
    config = dataclasses.replace(kind.DEFAULTS, people=4, num_steps=2, batch_size=4)
    judge = kind.train(config)
    assert judge.kind == name and judge.settings["seed"] == config.seed
    rows = kind.held_out_table(judge, people=3, seed=1)
    assert len(judge_training.format_table(rows).splitlines()) == len(rows) + 2


@pytest.mark.parametrize("role", ["training", "evaluation"])
def test_the_shipped_judges_see_the_mouth_of_new_people(role):
    judge = judges.load(judges.asset("motion", role))
    data = judge_frames.make_clips("test", 6, seed=77, variant="codec_h264")
    opening = judge.mouth_open(data.frames).reshape(6, -1)
    truth = data.motion[:, 0].reshape(6, -1)
    assert sync.case_correlations(opening, truth).mean() > 0.9


@pytest.mark.parametrize("role", ["training", "evaluation"])
def test_the_shipped_judges_tell_own_from_late_speech(role):
    judge = judges.load(judges.asset("sync", role))
    for index in (9, 19, 29):  # of the test split
        clip = clips.make_clip(
            people.sample_person(77, index), scene=0, utterance=1, num_frames=75
        )
        speech = LogMel()(loudness.normalise(clip.audio), 75)
        late = np.roll(speech, 6, axis=0)
        own, shifted = (judge.sync_distance(clip.frames, x) for x in (speech, late))
        assert own < shifted
        curve = judge_sync.offset_curve(*judge.sync_windows(clip.frames, speech))
        assert abs(int(curve.argmin()) - judge_sync.REACH) <= 1


@pytest.mark.parametrize("role", ["training", "evaluation"])
def test_the_shipped_judges_prefer_what_is_less_spoilt(role):
    judge = judges.load(judges.asset("quality", role))
    frames = judge_frames.make_clips("test", 4, seed=77, variant="raw").frames[::25]
    unit = judge_training.to_unit(jnp.asarray(frames))
    spoil, scores = jax.jit(judge_quality.spoil), []
    for level in (0.0, 0.2, 0.4):
        severity = jnp.full((len(frames), len(judge_quality.FAULTS)), level)
        shown = spoil(jax.random.key(0), unit, unit[::-1], severity)
        scores.append(judges.assess(judge.params, shown).mean())
    assert scores[0] > 0.7
    assert scores[0] > scores[1] > scores[2]
