"""Train, load and ask the motion judge.

Two roles, two files, two seeds: `training` may serve as loss or reward, `evaluation`
only grades. The people of a judge come from its own seed, split by person.
"""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Literal

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, UInt8
from tqdm import tqdm

from avatar_jax import checkpoint
from avatar_jax.data.talking_heads.motion import MOTION_NAMES
from avatar_jax.evaluation import judge_frames
from avatar_jax.evaluation.metrics import sync
from avatar_jax.models.sync import JUDGE_SIZE, MotionRegressor
from avatar_jax.types import InputError

ASSETS = Path(__file__).resolve().parents[1] / "assets"
Role = Literal["training", "evaluation"]
PLACE_JITTER = 1.0  # pixels
_BATCH = 256  # frames per call when asked


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """How a judge is trained; the defaults made the shipped ones."""

    role: Role = "evaluation"
    seed: int = 1
    people: int = 2500
    num_steps: int = 2500
    batch_size: int = 64
    learning_rate: float = 2e-3
    mouth_weight: float = 4.0  # of the loss of `mouth_open`


@dataclasses.dataclass(frozen=True)
class Judge:
    """A trained regressor; `digest` names its weights in reports."""

    params: dict
    names: tuple[str, ...]
    mean: Float[np.ndarray, " codes"]
    std: Float[np.ndarray, " codes"]
    digest: str

    def read(
        self, frames: UInt8[np.ndarray, "frames Y X 3"]
    ) -> Float[np.ndarray, "frames codes"]:
        """Read every motion code of every frame; frames of any size."""
        frames = np.stack([_shrink(frame) for frame in frames])
        count = -(-len(frames) // _BATCH) * _BATCH
        padded = np.pad(frames, [(0, count - len(frames))] + [(0, 0)] * 3, "edge")
        codes = [
            _predict(self.params, padded[start : start + _BATCH])
            for start in range(0, count, _BATCH)
        ]
        return np.concatenate(codes)[: len(frames)] * self.std + self.mean

    def mouth_open(
        self, frames: UInt8[np.ndarray, "frames Y X 3"]
    ) -> Float[np.ndarray, " frames"]:
        """Read the opening of the mouth alone."""
        return self.read(frames)[:, self.names.index("mouth_open")]


def asset(role: Role) -> Path:
    """Return where the shipped judge of a role lies."""
    return ASSETS / f"judge_motion_{role}.safetensors"


def load(path: str | Path) -> Judge:
    """Load a judge written by `save`."""
    params, metadata = checkpoint.load_weights(path)
    if "judge" not in metadata:
        raise InputError(
            f"expected a motion judge, {path} holds other weights; give a file that "
            "`python -m avatar_jax.evaluate train-judge` wrote."
        )
    return Judge(
        params=jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params),
        names=tuple(metadata["names"]),
        mean=np.array(metadata["mean"]),
        std=np.array(metadata["std"]),
        digest=hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12],
    )


def save(path: str | Path, judge: Judge, config: JudgeConfig) -> None:
    """Write a judge as float16 safetensors."""
    metadata = {
        "judge": dataclasses.asdict(config),
        "names": list(judge.names),
        "mean": judge.mean.tolist(),
        "std": judge.std.tolist(),
    }
    checkpoint.save_weights(path, judge.params, metadata, dtype=np.float16)


def train(config: JudgeConfig) -> Judge:
    """Train a judge on procedural people of the train split."""
    data = judge_frames.make_mixed("train", config.people, seed=config.seed)
    mean, std = data.motion.mean(0), data.motion.std(0) + 1e-6
    targets = ((data.motion - mean) / std).astype(np.float32)
    rng = jax.random.key(config.seed)
    empty = jnp.zeros((1, JUDGE_SIZE, JUDGE_SIZE, 3))
    params = jax.jit(MotionRegressor(len(std)).init)(rng, empty)["params"]
    rate = optax.cosine_onecycle_schedule(config.num_steps, config.learning_rate)
    optimizer = optax.adamw(rate, weight_decay=1e-3)
    weight = np.ones(len(std), np.float32)
    weight[MOTION_NAMES.index("mouth_open")] = config.mouth_weight
    state = params, optimizer.init(params)
    draw = np.random.default_rng(config.seed)
    for index in tqdm(range(config.num_steps), desc=f"{config.role} judge"):
        pick = draw.integers(0, len(targets), config.batch_size)
        batch = data.frames[pick], targets[pick], data.places[pick]
        key = jax.random.fold_in(rng, index)
        state = _train_step(optimizer, weight, state, batch, key)
    return Judge(state[0], MOTION_NAMES, mean, std, digest="unsaved")


def held_out_table(judge: Judge, *, people: int, seed: int) -> list[dict]:
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


def format_table(rows: list[dict]) -> str:
    """Return the rows of `held_out_table` as a Markdown table."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names)]
    for row in rows:
        lines.append([v if isinstance(v, str) else f"{v:.3f}" for v in row.values()])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@functools.partial(jax.jit, static_argnums=0)
def _train_step(
    optimizer: optax.GradientTransformation,
    weight: Float[Array, " codes"],
    state: tuple,
    batch: tuple,
    rng: PRNGKeyArray,
) -> tuple:
    """Learn codes at places off by a little, as the coarse pass will be, and places."""
    frames, targets, places = batch
    degrade_rng, jitter_rng = jax.random.split(rng)
    pictures = judge_frames.degrade(degrade_rng, _to_unit(frames))
    jittered = places + PLACE_JITTER * jax.random.normal(jitter_rng, places.shape)

    def loss(params: dict) -> Float[Array, ""]:
        network = MotionRegressor(targets.shape[1])
        seen, found = network.apply({"params": params}, pictures, jittered)
        codes = jnp.mean(weight[None] * optax.huber_loss(seen, targets))
        return codes + jnp.mean(optax.huber_loss(found, places))

    updates, opt_state = optimizer.update(jax.grad(loss)(state[0]), state[1], state[0])
    return optax.apply_updates(state[0], updates), opt_state


@jax.jit
def _predict(params: dict, frames: UInt8[Array, "B Y X 3"]) -> Float[Array, "B codes"]:
    codes = params["codes_out"]["bias"].shape[0]
    return MotionRegressor(codes).apply({"params": params}, _to_unit(frames))[0]


def _to_unit(frames: UInt8[Array, "B Y X 3"]) -> Float[Array, "B Y X 3"]:
    return frames.astype(jnp.float32) / 127.5 - 1


def _shrink(frame: UInt8[np.ndarray, "Y X 3"]) -> UInt8[np.ndarray, "Y2 X2 3"]:
    if frame.shape[:2] == (JUDGE_SIZE, JUDGE_SIZE):
        return frame
    return cv2.resize(frame, (JUDGE_SIZE, JUDGE_SIZE), interpolation=cv2.INTER_AREA)
