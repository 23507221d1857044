"""The frozen judges at work: four kinds, each in two roles.

`training` judges serve as losses and rewards, `evaluation` judges only grade. The two
come from different files, people and seeds, so that no model is graded by what it
optimised. `python -m avatar_jax.evaluate train-judge` makes them.

Every judge sees the standard portrait: a square of about 1.8 face boxes, `VIEW` pixels
wide. The methods of `Judge` take uint8 frames of any size on the host; the functions
below it are pure, differentiable in the frames, and meant for use within `jit`.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from avatar_jax import checkpoint
from avatar_jax.models import faces, quality, sync
from avatar_jax.types import InputError

Kind = Literal["motion", "identity", "sync", "quality"]
Role = Literal["training", "evaluation"]
VIEW = sync.JUDGE_SIZE  # pixels, side of the portrait
ASSETS = Path(__file__).resolve().parents[1] / "assets"
_BATCH = 64  # frames per call when asked


@dataclasses.dataclass(frozen=True)
class Judge:
    """A trained judge; asked by the methods of its own kind, else TypeError."""

    kind: Kind
    params: dict
    settings: dict  # of its training: role, seed, people, ...
    digest: str  # names the weights in reports
    names: tuple[str, ...] = ()  # of motion codes
    mean: Float[np.ndarray, " codes"] = dataclasses.field(
        default_factory=lambda: np.zeros(0)
    )
    std: Float[np.ndarray, " codes"] = dataclasses.field(
        default_factory=lambda: np.zeros(0)
    )

    def read(
        self, frames: UInt8[np.ndarray, "frames Y X 3"]
    ) -> Float[np.ndarray, "frames codes"]:
        """Read every motion code (`names`) of every frame."""
        codes = self._ask("motion", read_motion, frames)
        return codes * self.std + self.mean

    def mouth_open(
        self, frames: UInt8[np.ndarray, "frames Y X 3"]
    ) -> Float[np.ndarray, " frames"]:
        """Read the opening of the mouth alone."""
        return self.read(frames)[:, self.names.index("mouth_open")]

    def embed(
        self, frames: UInt8[np.ndarray, "frames Y X 3"]
    ) -> Float[np.ndarray, "frames D"]:
        """Return a unit vector of 64 numbers per frame that says who is seen."""
        return self._ask("identity", embed_faces, frames)

    def quality(
        self, frames: UInt8[np.ndarray, "frames Y X 3"]
    ) -> Float[np.ndarray, " frames"]:
        """Score each frame: 1 is clean, 0 is spoilt."""
        return self._ask("quality", assess, frames)

    def sync_distance(
        self,
        frames: UInt8[np.ndarray, "frames Y X 3"],
        speech: Float[np.ndarray, "rows A"],
    ) -> float:
        """Return the mean distance (0 to 2) of the windows of a clip and its speech.

        Args:
          speech: rows of `LogMel` of the loudness-normalised wave, one per frame.
        """
        seen, heard = self.sync_windows(frames, speech)
        return float(np.linalg.norm(seen - heard, axis=-1).mean())

    def sync_windows(
        self,
        frames: UInt8[np.ndarray, "frames Y X 3"],
        speech: Float[np.ndarray, "rows A"],
    ) -> tuple[Float[np.ndarray, "windows D"], Float[np.ndarray, "windows D"]]:
        """Return the unit vectors of the mouth and of the speech from each frame on."""
        if len(frames) != len(speech) or len(frames) < sync.SYNC_FRAMES:
            raise InputError(
                f"a sync judge expects {sync.SYNC_FRAMES} frames or more and a row of "
                f"speech for each, came {len(frames)} frames and {len(speech)} rows."
            )
        self._expect("sync")
        padding = -len(frames) % _BATCH  # few lengths, few compilations
        mouths = sync.crop_mouth(shrink(frames))
        mouths = np.pad(mouths, [(0, padding), (0, 0), (0, 0), (0, 0)], "edge")
        rows = np.pad(np.asarray(speech, np.float32), [(0, padding), (0, 0)], "edge")
        both = _call(_embed_both, self.params, mouths[None], rows[None])
        seen, heard = np.asarray(both)[:, 0, : len(frames) - sync.SYNC_FRAMES + 1]
        return seen, heard

    def _ask(
        self, kind: Kind, function: Callable, frames: UInt8[np.ndarray, "frames Y X 3"]
    ) -> Float[np.ndarray, "frames ..."]:
        """Call a pure function below on batches of one size; the last one is padded."""
        self._expect(kind)
        frames, parts = shrink(frames), []
        for start in range(0, len(frames), _BATCH):
            rows = np.arange(start, start + _BATCH).clip(max=len(frames) - 1)
            parts.append(_call(function, self.params, frames[rows]))
        return np.concatenate(parts)[: len(frames)]

    def _expect(self, kind: Kind) -> None:
        if self.kind != kind:
            raise TypeError(
                f"expected a judge of {kind}, this one judges {self.kind}; load "
                f"judges.asset({kind!r}, role)."
            )


def asset(kind: Kind, role: Role) -> Path:
    """Return where the shipped judge of a kind and a role lies."""
    return ASSETS / f"judge_{kind}_{role}.safetensors"


def load(path: str | Path) -> Judge:
    """Load a judge written by `save`; InputError for other weights."""
    params, metadata = checkpoint.load_weights(path)
    if "judge" not in metadata:
        raise InputError(
            f"expected a judge, {path} holds other weights; give a file that "
            "`python -m avatar_jax.evaluate train-judge` wrote."
        )
    return Judge(
        kind=metadata.get("kind", "motion"),  # the first judges were of one kind
        params=jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params),
        settings=metadata["judge"],
        digest=hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12],
        names=tuple(metadata["names"]),
        mean=np.array(metadata["mean"]),
        std=np.array(metadata["std"]),
    )


def save(path: str | Path, judge: Judge) -> None:
    """Write a judge as float16 safetensors."""
    metadata = {
        "kind": judge.kind,
        "judge": judge.settings,
        "names": list(judge.names),
        "mean": judge.mean.tolist(),
        "std": judge.std.tolist(),
    }
    checkpoint.save_weights(path, judge.params, metadata, dtype=np.float16)


def read_motion(
    params: dict, frames: Float[Array, "B 64 64 3"]
) -> Float[Array, "B codes"]:
    """Read motion codes (mean 0, variance 1 in training) of frames in [-1, 1]."""
    codes = params["codes_out"]["bias"].shape[0]
    return sync.MotionRegressor(codes).apply({"params": params}, frames)[0]


def embed_faces(params: dict, frames: Float[Array, "B 64 64 3"]) -> Float[Array, "B D"]:
    """Return unit vectors that say who is seen; frames in [-1, 1]."""
    return faces.FaceEmbedder().apply({"params": params}, frames)


def sync_distance(
    params: dict, frames: Float[Array, "B F 64 64 3"], speech: Float[Array, "B F A"]
) -> Float[Array, " B"]:
    """Return the distance (0 to 2) of frames and their speech, mean over windows.

    Args:
      frames: in [-1, 1], `sync.SYNC_FRAMES` (8, one window) or more.
      speech: their rows of `LogMel` of the loudness-normalised wave.
    """
    seen, heard = embed_windows(params, sync.crop_mouth(frames), speech)
    return jnp.sqrt(jnp.sum((seen - heard) ** 2, axis=-1) + 1e-8).mean(axis=1)


def embed_windows(
    params: dict, mouths: Float[Array, "B F Y X 3"], speech: Float[Array, "B F A"]
) -> tuple[Float[Array, "B windows D"], Float[Array, "B windows D"]]:
    """Return unit vectors of `sync.crop_mouth` and of speech from each frame on."""
    seen, heard, _ = sync.SyncNetwork().apply({"params": params}, mouths, speech)
    return faces.to_unit_length(seen), faces.to_unit_length(heard)


def assess(params: dict, frames: Float[Array, "B 64 64 3"]) -> Float[Array, " B"]:
    """Score frames in [-1, 1]: 1 is clean, 0 is spoilt."""
    return nn.sigmoid(quality.QualityNetwork().apply({"params": params}, frames)[0])


def quality_features(
    params: dict, frames: Float[Array, "B 64 64 3"]
) -> list[Float[Array, "B y x c"]]:
    """Return feature maps, finest first, of unit length over channels.

    A perceptual loss is the mean of squared differences of the maps of two pictures.
    """
    return quality.QualityNetwork().apply({"params": params}, frames)[1]


def shrink(
    frames: UInt8[np.ndarray, "frames Y X 3"],
) -> UInt8[np.ndarray, "frames 64 64 3"]:
    """Resize frames of any size to `VIEW` pixels."""
    if frames.shape[1:3] == (VIEW, VIEW):
        return frames
    size = (VIEW, VIEW)
    return np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in frames])


@functools.partial(jax.jit, static_argnums=0)
def _call(
    function: Callable,
    params: dict,
    frames: UInt8[Array, "B ..."],
    *more: Float[Array, "B ..."],
) -> Float[Array, "..."]:
    return function(params, frames.astype(jnp.float32) / 127.5 - 1, *more)


def _embed_both(
    params: dict, mouths: Float[Array, "B F Y X 3"], speech: Float[Array, "B F A"]
) -> Float[Array, "2 B windows D"]:
    return jnp.stack(embed_windows(params, mouths, speech))
