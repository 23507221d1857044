"""Weights in one file, and whole training states in Orbax checkpoints.

A weights file is safetensors: keys joined by "/", metadata with the resolved model
config as JSON. A checkpoint is a folder per step with the items `state` (every leaf of
a train state, sharded) and `data` (the Grain iterator). Orbax writes a step under a
temporary name and renames it when complete, so a kill never costs the step before.

Converted weights, which may be larger than memory, are a folder: `params`, in Orbax's
layout of one array per leaf, and `metadata.json`, written last. Their leaves are read
one by one, each device its own part.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import grain
import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import safetensors
from flax import traverse_util
from safetensors import numpy as safetensors_numpy

from avatar_jax.types import InputError

Tree = Any

WEIGHTS_NAME = "weights.safetensors"
CHECKPOINTS_NAME = "checkpoints"
PARAMS_NAME = "params"
METADATA_NAME = "metadata.json"

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_AS_NUMPY = ocp.RestoreArgs(restore_type=np.ndarray)


def save_weights(
    path: str | Path, params: Tree, metadata: dict, *, dtype: Any = None
) -> None:
    """Write a tree of arrays as one safetensors file, complete or not at all.

    Args:
      metadata: plain values, stored as JSON; `config` holds the resolved model config.
      dtype: float16 or bfloat16 halves the file; None keeps what each leaf has.
    """
    path = Path(path)
    flat = traverse_util.flatten_dict(params, sep="/")
    arrays = {
        key: np.ascontiguousarray(np.asarray(leaf, dtype=dtype))
        for key, leaf in flat.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    safetensors_numpy.save_file(arrays, temporary, {"metadata": json.dumps(metadata)})
    temporary.chmod(0o644)  # safetensors makes it private
    temporary.replace(path)


@dataclasses.dataclass(frozen=True)
class StoredLeaf:
    """A leaf of converted weights that `read` reads."""

    folder: Path
    key: str  # in the tree, joined by "/"
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(
        self, sharding: jax.sharding.Sharding | None = None, dtype: Any = None
    ) -> Any:
        """Read it onto devices, or as a NumPy array where `sharding` is None."""
        if sharding is None:
            wanted = dataclasses.replace(_AS_NUMPY, dtype=dtype)
        else:
            wanted = ocp.ArrayRestoreArgs(sharding=sharding, dtype=dtype)
        item, wanted = (
            traverse_util.unflatten_dict({self.key: leaf}, sep="/")
            for leaf in (jax.ShapeDtypeStruct(self.shape, self.dtype), wanted)
        )
        args = ocp.args.PyTreeRestore(item, restore_args=wanted, partial_restore=True)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            (leaf,) = jax.tree.leaves(checkpointer.restore(self.folder, args))
        return leaf


def is_converted(path: str | Path) -> bool:
    """Tell whether a path is a folder of converted weights."""
    return (Path(path) / METADATA_NAME).is_file()


def open_converted(path: str | Path) -> tuple[Tree, dict]:
    """Return the leaves of converted weights, none of them read, and the metadata."""
    path = Path(path).resolve()
    metadata = json.loads((path / METADATA_NAME).read_text())
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(path / PARAMS_NAME).item_metadata.tree
    leaves = {
        key: StoredLeaf(path / PARAMS_NAME, key, tuple(leaf.shape), leaf.dtype)
        for key, leaf in traverse_util.flatten_dict(tree, sep="/").items()
    }
    return traverse_util.unflatten_dict(leaves, sep="/"), metadata


def load_weights(path: str | Path) -> tuple[Tree, dict]:
    """Read weights: (nested dictionary of NumPy arrays, metadata).

    Args:
      path: a weights file, or a folder of converted weights.

    Raises:
      InputError: no such file, not safetensors, or one without our metadata.
    """
    path = Path(path)
    if is_converted(path):
        stored, metadata = open_converted(path)
        args = ocp.args.PyTreeRestore(
            restore_args=jax.tree.map(lambda _: _AS_NUMPY, stored)
        )
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(path.resolve() / PARAMS_NAME, args), metadata
    if not path.is_file():
        raise InputError(f"expected a weights file, {path} does not exist.")
    content = path.read_bytes()
    try:
        entries = safetensors.deserialize(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    except safetensors.SafetensorError as error:
        raise InputError(
            f"expected a safetensors file, {path} is none ({error}); give the "
            f"{WEIGHTS_NAME} that a training run wrote."
        ) from None
    if "metadata" not in header:
        raise InputError(
            f"{path} has no avatar-jax metadata (model config); give the "
            f"{WEIGHTS_NAME} that a training run wrote."
        )
    flat = {
        name: np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(
            entry["shape"]
        )
        for name, entry in entries
    }
    return traverse_util.unflatten_dict(flat, sep="/"), json.loads(header["metadata"])


def load_parent(path: str | Path) -> tuple[Tree, dict]:
    """Read the weights to start from: a weights file, or the workdir of another run.

    Converted weights come as leaves that `overlay` reads (see `open_converted`).

    A workdir that was not trained to its end, or still trains, gives the averaged
    weights of its newest checkpoint, player `model`, and no metadata. Nothing is
    written there.
    """
    path = Path(path)
    if is_converted(path):
        return open_converted(path)
    if not path.is_dir():
        return load_weights(path)
    if (path / WEIGHTS_NAME).is_file():
        return load_weights(path / WEIGHTS_NAME)
    folder = path.resolve() / CHECKPOINTS_NAME
    steps = [int(p.name) for p in folder.glob("*") if p.name.isdigit()]
    if not steps:
        raise InputError(
            f"{path} holds neither {WEIGHTS_NAME} nor a checkpoint; give a weights "
            "file or the workdir of a run that has saved once."
        )
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(folder, options=options) as manager:
        items = ocp.args.Composite(state=ocp.args.StandardRestore())
        state = manager.restore(manager.latest_step(), args=items)["state"]
    return jax.tree.map(np.asarray, state["ema"]["model"]), {}


def overlay(params: Tree, loaded: Tree) -> Tree:
    """Replace the leaves of `params` that `loaded` has; new modules keep their init.

    Each leaf keeps the dtype and the sharding of the one that it replaces.

    Raises:
      InputError: a loaded leaf is unknown or has another shape; names the first.
    """
    current = traverse_util.flatten_dict(params, sep="/")
    for key, leaf in traverse_util.flatten_dict(loaded, sep="/").items():
        if key not in current:
            raise InputError(
                f"the weights hold {key!r}, which this model does not have; use "
                "weights of the same model config or of a smaller one."
            )
        if current[key].shape != leaf.shape:
            raise InputError(
                f"{key!r} should have shape {current[key].shape}, the weights have "
                f"{leaf.shape}; use weights of the same size."
            )
        current[key] = _read_like(leaf, current[key])
    return traverse_util.unflatten_dict(current, sep="/")


def _read_like(leaf: Any, like: Any) -> Any:
    """Give a leaf dtype and sharding of another."""
    sharding = like.sharding if isinstance(like, jax.Array) else None
    if isinstance(leaf, StoredLeaf):
        return leaf.read(sharding, like.dtype)
    leaf = np.asarray(leaf, like.dtype)
    return leaf if sharding is None else jax.device_put(leaf, sharding)


def make_manager(workdir: str | Path, *, keep: int | None = 2) -> ocp.CheckpointManager:
    """Open the checkpoints of a workdir; the newest `keep` stay (None: all)."""
    return ocp.CheckpointManager(
        Path(workdir).resolve() / CHECKPOINTS_NAME,
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True
        ),
    )


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: Tree,
    iterator: grain.DatasetIterator,
) -> None:
    """Start writing a checkpoint; `manager.wait_until_finished` awaits it."""
    manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=grain.checkpoint.CheckpointSave(iterator),
        ),
    )


def restore(
    manager: ocp.CheckpointManager, state: Tree, iterator: grain.DatasetIterator
) -> Tree:
    """Return the newest saved state and set `iterator` to the batch that follows it.

    Args:
      state: the tree to fill; its leaves give shape, dtype and sharding, so a state
        saved on one mesh is resharded to another.
    """
    restored = manager.restore(
        manager.latest_step(),
        args=ocp.args.Composite(
            state=ocp.args.StandardRestore(state),
            data=grain.checkpoint.CheckpointRestore(iterator),
        ),
    )
    return restored["state"]
