"""Train and test the judge of motion: frames in, motion codes out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from avatar_jax.data.talking_heads.motion import MOTION_NAMES
from avatar_jax.evaluation import judge_frames, judge_training
from avatar_jax.evaluation.metrics import sync
from avatar_jax.models import judges
from avatar_jax.models.sync import MotionRegressor

DEFAULTS = judge_training.JudgeConfig(people=2500, num_steps=2500, batch_size=64)
MOUTH_WEIGHT = 4.0  # of the loss of `mouth_open`
PLACE_JITTER = 1.0  # pixels


def train(config: judge_training.JudgeConfig) -> judges.Judge:
    """Train a judge on procedural people of the train split, `batch_size` frames."""
    data = judge_frames.make_mixed("train", config.people, seed=config.seed)
    mean, std = data.motion.mean(0), data.motion.std(0) + 1e-6
    targets = ((data.motion - mean) / std).astype(np.float32)
    rng = jax.random.key(config.seed)
    empty = jnp.zeros((1, judges.VIEW, judges.VIEW, 3))
    params = jax.jit(MotionRegressor(len(std)).init)(rng, empty)["params"]

    def draw(dice: np.random.Generator) -> judge_training.Batch:
        pick = dice.integers(0, len(targets), config.batch_size)
        return data.frames[pick], targets[pick], data.places[pick]

    params = judge_training.optimise(_loss, params, draw, config)
    settings = dataclasses.asdict(config)
    return judges.Judge("motion", params, settings, "unsaved", MOTION_NAMES, mean, std)


def held_out_table(judge: judges.Judge, *, people: int, seed: int) -> list[dict]:
    """Return how well each code is read on one clip of each of some validation people.

    Per code and kind of picture: Pearson's r over all frames of all people, and the
    mean absolute error, to be read beside the code's own standard deviation.
    """
    rows = [{"code": name} for name in judge.names]
    for label, variant in (("rendered", "raw"), ("codec, H.264", "codec_h264")):
        data = judge_frames.make_clips("validation", people, seed=seed, variant=variant)
        seen = judge.read(data.frames)
        for row, s, t in zip(rows, seen.T, data.motion.T, strict=True):
            row["std"] = float(t.std())
            row[f"r, {label}"] = sync.mouth_correlation(s, t)
            row[f"error, {label}"] = float(np.abs(s - t).mean())
    return rows


def _loss(
    params: dict, batch: judge_training.Batch, rng: PRNGKeyArray
) -> Float[Array, ""]:
    """Learn codes at places off by a little, as the coarse pass will be, and places."""
    frames, targets, places = batch
    degrade_rng, jitter_rng = jax.random.split(rng)
    pictures = judge_frames.degrade(degrade_rng, judge_training.to_unit(frames))
    jittered = places + PLACE_JITTER * jax.random.normal(jitter_rng, places.shape)
    network = MotionRegressor(targets.shape[1])
    seen, found = network.apply({"params": params}, pictures, jittered)
    weight = jnp.ones(targets.shape[1]).at[MOTION_NAMES.index("mouth_open")]
    codes = weight.set(MOUTH_WEIGHT)[None] * optax.huber_loss(seen, targets)
    return jnp.mean(codes) + jnp.mean(optax.huber_loss(found, places))
