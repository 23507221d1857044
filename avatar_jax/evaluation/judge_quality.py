"""Train and test the judge of quality: how much a frame was spoilt.

Five faults of generated video, each of a severity s_k in [0, 1]; what the judge learns
is q = prod_k (1 - s_k). Choice: the codec and H.264 are no faults, since the best that
a model can show has passed through them.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from avatar_jax.evaluation import judge_frames, judge_training
from avatar_jax.models import judges, quality

DEFAULTS = judge_training.JudgeConfig(people=2000, num_steps=1200, batch_size=64)
FAULTS = ("ghost", "blur", "colour", "seams", "noise")
SHARE = 0.35  # of the frames have a given fault
GHOST = 0.5  # share of the other picture at the worst
AWAY = (3, 7), (-2, 3)  # pixels by which it lies aside and below, ends exclusive
BLUR, BLUR_REACH = 2.0, 4  # pixels
GAIN = 0.4  # of a channel
SEAM, BLOCK = 0.25, 8  # standard deviation of the level of a block, pixels
NOISE = 0.2  # standard deviation


def train(config: judge_training.JudgeConfig) -> judges.Judge:
    """Train on people of the train split, `batch_size` frames a step."""
    data = judge_frames.make_mixed("train", config.people, seed=config.seed).frames
    rng = jax.random.key(config.seed)
    empty = jnp.zeros((1, judges.VIEW, judges.VIEW, 3))
    params = jax.jit(quality.QualityNetwork().init)(rng, empty)["params"]

    def draw(dice: np.random.Generator) -> judge_training.Batch:
        pick = dice.integers(0, len(data), config.batch_size)
        return data[pick], data[_other(dice, pick)]

    params = judge_training.optimise(_loss, params, draw, config)
    return judges.Judge("quality", params, dataclasses.asdict(config), "unsaved")


def spoil(
    rng: PRNGKeyArray,
    frames: Float[Array, "B Y X 3"],
    others: Float[Array, "B Y X 3"],
    severity: Float[Array, "B faults"],
) -> Float[Array, "B Y X 3"]:
    """Apply `FAULTS` of a severity of 0 (none) to 1 each; `others` shine through.

    Choice: these are moved, as if the head were elsewhere; two frames of a second are
    often so alike that no ghost would be seen.
    """
    s = dict(zip(FAULTS, severity.T[..., None, None, None], strict=True))
    ghost_rng, colour_rng, seam_rng, noise_rng = jax.random.split(rng, 4)
    others = _move(ghost_rng, others)
    frames = frames + GHOST * s["ghost"] * (others - frames)
    sigma = BLUR * s["blur"][:, 0, 0, 0]
    frames = jax.vmap(judge_frames.blur, in_axes=(0, 0, None))(
        frames, sigma, BLUR_REACH
    )
    gain = jax.random.uniform(colour_rng, (len(frames), 1, 1, 3), minval=-1)
    gain = gain / jnp.abs(gain).max(axis=-1, keepdims=True)
    frames = (frames + 1) * (1 + GAIN * s["colour"] * gain) - 1
    blocks = jax.random.normal(
        seam_rng, (len(frames), *(side // BLOCK for side in frames.shape[1:3]), 1)
    )
    level = blocks.repeat(BLOCK, axis=1).repeat(BLOCK, axis=2)
    frames = frames + SEAM * s["seams"] * level
    noise = jax.random.normal(noise_rng, frames.shape)
    return jnp.clip(frames + NOISE * s["noise"] * noise, -1, 1)


def held_out_table(judge: judges.Judge, *, people: int, seed: int) -> list[dict]:
    """Return how the score follows the severity of each fault alone, and of all.

    Pearson's and Spearman's r with the true q over frames of validation people.
    """
    rows = [{"fault": name} for name in (*FAULTS, "all together")]
    for label, variant in (("rendered", "raw"), ("codec, H.264", "codec_h264")):
        clips = judge_frames.make_clips(
            "validation", people, seed=seed, variant=variant
        )
        frames = clips.frames.reshape(people, -1, *clips.frames.shape[1:])
        frames = np.concatenate(frames[:, :: judge_frames.KEEP_EVERY])
        for number, row in enumerate(rows):
            rng = jax.random.fold_in(jax.random.key(seed), number)
            severity = _sample(rng, len(frames))
            if number < len(FAULTS):
                alone = jax.random.uniform(rng, (len(frames),))
                severity = jnp.zeros_like(severity).at[:, number].set(alone)
            others = frames[_other(np.random.default_rng(seed), np.arange(len(frames)))]
            shown = np.asarray(_spoil_bytes(rng, frames, others, severity))
            true, seen = np.prod(1 - severity, axis=1), judge.quality(shown)
            row[f"Pearson, {label}"] = float(np.corrcoef(true, seen)[0, 1])
            row[f"Spearman, {label}"] = float(scipy.stats.spearmanr(true, seen)[0])
    return rows


def _move(
    rng: PRNGKeyArray, frames: Float[Array, "B Y X 3"]
) -> Float[Array, "B Y X 3"]:
    """Roll each picture to either side and up or down, differently."""
    side_rng, x_rng, y_rng = jax.random.split(rng, 3)
    count = (len(frames),)
    side = jax.random.rademacher(side_rng, count, jnp.int32)
    x = side * jax.random.randint(x_rng, count, *AWAY[0])
    y = jax.random.randint(y_rng, count, *AWAY[1])
    return jax.vmap(lambda frame, *by: jnp.roll(frame, by, (0, 1)))(frames, y, x)


def _sample(rng: PRNGKeyArray, count: int) -> Float[Array, "B faults"]:
    """Draw severities; a fault is absent from most frames."""
    share_rng, level_rng = jax.random.split(rng)
    shape = count, len(FAULTS)
    present = jax.random.bernoulli(share_rng, SHARE, shape)
    return present * jax.random.uniform(level_rng, shape)


def _other(dice: np.random.Generator, pick: np.ndarray) -> np.ndarray:
    """Return another frame of the same clip for each frame index."""
    kept = len(range(0, judge_frames.CLIP_FRAMES, judge_frames.KEEP_EVERY))
    return pick - pick % kept + (pick + dice.integers(1, kept, len(pick))) % kept


def _loss(
    params: dict, batch: judge_training.Batch, rng: PRNGKeyArray
) -> Float[Array, ""]:
    """Read q by the cross entropy of a soft target."""
    severity_rng, spoil_rng = jax.random.split(rng)
    severity = _sample(severity_rng, len(batch[0]))
    frames, others = (judge_training.to_unit(part) for part in batch)
    shown = spoil(spoil_rng, frames, others, severity)
    logit, _ = quality.QualityNetwork().apply({"params": params}, shown)
    true = jnp.prod(1 - severity, axis=1)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logit, true))


@jax.jit
def _spoil_bytes(
    rng: PRNGKeyArray,
    frames: UInt8[Array, "B Y X 3"],
    others: UInt8[Array, "B Y X 3"],
    severity: Float[Array, "B faults"],
) -> UInt8[Array, "B Y X 3"]:
    unit = judge_training.to_unit
    shown = spoil(rng, unit(frames), unit(others), severity)
    return jnp.round((shown + 1) * 127.5).astype(jnp.uint8)
