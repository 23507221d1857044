"""The motion judge: frames in, codes out, and how it is trained; ~30 s on 2 cores."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax import checkpoint
from avatar_jax.data.talking_heads import people
from avatar_jax.evaluation import judge_frames, judges
from avatar_jax.evaluation.metrics import sync
from avatar_jax.models.sync import JUDGE_SIZE, PATCHES, MotionRegressor
from avatar_jax.types import InputError


@pytest.fixture(scope="module")
def judge() -> judges.Judge:
    empty = jnp.zeros((1, JUDGE_SIZE, JUDGE_SIZE, 3))
    shapes = jax.eval_shape(MotionRegressor().init, jax.random.key(0), empty)
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: draw.normal(scale=0.1, size=s.shape).astype(np.float32),
        shapes["params"],
    )
    return judges.Judge(
        params=params,
        names=judge_frames.MOTION_NAMES,
        mean=np.linspace(0, 1, 12),
        std=np.ones(12),
        digest="unsaved",
    )


def test_a_judge_survives_its_file(tmp_path, judge):
    config = judges.JudgeConfig(role="training", seed=3)
    judges.save(tmp_path / "j.safetensors", judge, config)
    loaded = judges.load(tmp_path / "j.safetensors")
    chex.assert_trees_all_close(loaded.params, judge.params, atol=1e-3)
    assert loaded.names == judge.names and len(loaded.digest) == 12
    assert (tmp_path / "j.safetensors").stat().st_size < 2**20


def test_other_weights_are_no_judge(tmp_path, judge):
    checkpoint.save_weights(tmp_path / "w.safetensors", judge.params, {"config": {}})
    with pytest.raises(InputError, match="expected a motion judge"):
        judges.load(tmp_path / "w.safetensors")


def test_frames_are_read_one_by_one_whatever_their_number(judge):
    draw = np.random.default_rng(0)
    frames = draw.integers(0, 255, (7, JUDGE_SIZE, JUDGE_SIZE, 3)).astype(np.uint8)
    codes = judge.read(frames)
    assert codes.shape == (7, 12)
    np.testing.assert_allclose(judge.read(frames[3:5]), codes[3:5], atol=1e-4)


def test_larger_pictures_are_read_alike(judge):
    draw = np.random.default_rng(0)
    frames = draw.integers(0, 255, (2, JUDGE_SIZE, JUDGE_SIZE, 3)).astype(np.uint8)
    large = frames.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(judge.read(large), judge.read(frames), atol=1e-4)


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


def test_a_few_steps_of_training_run_and_the_table_has_every_code(monkeypatch):
    monkeypatch.setattr(judge_frames, "TRACKS", 3)
    config = judges.JudgeConfig(people=2, num_steps=3, batch_size=5)
    table = judges.held_out_table(judges.train(config), people=2, seed=1)
    assert [row["code"] for row in table] == list(judge_frames.MOTION_NAMES)
    assert len(judges.format_table(table).splitlines()) == len(table) + 2


@pytest.mark.parametrize("role", ["training", "evaluation"])
def test_the_shipped_judges_see_the_mouth_of_new_people(role):
    judge = judges.load(judges.asset(role))
    data = judge_frames.make_clips("test", 6, seed=77, variant="codec_h264")
    opening = judge.mouth_open(data.frames).reshape(6, -1)
    truth = data.motion[:, 0].reshape(6, -1)
    assert sync.case_correlations(opening, truth).mean() > 0.9


def test_the_two_shipped_judges_come_from_different_people():
    training, evaluation = (
        checkpoint.load_weights(judges.asset(role))[1]["judge"]
        for role in ("training", "evaluation")
    )
    assert training["seed"] != evaluation["seed"]
    assert (training["role"], evaluation["role"]) == ("training", "evaluation")
