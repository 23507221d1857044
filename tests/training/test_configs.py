"""The configs of stages 1 and 2, two small steps each (~100 s on 2 cores)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from avatar_jax import checkpoint
from avatar_jax.sampling import pretrained
from avatar_jax.training import config as config_module

sys.path.insert(0, str(Path(__file__).parent))
from stage_runs import CONFIGS, SIDE, SMALL, STAGES, train, write_records


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    write_records(folder / "records")
    train(STAGES[0], folder)
    train(STAGES[1], folder, f"--config.init_from={STAGES[0]}")
    return folder


@pytest.mark.parametrize("stage", STAGES)
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
