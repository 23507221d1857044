"""From our weights back to a safetensors file under the names of the original."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from avatar_jax import checkpoint
from avatar_jax.types import InputError
from avatar_jax.weights import conversion, files, leaves, networks, orbax_arrays
from avatar_jax.weights.table import Entry, to_foreign


def export(
    kind: networks.Kind, source: str | Path, out: str | Path, dtype: str | None = None
) -> int:
    """Write all tensors of a network; return how many.

    Converted weights get the names and dtypes that they came with, so that the tensors
    are the same bytes; others the original's names and the dtypes of our leaves.

    Args:
      source: a converted folder, a weights file, or the workdir of a run.
      out: the .safetensors file; complete or not there at all.

    Raises:
      InputError: the weights are another network's, or have parts that its checkpoints
        have no room for.
    """
    source, out = Path(source), Path(out)
    _check_out(out)
    tree, metadata = checkpoint.load_parent(source)
    flat = traverse_util.flatten_dict(tree, sep="/")
    manifest = conversion.read_manifest(source) or {}
    came = {line["name"]: line["dtype"] for line in manifest.get("tensors", ())}
    _check_kind(kind, manifest.get("kind", kind), source)
    config = networks.read_config(kind, metadata.get("config", {}))
    network = networks.describe(kind, config, came)
    grouped = _group(network.entries)
    _check_leaves(network, grouped, flat, source)
    dtypes = {
        entry.name: _choose_dtype(entry, came, flat[entry.path], dtype)
        for entry in network.entries
    }
    ordered = [entry for entries in grouped.values() for entry in entries]
    header = files.make_header((e.name, dtypes[e.name], e.shape) for e in ordered)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(header)
            for entry, array in _foreign_arrays(grouped, flat):
                array = np.ascontiguousarray(array, dtypes[entry.name])
                file.write(array.reshape(-1).view(np.uint8))
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return len(ordered)


def _foreign_arrays(
    grouped: Mapping[str, list[Entry]], flat: Mapping[str, Any]
) -> Iterator[tuple[Entry, np.ndarray]]:
    """Yield the tensors of leaf after leaf; of converted weights one is in memory."""
    for path, entries in grouped.items():
        leaf, stored = flat[path], None
        if isinstance(leaf, checkpoint.StoredLeaf):
            stored = orbax_arrays.open_array(leaf.folder, path)
        for entry in entries:
            rows = slice(None) if entry.layer is None else entry.layer
            array = leaf[rows] if stored is None else stored[rows].read().result()
            yield entry, to_foreign(np.asarray(array), entry)


def _group(entries: list[Entry]) -> dict[str, list[Entry]]:
    grouped: dict[str, list[Entry]] = {}
    for entry in entries:
        grouped.setdefault(entry.path, []).append(entry)
    return grouped


def _check_leaves(
    network: networks.Network,
    grouped: Mapping[str, list[Entry]],
    flat: Mapping[str, Any],
    source: Path,
) -> None:
    """Raise InputError unless each leaf has a place, and each tensor a leaf."""
    missing = [path for path in grouped if path not in flat]
    known = {*grouped, *network.made}
    left = [path for path in flat if path not in known]
    left += [p for p in network.made if p in flat and np.any(_read(flat[p]))]
    wrong = []
    if missing:
        wrong.append(f"{len(missing)} leaves missing, first {missing[0]!r}")
    if left:
        wrong.append(f"{len(left)} without a place there, first {left[0]!r}")
    for path, entries in grouped.items():
        shape = entries[0].our_shape
        if entries[0].layer is not None:
            shape = (len(entries), *shape)
        if path in flat and flat[path].shape != shape:
            wrong.append(f"{path!r} is {flat[path].shape}, expected {shape}")
            break
    if wrong:
        raise InputError(
            f"{source} does not fit a checkpoint of {network.kind}: "
            f"{'; '.join(wrong)}; give weights of just that network."
        )


def _check_kind(kind: str, came: str, source: Path) -> None:
    if kind != came:
        raise InputError(f"expected weights of {kind}, {source} holds {came}.")


def _check_out(out: Path) -> None:
    if out.suffix != ".safetensors" or out.is_dir():
        raise InputError(f"expected a .safetensors file to write to, came {out}.")
    out.parent.mkdir(parents=True, exist_ok=True)


def _choose_dtype(
    entry: Entry, came: Mapping[str, str], leaf: Any, wish: str | None
) -> np.dtype:
    if wish is not None:
        return leaves.choose_dtype(entry.path, [leaf.dtype], wish)
    return leaves.DTYPES[came[entry.name]] if came else np.dtype(leaf.dtype)


def _read(leaf: Any) -> np.ndarray:
    return leaf.read() if isinstance(leaf, checkpoint.StoredLeaf) else np.asarray(leaf)
