"""From decoded clips to the three tiers of a dataset, the same for every source.

`clips_media` is written first; the other tiers are made from what is stored there, so
that what a network sees is what a reader of the records sees.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from tqdm import tqdm

from avatar_jax.data import records, shards
from avatar_jax.media import decode, encode, loudness
from avatar_jax.models.codec import LatentCodec
from avatar_jax.models.speech import SpeechEncoder
from avatar_jax.models.text import TextEncoder
from avatar_jax.types import (
    FRAMES_PER_LATENT,
    SAMPLES_PER_FRAME,
    InputError,
    count_frames,
    count_latents,
)

_FULL_SCALE = 32_767  # of PCM16
# Videos are lengthened to a multiple of this before encoding: few lengths to compile.
_LATENTS_STEP = 5


@contextmanager
def new_dataset(directory: str | Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `directory` if all goes well.

    Raises InputError where `directory` already exists.
    """
    directory = Path(directory)
    if directory.exists():
        raise InputError(
            f"expected a new folder, but {directory} exists; remove it or take another"
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    try:
        yield partial
        os.rename(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def make_media(
    frames: UInt8[np.ndarray, "frames Y X 3"],
    audio: Float[np.ndarray, " samples"],
    faces: Float[np.ndarray, "frames 4"],
    mouths: Float[np.ndarray, "frames 4"],
    *,
    names: Mapping[str, str],
    rights: Mapping[str, Any],
    scores: Mapping[str, Any],
) -> dict[str, Any]:
    """Make one example of `records.media_schema`; sound is fitted to the frames.

    Args:
      names: the text fields key, person, scene, source and caption.
    """
    wave = np.zeros(len(frames) * SAMPLES_PER_FRAME, np.float32)
    wave[: len(audio)] = audio[: len(wave)]
    return {
        **names,
        "video": encode.encode_bytes(frames),
        "audio": np.round(np.clip(wave, -1, 1) * _FULL_SCALE).astype(np.int16),
        "num_frames": len(frames),
        "height": frames.shape[1],
        "width": frames.shape[2],
        "face_boxes": faces.astype(np.float32),
        "mouth_boxes": mouths.astype(np.float32),
        "rights": json.dumps(rights),
        "scores": json.dumps(scores),
        "schema_version": shards.SCHEMA_VERSION,
    }


def read_wave(record: Mapping[str, Any]) -> Float[np.ndarray, " samples"]:
    """Return the sound of a media record in [-1, 1]."""
    return record["audio"].astype(np.float32) / _FULL_SCALE


def add_features(
    directory: str | Path,
    *,
    speech: SpeechEncoder,
    text: TextEncoder,
    motion: Mapping[str, Float[np.ndarray, "frames Dm"]] | None = None,
) -> None:
    """Add the clips_features tier to every split of a dataset's clips_media.

    Args:
      speech: sees each clip at a loudness of -16 LUFS.
      motion: motion codes by key, where they are known.
    """
    width = next(iter(motion.values())).shape[1] if motion else 0

    def convert(record: Mapping[str, Any]) -> dict[str, Any]:
        count = int(record["num_frames"])
        rows = speech(loudness.normalise(read_wave(record)), count)
        return {
            "key": record["key"],
            "speech": rows.astype(np.float16),
            "text": text([record["caption"]])[0].astype(np.float16),
            "motion": motion[record["key"]] if motion else np.zeros((count, 0)),
        }

    schema = records.features_schema(motion_width=width)
    target = records.tier_directory(directory, records.FEATURES)
    for split in list_splits(directory):
        with _read_media(directory, split, "features") as source:
            records.write_tier(target, split, schema, map(convert, source))
    records.write_null_text(directory, text([""])[0])


def add_latents(directory: str | Path, *, codec: LatentCodec, batch: int = 16) -> None:
    """Add the clips_latents tier of a codec to every split of clips_media.

    Raises InputError where a picture's sides are not multiples of the codec's stride.
    """
    target = records.tier_directory(directory, records.LATENTS, codec.name)
    # Bytes travel to the device, floats are made there.
    run = jax.jit(lambda video: codec.encode(video.astype(jnp.float32) / 127.5 - 1))
    for split in list_splits(directory):
        with _read_media(directory, split, f"latents {codec.name}") as source:
            examples = _encode_all(source, run, codec.spatial_stride, batch)
            records.write_tier(target, split, records.latents_schema(), examples)


def list_splits(directory: str | Path) -> list[str]:
    """Return the names of the splits that clips_media has."""
    tier = records.tier_directory(directory, records.MEDIA)
    return sorted(shards.open_tier(tier).info.splits)


def cover_cells(
    boxes: Float[np.ndarray, "frames 4"], *, height: int, width: int, stride: int
) -> Float[np.ndarray, "F H W"]:
    """Return the share of each latent cell that lies in the box of its frames.

    Latent 0 is frame 0 alone, latent i the mean of frames 4i-3 .. 4i; `height` and
    `width` are pixels, frames after the last whole latent are left out.
    """
    rows, columns = (np.arange(n // stride) * stride for n in (height, width))
    x0, y0, x1, y1 = boxes.T[..., None]
    across = np.clip(
        np.minimum(columns + stride, x1) - np.maximum(columns, x0), 0, None
    )
    down = np.clip(np.minimum(rows + stride, y1) - np.maximum(rows, y0), 0, None)
    share = down[:, :, None] * across[:, None, :] / stride**2
    later = share[1 : count_frames(count_latents(len(boxes)))]
    later = later.reshape(-1, FRAMES_PER_LATENT, *share.shape[1:]).mean(axis=1)
    return np.concatenate([share[:1], later])


@contextmanager
def _read_media(directory: str | Path, split: str, purpose: str):
    """Give the media records of a split in order, with a progress bar."""
    tier = records.tier_directory(directory, records.MEDIA)
    source = records.read_tier(tier, split)
    with tqdm(source, desc=f"{purpose} ({split})", unit="clip", disable=None) as bar:
        try:
            yield bar
        except records.CorruptRecord as error:
            raise InputError(f"{error}; prepare the dataset again") from error


def _encode_all(
    source, run: Callable, stride: int, batch: int
) -> Iterator[dict[str, Any]]:
    """Encode neighbours of one shape together, in the order of the source."""
    waiting: list[tuple[Mapping[str, Any], Array]] = []
    for record in source:
        video = _lengthen(decode.decode_bytes(record["video"]))
        if waiting and (waiting[0][1].shape != video.shape or len(waiting) == batch):
            yield from _encode_batch(waiting, run, stride, batch)
            waiting = []
        waiting.append((record, video))
    if waiting:
        yield from _encode_batch(waiting, run, stride, batch)


def _lengthen(
    frames: UInt8[np.ndarray, "frames Y X 3"],
) -> UInt8[np.ndarray, "longer Y X 3"]:
    """Repeat the last frame; codecs are causal, so the latents before are the same."""
    latents = -(-count_latents(len(frames)) // _LATENTS_STEP) * _LATENTS_STEP
    frames = frames[: count_frames(latents)]
    return np.pad(
        frames, ((0, count_frames(latents) - len(frames)), *[(0, 0)] * 3), "edge"
    )


def _encode_batch(waiting, run: Callable, stride: int, batch: int):
    """Encode up to `batch` videos of one shape, padded so that one program serves."""
    videos = [video for _, video in waiting]
    videos += [videos[-1]] * (batch - len(videos))
    latents = run(np.stack(videos))
    for (record, _), made in zip(waiting, np.asarray(latents), strict=False):
        mask = cover_cells(
            record["mouth_boxes"],
            height=int(record["height"]),
            width=int(record["width"]),
            stride=stride,
        )
        yield {
            "key": record["key"],
            "latents": made[: len(mask)].astype(np.float16),
            "mouth_mask": mask.astype(np.float16),
        }
