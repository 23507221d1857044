"""The configs of the stages, a few small steps each (~110 s on 2 cores)."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from avatar_jax import checkpoint, sharding, stages
from avatar_jax.evaluation import training_cases
from avatar_jax.objectives import human_aware
from avatar_jax.sampling import pretrained
from avatar_jax.training import config as config_module
from avatar_jax.training import loop, state, step
from avatar_jax.types import InputError

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "objectives"))
from random_judges import random_judges
from stage_runs import (
    CONFIGS,
    PERSONAL,
    SIDE,
    SMALL,
    STAGES,
    make_config,
    train,
    write_records,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    write_records(folder / "records")
    return folder


@pytest.fixture(scope="module")
def folder(prepared):
    train(STAGES[0], prepared)
    train(STAGES[1], prepared, f"--config.init_from={STAGES[0]}")
    return prepared


@pytest.mark.parametrize("stage", STAGES[:2])
def test_a_stage_leaves_weights_that_sampling_accepts(folder, stage):
    loaded = pretrained.load(folder / stage / checkpoint.WEIGHTS_NAME)
    assert loaded.card.size == 8 * SIDE and loaded.card.chunk_latents == 5
    assert (loaded.card.config.audio_width is not None) == (stage == STAGES[1])
    assert (folder / stage / "previews" / "preview_0000002.gif").is_file()


def test_stage_2_starts_from_stage_1(folder):
    parent, _ = checkpoint.load_weights(folder / STAGES[0] / checkpoint.WEIGHTS_NAME)
    child, _ = checkpoint.load_weights(folder / STAGES[1] / checkpoint.WEIGHTS_NAME)
    # Two warm-up steps move nothing far; another random start would be far away.
    kernel = ("blocks", "attention", "q", "kernel")
    for name in kernel:
        parent, child = parent[name], child[name]
    assert np.abs(parent - child).max() < 0.1 * np.abs(parent).max()
    rows = (folder / STAGES[1] / "metrics.jsonl").read_text().splitlines()
    assert any("held_out/loss_mouth" in json.loads(row) for row in rows)


# The second of two config files counts.
PERSONALITY = f"--config configs/{STAGES[2]}.py --config.data.reference.segments=(1,)"
BAD = {
    # Two heads or four: the shapes are the same, the meaning is not.
    f"--config.init_from={STAGES[0]} --config.model.heads=2": (
        "model.heads=4, this run has 2"
    ),
    "--config.model.prediction=cleen": "prediction='cleen'; use one of velocity",
    "--config.model.heads=0": "heads=0; use 1 or more",
    "--config.data.buckets=((4,32),)": "expected buckets of",
    "--config.data.buckets=((2,4,1.0),)": "expected buckets of",
    "--config.sampler.num_steps=0": "num_steps=0",
    f"{PERSONALITY} --config.sampler.motion_lead=0.5": "motion_lead=0.5",
    f"{PERSONALITY} --config.data.reference.segment_latents=0": (
        "model.reference=True, but data.reference.segment_latents=0; set both"
    ),
    "--config.model.reference=true": "set both, or neither",
    f"{PERSONALITY} --config.human.crop=9": "crop=9 and view=0",
    f"{PERSONALITY} --config.data.reference.segments=(1,2,3)": (
        "reference.segments of 1 or more"
    ),
}
RUN_ALL = r"""
import sys
from avatar_jax import command, train
for line in sys.stdin.read().splitlines():
    print(command.run(train.main, line.split("\t")), flush=True)
