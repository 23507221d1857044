"""From a published checkpoint to a folder of ours, in the memory of a few tensors.

The folder holds `params` (see `orbax_arrays`), `manifest.json` with name, shape, dtype,
sum and sha256 of each tensor that was read, and `metadata.json` with the config, which
is written last: a folder without it is unfinished. `checkpoint` reads it.
"""

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from avatar_jax import checkpoint, sharding
from avatar_jax.types import InputError
from avatar_jax.weights import files, leaves, networks, orbax_arrays
from avatar_jax.weights.torch_archive import StoredTensor

MANIFEST_NAME = "manifest.json"
_SPARE_MEMORY = 256 << 20  # bytes, for what is not a block
_SUM_ROWS = 1 << 22  # values that are summed at once


@dataclasses.dataclass(frozen=True)
class Options:
    """How to write.

    Attributes:
      mesh: that is going to read the folder; files are cut to its shards.
      dtype: of leaves that may be less than float32; None: the checkpoint's.
      wishes: of a transformer, what its shapes do not show.
    """

    mesh: sharding.MeshConfig = sharding.MeshConfig()
    dtype: str | None = None
    wishes: networks.Wishes = networks.Wishes()


def convert(
    kind: networks.Kind, source: str | Path, out: str | Path, options: Options
) -> dict[str, Any]:
    """Convert a checkpoint; return what was read and written, as plain values.

    Raises:
      InputError: the checkpoint is not one of that network or is damaged; `out` is in
        use; disk or memory do not suffice. Nothing is left in `out` then.
    """
    out = Path(out)
    opened = files.open_checkpoint(source)
    tensors = opened.tensors
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    network = networks.identify(kind, shapes, opened.fields, options.wishes)
    leaves.check_tensors(network, tensors, source)
    listed = leaves.list_leaves(network, tensors, options.dtype)
    mesh = _abstract_mesh(options.mesh)
    _check_out(out)
    check_room(out, listed)
    if jax.process_count() > 1:  # none may find what another has begun
        multihost_utils.sync_global_devices("checked")
    out.mkdir(parents=True, exist_ok=True)
    try:
        orbax_arrays.write(out / checkpoint.PARAMS_NAME, listed, mesh)
        if jax.process_index() == 0:
            _write_records(out, network, tensors, str(source))
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return {
        "config": network.config,
        "tensors": len(network.entries),
        "unused": len(tensors) - len(network.entries),
        "parameters": sum(math.prod(leaf.shape) for leaf in listed),
        "bytes": sum(leaf.nbytes for leaf in listed),
    }


def describe_tensor(name: str, tensor: StoredTensor) -> dict[str, Any]:
    """Return a tensor's line of the manifest; sha256 is of its row-major bytes."""
    array = np.ascontiguousarray(tensor.read()).reshape(-1)
    total = 0.0
    for start in range(0, array.size, _SUM_ROWS):
        part = array[start : start + _SUM_ROWS]
        total += float(part.astype(np.float32).sum(dtype=np.float64))
    return {
        "name": name,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype.name,
        "sum": total,
        "sha256": hashlib.sha256(array.view(np.uint8)).hexdigest(),
    }


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """Read the manifest of a converted folder; None where there is none."""
    path = Path(folder) / MANIFEST_NAME
    return json.loads(path.read_text()) if path.is_file() else None


def check_room(out: Path, listed: Sequence[leaves.Leaf]) -> None:
    """Check that disk and memory suffice.

    Raises:
      InputError: says how much is needed and how much there is.
    """
    parent = next(p for p in (out, *out.resolve().parents) if p.exists())
    needed, free = sum(leaf.nbytes for leaf in listed), shutil.disk_usage(parent).free
    if needed > free:
        raise InputError(
            f"{out} needs {_format(needed)} of disk, {_format(free)} are free in "
            f"{parent}; free some, choose another place, or --dtype bfloat16."
        )
    largest = max(
        leaf.nbytes // leaf.shape[0] * min(leaf.shape[0], _rows(leaf))
        for leaf in listed
    )
    needed, free = 3 * largest + _SPARE_MEMORY, available_memory()
    if free is not None and needed > free:
        raise InputError(
            f"this conversion needs {_format(needed)} of memory, {_format(free)} are "
            "free; end other programs first."
        )


def available_memory() -> int | None:
    """Return the bytes of memory that are free; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable")]
    return int(found[0]) * 1024 if found else None


def _rows(leaf: leaves.Leaf) -> int:
    """Count the rows of a block, where no mesh cuts it smaller."""
    return max(1, orbax_arrays.CHUNK_BYTES * leaf.shape[0] // max(leaf.nbytes, 1))


def _abstract_mesh(config: sharding.MeshConfig) -> jax.sharding.AbstractMesh:
    """Return a mesh without devices: those that convert are not those that read."""
    sizes = dataclasses.asdict(config)
    if sizes["data"] == -1:
        sizes["data"] = 1  # parameters are whole along it
    if min(sizes.values()) < 1:
        raise InputError(f"mesh {sizes} has an axis below 1; use 1 or more.")
    return jax.sharding.AbstractMesh(
        tuple(sizes[axis] for axis in sharding.AXES), sharding.AXES
    )


def _check_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"expected a new or empty folder to write to, {out} is in use; give "
            "another, or remove it."
        )


def _write_records(
    out: Path, network: networks.Network, tensors: files.Tensors, source: str
) -> None:
    manifest = {
        "kind": network.kind,
        "source": source,
        "tensors": [describe_tensor(e.name, tensors[e.name]) for e in network.entries],
        "made": sorted(network.made),
        "unused": sorted(set(tensors) - {entry.name for entry in network.entries}),
    }
    metadata = {"config": dataclasses.asdict(network.config)}
    for name, record in (
        (MANIFEST_NAME, manifest),
        (checkpoint.METADATA_NAME, metadata),
    ):
        (out / name).write_text(json.dumps(record, indent=1) + "\n")


def _format(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
