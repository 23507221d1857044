"""A few random records, and the stages' config files cut down to train on them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from avatar_jax.data import records
from avatar_jax.models import faces, speech, text
from avatar_jax.training import config as config_module

CONFIGS = Path(__file__).parents[2] / "configs"
STAGES = ("stage1_text_to_video", "stage2_audio_to_video", "stage3_personality")
FRAMES, LATENTS, SIDE, MOTION = 21, 6, 4, 12
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
PERSONAL = [  # of stage 3 alone
    "--config.data.reference.segment_latents=2",
    "--config.data.reference.segments=(2,)",
    "--config.human.view=4",
    "--config.human.crop=3",
]


def write_records(directory):
    rng = np.random.default_rng(0)
    prompts = text.Bytes()(["a person speaks", ""]).astype(np.float16)
    latents_of = records.tier_directory(directory, records.LATENTS, "dct64")
    features_of = records.tier_directory(directory, records.FEATURES)
    draw = rng.standard_normal
    for split, count in (("train", 5), ("validation", 4)):
        names = [f"{split}{i}" for i in range(count)]
        features = [
            {
                "key": name,
                "person": f"{split} person {i // 3}",
                "scene": f"{split} scene {i // 2}",
                "speech": draw((FRAMES, speech.LogMel().width)).astype(np.float16),
                "text": prompts[0],
                "motion": draw((FRAMES, MOTION)).astype(np.float32),
                "identity": np.eye(faces.IDENTITY_WIDTH, dtype=np.float32)[i],
            }
            for i, name in enumerate(names)
        ]
        latents = [
            {
                "key": name,
                "latents": draw((LATENTS, SIDE, SIDE, 64)).astype(np.float16),
                "mouth_mask": rng.random((LATENTS, SIDE, SIDE)).astype(np.float16),
                "face_mask": rng.random((LATENTS, SIDE, SIDE)).astype(np.float16),
                "still": draw((1, SIDE, SIDE, 64)).astype(np.float16),
                "still_mask": (rng.random((SIDE, SIDE)) < 0.7).astype(np.float16),
                "faces": draw((2, SIDE, SIDE, 64)).astype(np.float16),
            }
            for name in names
        ]
        schema = records.features_schema(
            motion_width=MOTION, identity_width=faces.IDENTITY_WIDTH
        )
        records.write_tier(features_of, split, schema, features)
        records.write_tier(latents_of, split, records.latents_schema(), latents)
    records.write_motion_scale(directory, np.stack([np.zeros(MOTION), np.ones(MOTION)]))
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


def make_config(stage, *arguments):
    """Read a stage's config file and apply `--config.x=value`."""
    config = config_module.load_module(CONFIGS / f"{stage}.py").get_config()
    for argument in arguments:
        name, _, value = argument.removeprefix("--config.").partition("=")
        config_module.override(config, name, value)
    return config
