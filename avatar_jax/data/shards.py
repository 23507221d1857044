"""Shards on disk: one split of one tier as ArrayRecord files with TFDS metadata.

A split appears only when it is complete: shards are written under temporary names, then
renamed, and the metadata comes last. A tier's major version is `SCHEMA_VERSION`.
"""

import json
import os
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from avatar_jax.types import InputError

SCHEMA_VERSION = 2
SHARD_BYTES = 256 * 2**20


class TierWriter:
    """Write one split of one tier, clip by clip; nothing remains of a failed one."""

    def __init__(
        self,
        directory: str | pathlib.Path,
        split: str,
        schema: tfds.features.FeaturesDict,
        *,
        shard_bytes: int = SHARD_BYTES,
    ):
        self._directory, self._split, self._schema = (
            pathlib.Path(directory),
            split,
            schema,
        )
        self._shard_bytes = shard_bytes
        self._shards: list[pathlib.Path] = []
        self._lengths: list[int] = []
        self._bytes = 0  # in the open shard
        self._writer = None
        self._sizes: list[tuple[int, ...]] = []
        self._people: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self._sizes)

    def __enter__(self) -> "TierWriter":
        self._directory.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._writer is not None:
            self._writer.close()
        if kind is None:
            self._publish()
        for shard in self._shards:
            shard.unlink(missing_ok=True)

    def write(self, example: Mapping[str, Any]) -> None:
        """Append one clip. A field without values that the schema lacks is left out."""
        extra = {k for k in set(example) - set(self._schema) if np.size(example[k])}
        missing = set(self._schema) - set(example)
        if extra or missing:
            raise InputError(
                f"a record of {self._directory.name} expects "
                f"{', '.join(sorted(self._schema))}; missing: {sorted(missing)}, "
                f"unknown: {sorted(extra)}."
            )
        kept = {name: example[name] for name in self._schema}
        record = self._schema.serialize_example(kept)
        if self._writer is None or self._bytes + len(record) > self._shard_bytes:
            self._open_shard()
        self._writer.write(record)
        self._bytes += len(record)
        self._lengths[-1] += 1
        self._sizes.append(clip_size(kept))
        if "person" in kept:
            self._people.append((kept["person"], kept["scene"]))

    def _open_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
        path = self._directory / f".{self._split}.{uuid.uuid4().hex}.tmp"
        self._shards.append(path)
        self._lengths.append(0)
        self._bytes = 0
        self._writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")

    def _publish(self) -> None:
        """Rename the shards; the split is absent until its metadata says otherwise."""
        if not self._shards:
            raise InputError(
                f"nothing to write to {self._directory} ({self._split}): no clip came."
            )
        others = _other_splits(self._directory, self._split, self._schema)
        if (self._directory / "dataset_info.json").exists():
            _write_metadata(self._directory, self._schema, others)
        for old in self._directory.glob(_shard_name(self._directory, self._split, "*")):
            old.unlink()
        size = sum(shard.stat().st_size for shard in self._shards)
        for i, shard in enumerate(self._shards):
            number = f"{i:05d}-of-{len(self._shards):05d}"
            name = _shard_name(self._directory, self._split, number)
            os.replace(shard, self._directory / name)
        save_array(sizes_path(self._directory, self._split), np.array(self._sizes))
        if self._people:
            path = people_path(self._directory, self._split)
            save_array(path, np.array(self._people))
        split = tfds.core.SplitInfo(
            name=self._split,
            shard_lengths=self._lengths,
            num_bytes=size,
            filename_template=_template(self._directory),
        )
        _write_metadata(self._directory, self._schema, [*others, split])


def clip_size(example: Mapping[str, Any]) -> tuple[int, ...]:
    """Return what a loader must know before it reads: the size of the main array."""
    for name in ("latents", "speech"):
        if name in example:
            return example[name].shape
    return tuple(int(example[name]) for name in ("num_frames", "height", "width"))


def open_tier(directory: pathlib.Path) -> tfds.core.DatasetBuilder:
    """Read a tier's metadata and check its version."""
    info = directory / "dataset_info.json"
    if not info.exists():
        raise InputError(
            f"{directory} holds no records (no dataset_info.json): "
            "run `python -m avatar_jax.prepare`."
        )
    version = json.loads(info.read_text())["version"]
    if int(version.split(".")[0]) != SCHEMA_VERSION:
        raise InputError(
            f"{directory} has schema version {version}, this code reads "
            f"{SCHEMA_VERSION}.0.0: remove it and run `python -m avatar_jax.prepare`."
        )
    return tfds.builder_from_directory(directory)


def _other_splits(
    directory: pathlib.Path, split: str, schema: tfds.features.FeaturesDict
) -> list[tfds.core.SplitInfo]:
    """Return the finished splits beside this one, which must have the same fields."""
    if not (directory / "dataset_info.json").exists():
        return []
    info = open_tier(directory).info
    others = [other for name, other in info.splits.items() if name != split]
    if others and info.features.to_json() != schema.to_json():
        raise InputError(
            f"{directory} has splits {[s.name for s in others]} with other fields; "
            "write all splits with the same ones."
        )
    return others


def _write_metadata(
    directory: pathlib.Path,
    schema: tfds.features.FeaturesDict,
    splits: list[tfds.core.SplitInfo],
) -> None:
    """Write TFDS metadata in one rename, so that a reader sees old or new."""
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=_tier_name(directory),
        version=tfds.core.Version(f"{SCHEMA_VERSION}.0.0"),
        data_dir=str(directory),
        module_name="",
    )
    info = tfds.core.DatasetInfo(builder=identity, features=schema)
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    info.set_splits(tfds.core.splits.SplitDict(splits))
    temporary = directory / f".metadata.{uuid.uuid4().hex}.tmp"
    temporary.mkdir()
    info.write_to_directory(temporary)
    for name in ("features.json", "dataset_info.json"):
        os.replace(temporary / name, directory / name)
    temporary.rmdir()


def _template(directory: pathlib.Path) -> tfds.core.ShardedFileTemplate:
    return tfds.core.ShardedFileTemplate(
        data_dir=directory,
        dataset_name=_tier_name(directory),
        filetype_suffix="array_record",
    )


def _tier_name(directory: pathlib.Path) -> str:
    """Return `clips_...`, which for latents is the folder above the codec's."""
    names = (directory.name, directory.parent.name)
    return next((name for name in names if name.startswith("clips_")), names[0])


def _shard_name(directory: pathlib.Path, split: str, number: str) -> str:
    return f"{_tier_name(directory)}-{split}.array_record-{number}"


def sizes_path(directory: pathlib.Path, split: str) -> pathlib.Path:
    """Return where `clip_size` of every record of a split is kept."""
    return directory / f"{split}.sizes.npy"


def people_path(directory: pathlib.Path, split: str) -> pathlib.Path:
    """Return where the person and the scene of every record of a split are kept."""
    return directory / f"{split}.people.npy"


def save_array(path: pathlib.Path, array: np.ndarray) -> None:
    """Write an .npy file in one rename."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with temporary.open("wb") as file:
        np.save(file, array)
    os.replace(temporary, path)
