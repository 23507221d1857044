"""From decoded clips to the tiers of media and features, the same for every source.

`clips_media` is written first; the other tiers are made from what is stored there, so
that what a network sees is what a reader of the records sees. See also `latents.py`.
"""

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from avatar_jax.data import records, references, shards
from avatar_jax.media import decode, encode, loudness
from avatar_jax.models.speech import SpeechEncoder
from avatar_jax.models.text import TextEncoder
from avatar_jax.types import SAMPLES_PER_FRAME, InputError

_FULL_SCALE = 32_767  # of PCM16
FACES_PER_CLIP = 8  # frames whose embeddings are averaged
_FACES_TOGETHER = 32  # clips embedded in one call

# Frames of several clips, `B Y X 3` uint8 -> unit face embeddings `B I`.
FaceEncoder = Callable[[UInt8[np.ndarray, "B Y X 3"]], Float[np.ndarray, "B I"]]
# Frames of a clip -> motion codes, in the units of the known ones.
MotionReader = Callable[
    [UInt8[np.ndarray, "frames Y X 3"]], Float[np.ndarray, "frames Dm"]
]


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
    motion_reader: MotionReader | None = None,
    identity: tuple[FaceEncoder, int] | None = None,
) -> None:
    """Add the clips_features tier to every split of a dataset's clips_media.

    Args:
      speech: sees each clip at a loudness of -16 LUFS.
      motion: motion codes by key, where they are known.
      motion_reader: of a reference's codes, as at sampling; not used without `motion`.
      identity: encoder of face embeddings, and its width.
    """
    width = next(iter(motion.values())).shape[1] if motion else 0
    reader = motion_reader if motion else None
    schema = records.features_schema(
        motion_width=width,
        motion_read=reader is not None,
        identity_width=identity[1] if identity else 0,
    )

    def convert(record: Mapping[str, Any]) -> dict[str, Any]:
        count = int(record["num_frames"])
        rows = speech(loudness.normalise(read_wave(record)), count)
        return {
            **{name: record[name] for name in ("key", "person", "scene")},
            "speech": rows.astype(np.float16),
            "text": text([record["caption"]])[0].astype(np.float16),
            "motion": motion[record["key"]] if motion else np.zeros((count, 0)),
        }

    target = records.tier_directory(directory, records.FEATURES)
    for split in list_splits(directory):
        with read_media(directory, split, "features") as source:
            encoder = identity[0] if identity else None
            examples = _convert_all(source, convert, encoder, reader)
            records.write_tier(target, split, schema, examples)
    records.write_null_text(directory, text([""])[0])
    if motion:
        rows = np.concatenate(list(motion.values()))
        scale = np.stack([rows.mean(axis=0), rows.std(axis=0) + 1e-6])
        records.write_motion_scale(directory, scale)


def _convert_all(
    source, convert: Callable, encoder: FaceEncoder | None, reader: MotionReader | None
) -> Iterator[dict[str, Any]]:
    """Convert records, and add what networks see in their frames, decoded once."""
    for several in _batched(source, _FACES_TOGETHER):
        examples, faces = [], []
        for record in several:
            example, frames = convert(record), decode.decode_bytes(record["video"])
            if reader is not None:
                example["motion_read"] = reader(frames).astype(np.float32)
            examples.append(example)
            faces.append(_spread(frames))
        if encoder is not None:
            rows = np.split(encoder(np.concatenate(faces)), len(faces))
            for example, own in zip(examples, rows, strict=True):
                example["identity"] = references.mean_direction(own)
        yield from examples


def _spread(
    frames: UInt8[np.ndarray, "frames Y X 3"],
) -> UInt8[np.ndarray, "some Y X 3"]:
    index = np.linspace(0, len(frames) - 1, FACES_PER_CLIP).round().astype(int)
    return frames[index]


def _batched(items: Iterable, count: int) -> Iterator[list]:
    iterator = iter(items)
    while several := list(itertools.islice(iterator, count)):
        yield several


def list_splits(directory: str | Path) -> list[str]:
    """Return the names of the splits that clips_media has."""
    tier = records.tier_directory(directory, records.MEDIA)
    return sorted(shards.open_tier(tier).info.splits)


@contextmanager
def read_media(directory: str | Path, split: str, purpose: str):
    """Give the media records of a split in order, with a progress bar."""
    tier = records.tier_directory(directory, records.MEDIA)
    source = records.read_tier(tier, split)
    with tqdm(source, desc=f"{purpose} ({split})", unit="clip", disable=None) as bar:
        try:
            yield bar
        except records.CorruptRecord as error:
            raise InputError(f"{error}; prepare the dataset again") from error
