"""Train and test the judge of sync: do these mouths belong to this speech?

Contrastive (SyncNet, and arXiv:1807.03748): the speech of a window of frames against
the speech of the same clip at other times, and of all other clips of the batch.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, UInt8
from tqdm import tqdm

from avatar_jax.data.talking_heads import clips, people
from avatar_jax.data.talking_heads.motion import MOTION_NAMES
from avatar_jax.evaluation import judge_frames, judge_training
from avatar_jax.media import loudness
from avatar_jax.models import judges, sync
from avatar_jax.models.faces import to_unit_length
from avatar_jax.models.speech import LogMel

DEFAULTS = judge_training.JudgeConfig(people=1500, num_steps=1200, batch_size=20)
TEMPERATURE = 0.1
RUN = 24  # frames of a clip in a batch
EVERY = 2  # frames between windows that are told apart in training
TRAIN_FRAMES, TEST_FRAMES = 49, 97  # of a clip, 4 n + 1
REACH = 5  # frames, of the offsets among which the true one is found


@dataclasses.dataclass(frozen=True)
class Talking:
    """Clips of one length with their speech and what the mouth does."""

    frames: UInt8[np.ndarray, "clips frames Y X 3"]
    speech: Float[np.ndarray, "clips frames A"]
    motion: Float[np.ndarray, "clips frames codes"]  # sync.SPOKEN


def train(config: judge_training.JudgeConfig) -> judges.Judge:
    """Train on people of the train split; a batch is runs of `batch_size` clips."""
    data = film("train", config.people, TRAIN_FRAMES, seed=config.seed, cut=True)
    mean, std = data.motion.mean((0, 1)), data.motion.std((0, 1))
    targets = ((data.motion - mean) / std).astype(np.float32)
    empty = data.frames[:1].astype(np.float32), data.speech[:1]
    rng = jax.random.key(config.seed)
    params = jax.jit(sync.SyncNetwork().init)(rng, *empty)["params"]

    def draw(dice: np.random.Generator) -> judge_training.Batch:
        who = dice.choice(len(targets), config.batch_size, replace=False)
        start = dice.integers(0, TRAIN_FRAMES - RUN + 1, len(who))
        place = who[:, None], start[:, None] + np.arange(RUN)
        return data.frames[place], data.speech[place], targets[place]

    params = judge_training.optimise(_loss, params, draw, config)
    return judges.Judge("sync", params, dataclasses.asdict(config), "unsaved")


def film(
    split: str,
    count: int,
    num_frames: int,
    *,
    seed: int,
    variant: str | None = None,
    cut: bool = False,
) -> Talking:
    """Film one clip of each of `count` people of a split.

    Args:
      variant: how frames are shown; None: the variants of `judge_frames` in turn.
      cut: keep `sync.crop_mouth` only, which is what training needs.
    """
    rng, parts = np.random.default_rng(seed), []
    spoken = [MOTION_NAMES.index(name) for name in sync.SPOKEN]
    for number, index in enumerate(
        tqdm(judge_frames.people_of(split, count), desc=f"{split}, speaking")
    ):
        clip = clips.make_clip(
            people.sample_person(seed, index),
            scene=0,
            utterance=index,
            num_frames=num_frames,
            size=judges.VIEW,
        )
        turn = judge_frames.VARIANTS[number % len(judge_frames.VARIANTS)]
        crf = int(rng.integers(14, 27)) if variant is None else 18
        shown = judge_frames.degrade_clip(clip.frames, variant or turn, crf=crf)
        shown = sync.crop_mouth(shown) if cut else shown
        rows = LogMel()(loudness.normalise(clip.audio), num_frames)
        parts.append((shown, rows, clip.motion[:, spoken]))
    return Talking(*(np.stack(field) for field in zip(*parts, strict=True)))


def held_out_table(judge: judges.Judge, *, people: int, seed: int) -> list[dict]:
    """Return how well speech is placed in time, and told from the speech of others.

    Over clips of 4 s of validation people, as rendered and as generated video is shown:
    how often the least mean distance among the offsets of -`REACH` to `REACH` frames is
    at 0, and the area under the curve that tells own speech from that of others.
    """
    rows = [{"": name} for name in _ROWS]
    for label, variant in (("rendered", "raw"), ("codec, H.264", "codec_h264")):
        data = film("validation", people, TEST_FRAMES, seed=seed, variant=variant)
        pairs = [
            judge.sync_windows(frames, speech)
            for frames, speech in zip(data.frames, data.speech, strict=True)
        ]
        seen, heard = (np.stack(part) for part in zip(*pairs, strict=True))
        best = np.array([np.argmin(c) for c in map(offset_curve, seen, heard)]) - REACH
        own = np.linalg.norm(seen - heard, axis=-1)
        other = np.linalg.norm(seen - np.roll(heard, 1, axis=0), axis=-1)
        values = (
            np.mean(best == 0),
            np.mean(np.abs(best) <= 1),
            _area(own.mean(axis=1), other.mean(axis=1)),
            _area(own.ravel(), other.ravel()),
            own.mean(),
            other.mean(),
        )
        for row, value in zip(rows, values, strict=True):
            row[label] = float(value)
    return rows


_ROWS = (
    "true offset found among 11, 4 s",
    "found to one frame, 4 s",
    "area under the curve, own or other speech, 4 s",
    "area under the curve, one window of 8 frames",
    "(mean distance, own speech)",
    "(mean distance, speech of another)",
)


def offset_curve(
    seen: Float[np.ndarray, "windows D"], heard: Float[np.ndarray, "windows D"]
) -> Float[np.ndarray, " offsets"]:
    """Return the mean distance with the speech from -`REACH` to `REACH` frames later.

    All offsets are over the same windows of frames.
    """
    middle = np.arange(REACH, len(seen) - REACH)
    return np.array(
        [
            np.linalg.norm(seen[middle] - heard[middle + offset], axis=-1).mean()
            for offset in range(-REACH, REACH + 1)
        ]
    )


def _area(own: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"]) -> float:
    """Return how often a distance to other speech exceeds one to own speech."""
    place = np.searchsorted(np.sort(own), other)
    return float(place.mean() / len(own))


def _loss(
    params: dict, batch: judge_training.Batch, rng: PRNGKeyArray
) -> Float[Array, ""]:
    """Match windows and speech; read `sync.SPOKEN` too, which starts the learning."""
    frames, speech, targets = batch
    unit = judge_training.to_unit(frames)
    shown = judge_frames.degrade(rng, unit.reshape(-1, *unit.shape[2:]))
    seen, heard, codes = sync.SyncNetwork().apply(
        {"params": params}, shown.reshape(unit.shape), speech
    )
    seen, heard = (
        to_unit_length(x[:, ::EVERY]).reshape(-1, x.shape[-1]) for x in (seen, heard)
    )
    reading = jnp.mean(optax.huber_loss(codes, targets))
    return judge_training.contrast(seen, heard, TEMPERATURE) + reading
