"""The judges at work: files, roles, gradients, and what they see; ~20 s on 2 cores."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax import checkpoint
from avatar_jax.data.talking_heads import clips, motion, people
from avatar_jax.models import faces, judges, quality, sync
from avatar_jax.types import InputError

KINDS = ("motion", "identity", "sync", "quality")
ROLES = ("training", "evaluation")
SEEDS = {"training": 1, "evaluation": 2}
SPEECH_WIDTH = 160
FRAMES = jax.ShapeDtypeStruct((1, judges.VIEW, judges.VIEW, 3), jnp.float32)
MOUTHS = jax.ShapeDtypeStruct((1, sync.SYNC_FRAMES, 32, 48, 3), jnp.float32)
SPEECH = jax.ShapeDtypeStruct((1, sync.SYNC_FRAMES, SPEECH_WIDTH), jnp.float32)
NETWORKS = {
    "motion": (sync.MotionRegressor(), FRAMES),
    "identity": (faces.FaceEmbedder(), FRAMES),
    "sync": (sync.SyncNetwork(), MOUTHS, SPEECH),
    "quality": (quality.QualityNetwork(), FRAMES),
}


def make_judge(kind: judges.Kind) -> judges.Judge:
    """Return a judge of random weights."""
    network, *empty = NETWORKS[kind]
    shapes = jax.eval_shape(network.init, jax.random.key(0), *empty)["params"]
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: draw.normal(scale=0.1, size=s.shape).astype(np.float32), shapes
    )
    settings = {"role": "training", "seed": 3}
    if kind != "motion":
        return judges.Judge(kind, params, settings, "unsaved")
    mean, std = np.linspace(0, 1, 12), np.ones(12)
    names = motion.MOTION_NAMES
    return judges.Judge(kind, params, settings, "unsaved", names, mean, std)


def make_frames(count: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    size = judges.VIEW
    return draw.integers(0, 255, (count, size, size, 3)).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_judge_survives_its_file(tmp_path, kind):
    judge = make_judge(kind)
    judges.save(tmp_path / "j.safetensors", judge)
    loaded = judges.load(tmp_path / "j.safetensors")
    chex.assert_trees_all_close(loaded.params, judge.params, atol=1e-3)
    assert (loaded.kind, loaded.names) == (kind, judge.names)
    assert loaded.settings == judge.settings and len(loaded.digest) == 12
    assert (tmp_path / "j.safetensors").stat().st_size < 400_000


def test_other_weights_are_no_judge(tmp_path):
    params = make_judge("identity").params
    checkpoint.save_weights(tmp_path / "w.safetensors", params, {"config": {}})
    with pytest.raises(InputError, match="expected a judge"):
        judges.load(tmp_path / "w.safetensors")


def test_a_judge_is_asked_by_its_own_kind_only():
    with pytest.raises(TypeError, match="expected a judge of quality, this one judges"):
        make_judge("identity").quality(make_frames(1))


@pytest.mark.parametrize("kind, method", [("motion", "read"), ("identity", "embed")])
def test_frames_are_judged_one_by_one_whatever_their_number_and_size(kind, method):
    ask, frames = getattr(make_judge(kind), method), make_frames(7)
    whole = ask(frames)
    assert len(whole) == 7
    large = frames[3:5].repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(ask(large), whole[3:5], atol=1e-4)


def test_sync_of_a_clip_is_the_mean_over_its_windows():
    judge, frames = make_judge("sync"), make_frames(11)
    speech = np.random.default_rng(1).normal(size=(11, SPEECH_WIDTH))
    unit = jnp.asarray(frames, jnp.float32) / 127.5 - 1
    windows = [slice(start, start + sync.SYNC_FRAMES) for start in range(4)]
    each = judges.sync_distance(
        judge.params,
        jnp.stack([unit[w] for w in windows]),
        jnp.stack([jnp.asarray(speech[w], jnp.float32) for w in windows]),
    )
    assert judge.sync_distance(frames, speech) == pytest.approx(
        float(each.mean()), abs=1e-4
    )
    with pytest.raises(InputError, match="came 11 frames and 9 rows"):
        judge.sync_distance(frames, speech[:9])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_frame_and_are_finite(kind):
    params, draw = make_judge(kind).params, np.random.default_rng(0)
    frames = jnp.asarray(draw.uniform(-1, 1, (8, 64, 64, 3)), jnp.float32)
    speech = jnp.asarray(draw.normal(size=(1, 8, SPEECH_WIDTH)), jnp.float32)
    first = {
        "motion": lambda x: judges.read_motion(params, x)[:, 0],
        "identity": lambda x: judges.embed_faces(params, x)[:, 0],
        "sync": lambda x: judges.sync_distance(params, x[None], speech),
        "quality": lambda x: judges.assess(params, x),
    }[kind]
    slope = jax.jit(jax.grad(lambda x: first(x).sum()))(frames)
    assert np.isfinite(slope).all()
    assert (np.abs(slope).max(axis=(1, 2, 3)) > 0).all()


def test_features_of_equal_pictures_of_one_colour_have_finite_gradients():
    params, frames = make_judge("quality").params, jnp.zeros((2, 64, 64, 3))

    def distance(x):
        pairs = zip(
            judges.quality_features(params, x),
            judges.quality_features(params, frames),
            strict=True,
        )
        return sum(jnp.mean((a - b) ** 2) for a, b in pairs)

    assert np.isfinite(jax.jit(jax.grad(distance))(frames)).all()


def test_the_shipped_judges_are_small():
    sizes = [
        judges.asset(kind, role).stat().st_size for kind in KINDS for role in ROLES
    ]
    assert sum(sizes) < 4_000_000


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_evaluation_share_neither_people_nor_weights(kind):
    one, two = (judges.load(judges.asset(kind, role)) for role in ROLES)
    for judge, role in ((one, "training"), (two, "evaluation")):
        assert judge.kind == kind and judge.digest != "unsaved"
        assert judge.settings["role"] == role
        assert judge.settings["seed"] == SEEDS[role]
    for a, b in zip(*map(jax.tree.leaves, (one.params, two.params)), strict=True):
        assert a.shape == b.shape
        assert not np.array_equal(a, b)


@pytest.mark.parametrize("role", ROLES)
def test_a_person_is_found_in_another_scene(role):
    judge = judges.load(judges.asset("identity", role))
    indices = (9, 19, 29, 39, 49)  # of the test split
    assert {people.split_of(index) for index in indices} == {"test"}
    crowd = [people.sample_person(77, index) for index in indices]
    known, asked = (
        np.stack(
            [judge.embed(film(person, scene).frames).mean(axis=0) for person in crowd]
        )
        for scene in (0, 1)
    )
    assert ((asked @ known.T).argmax(axis=1) == np.arange(len(crowd))).all()


def film(person: people.Person, scene: int) -> clips.TalkingClip:
    return clips.make_clip(person, scene=scene, utterance=scene, num_frames=25)
