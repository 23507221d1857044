"""Tensors of foreign files, found by their headers and read when they are asked for.

Safetensors in one file, in shards with an index, or in a folder; and archives that
torch.save writes (see `torch_archive`). A tensor is mapped into memory for as long as
its array lives, so that a part of it costs the part.
"""

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from avatar_jax.types import InputError
from avatar_jax.weights import torch_archive
from avatar_jax.weights.torch_archive import StoredTensor

Tensors = dict[str, StoredTensor]

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
_INDEX_SUFFIX = ".safetensors.index.json"
_MAX_HEADER = 100_000_000  # bytes; the format's own limit
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint, and the config.json beside them, if any."""

    tensors: Tensors
    fields: dict[str, Any] | None = None


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read the headers of a checkpoint: a file, an index of shards, or a folder.

    Of a folder, the index counts; else all .safetensors files together; else the one
    torch archive.

    Raises:
      InputError: nothing of that kind is there, or it is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"expected a checkpoint, {path} does not exist.")
    folder = path if path.is_dir() else path.parent
    return Checkpoint(_find(path), _read_fields(folder / "config.json"))


def read_safetensors(path: Path) -> Tensors:
    """List the tensors of one safetensors file.

    Raises:
      InputError: it is another format, damaged or truncated.
    """
    header, start = _read_header(path)
    size = path.stat().st_size - start
    tensors, end = {}, 0
    try:
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
            first, last = entry["data_offsets"]
            if last - first != math.prod(shape) * dtype.itemsize or first < 0:
                raise InputError(
                    f"{path} is damaged: {name!r} of shape {list(shape)} has "
                    f"{last - first} bytes; fetch the file again."
                )
            tensors[name] = StoredTensor(
                path, start + first, shape, _strides(shape), dtype
            )
            end = max(end, last)
    except KeyError as error:
        raise InputError(
            f"{path} holds a tensor without a dtype that is known here ({error}); use "
            "a checkpoint of float32, float16 or bfloat16."
        ) from None
    except (TypeError, AttributeError):
        raise _not_safetensors(path) from None
    if size != end:
        kind = "is truncated" if size < end else "has bytes behind its end"
        raise InputError(
            f"{path} {kind}: its header tells of {end} bytes of tensors, {size} are "
            "there; fetch the file again."
        )
    return tensors


def make_header(listed: Iterable[tuple[str, np.dtype, tuple[int, ...]]]) -> bytes:
    """Return the head of a safetensors file whose tensors follow in that order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape in listed:
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _find(path: Path) -> Tensors:
    if path.is_file():
        return _read_file(path)
    indices = sorted(path.glob(f"*{_INDEX_SUFFIX}"))
    shards = sorted(path.glob("*.safetensors"))
    archives = sorted(p for p in path.iterdir() if p.suffix in TORCH_SUFFIXES)
    if len(indices) == 1:
        return _read_shards(indices[0])
    if shards and not indices:
        return _join(shards)
    if len(archives) == 1 and not indices:
        return torch_archive.read_archive(archives[0])
    raise InputError(
        f"expected one checkpoint in {path}, came {len(indices)} indices, "
        f"{len(shards)} .safetensors and {len(archives)} .pth files; name the file."
    )


def _read_file(path: Path) -> Tensors:
    if path.name.endswith(_INDEX_SUFFIX):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return torch_archive.read_archive(path)
    raise InputError(
        f"expected .safetensors, {_INDEX_SUFFIX} or {', '.join(TORCH_SUFFIXES)}, came "
        f"{path}; give such a file, or the folder of one."
    )


def _read_shards(index: Path) -> Tensors:
    try:
        names = dict(json.loads(index.read_text())["weight_map"])
        shards = sorted(set(names.values()))
        safe = all(Path(shard).name == shard for shard in shards)
    except (ValueError, KeyError, TypeError):
        safe, shards, names = False, [], {}
    if not safe:
        raise InputError(
            f"expected an index of shards beside it, {index} is none; fetch it again."
        )
    paths = [index.parent / shard for shard in shards]
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        raise InputError(
            f"{index} names {len(paths)} shards, {len(absent)} of them are missing, "
            f"first {absent[0]}; fetch them too."
        )
    tensors = _join(paths)
    lost = [name for name in names if name not in tensors]
    if lost:
        raise InputError(
            f"the shards of {index} lack {len(lost)} of its tensors, first "
            f"{lost[0]!r}; fetch them again."
        )
    return tensors


def _join(paths: Iterable[Path]) -> Tensors:
    tensors: Tensors = {}
    for path in paths:
        new = read_safetensors(path)
        twice = next((name for name in new if name in tensors), None)
        if twice:
            raise InputError(
                f"{path} and {tensors[twice].path} both hold {twice!r}; name the one "
                "file that is meant."
            )
        tensors |= new
    return tensors


def _read_header(path: Path) -> tuple[dict, int]:
    """Return the header of a safetensors file and where its tensors start."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER, path.stat().st_size):
            raise _not_safetensors(path)
        text = file.read(length)
    try:
        header = json.loads(text)
    except ValueError:
        raise _not_safetensors(path) from None
    if len(text) != length or not isinstance(header, dict):
        raise _not_safetensors(path)
    return header, 8 + length


def _not_safetensors(path: Path) -> InputError:
    return InputError(
        f"expected a safetensors file, {path} is none, or cut off within its header; "
        "fetch it again."
    )


def _read_fields(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text())
    except ValueError:
        raise InputError(f"{path} is not JSON; fetch it again.") from None
    return fields if isinstance(fields, dict) else None


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return row-major strides in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