"""


def test_bad_values_are_named_in_one_line_before_anything_is_trained(folder):
    start = ["--config", f"configs/{STAGES[1]}.py", "--workdir", "other", *SMALL]
    done = subprocess.run(  # a process of its own: no type checks but the program's
        [sys.executable, "-c", RUN_ALL],
        input="\n".join("\t".join([*start, *bad.split()]) for bad in BAD),
        cwd=folder,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["2"] * len(BAD), done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for line, words in zip(lines, BAD.values(), strict=True):
        assert words in line
    assert not (folder / "other" / "config.json").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_a_config_file_is_small_and_names_its_command(stage):
    source = (CONFIGS / f"{stage}.py").read_text()
    assert source.count("\n") <= 100
    module = config_module.load_module(CONFIGS / f"{stage}.py")
    for word in ("python -m avatar_jax.train", "Hardware:", "Hours:", "Expect:"):
        assert word in module.__doc__
    assert f"Stage {stage[5]}," in module.__doc__
    assert f"configs/{stage}.py" in module.__doc__


# Stage 3 runs in this process: with judges of random weights, and without `cases`,
# which film people of 64 pixels.


@pytest.fixture
def judged(prepared, monkeypatch):
    monkeypatch.chdir(prepared)
    monkeypatch.setattr(human_aware, "load_judges", lambda: random_judges())


@pytest.mark.parametrize("stage", STAGES)
def test_a_config_of_full_size_has_the_shapes_that_it_needs(judged, stage):
    arguments = [argument for argument in SMALL if ".model." not in argument]
    personal = PERSONAL if stage == STAGES[2] else []
    run = stages.make_flow_run(make_config(stage, *arguments, *personal))
    cases = [e for e in run.evaluators if isinstance(e, training_cases.CaseEvaluator)]
    assert len(cases) == (stage == STAGES[2])
    batch = next(iter(run.dataset(0, 1)))
    rng, objective = jax.random.key(0), run.objective
    players, frozen = jax.eval_shape(objective.init, rng, batch)

    def loss(players, frozen, batch):
        prepared = objective.prepare(players, frozen, batch, rng=rng)
        return objective.loss(players, frozen, prepared, rng=rng, step=jnp.int32(0))

    value, metrics = jax.eval_shape(loss, players, frozen, batch)
    assert value.shape == () and "loss_mouth" in metrics
    assert ("human/identity" in metrics) == (stage == STAGES[2])
    # As float16 they are shipped: at most 16 MB.
    assert 2 * sum(leaf.size for leaf in jax.tree.leaves(players)) < 16e6


class Interrupted(Exception):
    pass


def test_alone_the_motion_head_learns_and_nothing_else_does(judged, folder, tmp_path):
    alone = ["--config.steps=2", "--config.objective.motion_alone=True"]
    parent = f"--config.init_from={STAGES[1]}"
    config = make_config(STAGES[2], *SMALL, *PERSONAL, *alone, parent)
    with config.unlocked():
        del config["cases"]
    run = dataclasses.replace(stages.make_flow_run(config), evaluators=())
    batch = next(iter(run.dataset(0, 1)))
    one = jax.devices()[:1]
    final = loop.train(run, tmp_path / "w", resolved=config.to_dict(), devices=one)
    mesh = sharding.make_mesh(run.train.mesh, one)
    with jax.set_mesh(mesh):
        start = state.create(run, mesh, batch)
    old, new = (
        traverse_util.flatten_dict(x.params["model"], sep="/") for x in (start, final)
    )
    learnt = {name for name in old if np.abs(old[name] - new[name]).max() > 0}
    assert learnt
    assert all(n.startswith(("motion_head/", "embed/manner/")) for n in learnt)


def test_motion_alone_without_a_motion_stream_is_refused_in_one_line():
    alone = ["--config.objective.motion_alone=True", "--config.model.motion_width=0"]
    with pytest.raises(InputError, match="needs a motion stream, came"):
        stages.make_flow_run(make_config(STAGES[2], *alone))


def check_card(path):
    card = pretrained.load(path).card
    assert card.size == 8 * SIDE and card.config.motion_width == 12
    assert (card.segment_latents, card.face_crops, card.face_size) == (2, 2, 8 * SIDE)
    assert card.motion == card.identity == "procedural" and card.blank_still
    assert len(card.motion_mean) == len(card.motion_std) == 12


def test_stage_3_starts_from_stage_2_trains_is_resumed_and_is_sampled_from(
    judged, folder, monkeypatch, tmp_path
):
    parent = f"--config.init_from={STAGES[1]}"
    often = ["--config.steps=3", "--config.checkpoint_every=1", "--config.log_every=1"]
    config = make_config(STAGES[2], *SMALL, *PERSONAL, *often, parent)
    with config.unlocked():
        del config["cases"]
    run = stages.make_flow_run(config)
    compiled = []

    def compile_once(run, current):
        compiled.append(compiled[0] if compiled else jit_step(run, current))
        return compiled[0]

    jit_step = step.jit_step
    monkeypatch.setattr(step, "jit_step", compile_once)

    def train_in(name, **changes):
        changed = dataclasses.replace(run, **changes)
        return loop.train(
            changed,
            tmp_path / name,
            resolved=config.to_dict(),
            devices=jax.devices()[:1],
        )

    whole = train_in("whole")

    def interrupt(number, players):
        raise Interrupted

    often = dataclasses.replace(run.train, evaluate_every=2)
    with pytest.raises(Interrupted):
        train_in("cut", evaluators=(interrupt,), train=often)
    again = train_in("cut", evaluators=())
    chex.assert_trees_all_equal(again.params, whole.params)
    chex.assert_trees_all_equal(whole.frozen["judges"], random_judges())

    # A few warm-up steps move what came from stage 2 by little.
    before, _ = checkpoint.load_weights(STAGES[1] + "/" + checkpoint.WEIGHTS_NAME)
    for name in ("q", "k"):
        old, new = (
            tree["blocks"]["attention"][name]["kernel"]
            for tree in (before, whole.params["model"])
        )
        assert np.abs(old - new).max() < 0.1 * np.abs(old).max()
    rows = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    logged = set().union(*map(json.loads, rows))
    families = {f"human/{name}" for name in ("identity", "motion", "perceptual")}
    assert families | {"loss_flow", "loss_motion", "held_out/loss_motion"} <= logged

    check_card(tmp_path / "whole" / checkpoint.WEIGHTS_NAME)
