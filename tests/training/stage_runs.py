"""A few random records, and the stages' config files cut down to train on them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from avatar_jax.data import records
from avatar_jax.models import speech, text

CONFIGS = Path(__file__).parents[2] / "configs"
STAGES = ("stage1_text_to_video", "stage2_audio_to_video")
FRAMES, LATENTS, SIDE = 21, 6, 4
SMALL = [
    "--config.steps=2",
    "--config.model.width=16",
    "--config.model.mlp_width=24",
    "--config.model.layers=2",
    "--config.model.detail_width=8",
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


def start(stage, folder, *arguments, workdir=None):
    return subprocess.Popen(
        [sys.executable, "-m", "avatar_jax.train", "--workdir", workdir or stage]
        + ["--config", f"configs/{stage}.py", *SMALL, *arguments],
        cwd=folder,  # not the repository: the config is found beside the package
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train(stage, folder, *arguments, workdir=None):
    """Run to the end; return what was printed."""
    process = start(stage, folder, *arguments, workdir=workdir)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output
