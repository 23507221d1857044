"""The configs of stages 1 and 2, two small steps each (~100 s on 2 cores)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from avatar_jax import checkpoint
from avatar_jax.data import records
from avatar_jax.models import speech, text
from avatar_jax.sampling import pretrained
from avatar_jax.training import config as config_module

CONFIGS = Path(__file__).parents[2] / "configs"
STAGES = ("stage1_text_to_video", "stage2_audio_to_video")
FRAMES, LATENTS, SIDE = 21, 6, 4
SMALL = [
    "--config.steps=2",
    "--config.model.width=16",
    "--config.model.mlp_width=24",
    "--config.model.layers=2",
    "--config.data.buckets=((5, 4, 1.0),)",
    "--config.preview.num_batches=1",
    "--config.preview.num_steps=2",
]


def write_records(directory):
    rng = np.random.default_rng(0)
    prompts = text.Bytes()(["a person speaks", ""]).astype(np.float16)
    latents_of = records.tier_directory(directory, records.LATENTS, "dct64")
    features_of = records.tier_directory(directory, records.FEATURES)
    for split, count in (("train", 5), ("validation", 4)):
        keys = [f"{split}{i}" for i in range(count)]
        features = [
            {
                "key": key,
                "speech": rng.standard_normal((FRAMES, speech.LogMel().width)),
                "text": prompts[0],
                "motion": np.zeros((FRAMES, 0), np.float32),
            }
            for key in keys
        ]
        latents = [
            {
                "key": key,
                "latents": rng.standard_normal((LATENTS, SIDE, SIDE, 64)),
                "mouth_mask": rng.random((LATENTS, SIDE, SIDE)),
            }
            for key in keys
        ]
        for rows in (*features, *latents):
            for name in ("speech", "latents", "mouth_mask"):
                if name in rows:
                    rows[name] = rows[name].astype(np.float16)
        schema = records.features_schema(motion_width=0)
        records.write_tier(features_of, split, schema, features)
        records.write_tier(latents_of, split, records.latents_schema(), latents)
    records.write_null_text(directory, prompts[1])


def train(stage, folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "avatar_jax.train", "--workdir", stage]
        + ["--config", f"configs/{stage}.py", *SMALL, *arguments],
        cwd=folder,  # not the repository: the config is found beside the package
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    write_records(folder / "records")
    first = train(STAGES[0], folder)
    assert first.returncode == 0, first.stderr
    second = train(STAGES[1], folder, f"--config.init_from={STAGES[0]}")
    assert second.returncode == 0, second.stderr
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


@pytest.mark.parametrize("stage", STAGES)
def test_a_config_file_is_small_and_names_its_command(stage):
    source = (CONFIGS / f"{stage}.py").read_text()
    assert source.count("\n") <= 100
    module = config_module.load_module(CONFIGS / f"{stage}.py")
    for word in ("python -m avatar_jax.train", "Hardware:", "Hours:", "Expect:"):
        assert word in module.__doc__
