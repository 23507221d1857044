"""Weights in one file, and whole training states in Orbax checkpoints.

A weights file is safetensors: keys joined by "/", metadata with the resolved model
config as JSON. A checkpoint is a folder per step with the items `state` (every leaf of
a train state, sharded) and `data` (the Grain iterator). Orbax writes a step under a
temporary name and renames it when complete, so a kill never costs the step before.
"""

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


def load_weights(path: str | Path) -> tuple[Tree, dict]:
    """Read a weights file: (nested dictionary of NumPy arrays, metadata).

    Raises:
      InputError: no such file, not safetensors, or one without our metadata.
    """
    path = Path(path)
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

    A workdir that was not trained to its end, or still trains, gives the averaged
    weights of its newest checkpoint, player `model`, and no metadata. Nothing is
    written there.
    """
    path = Path(path)
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
        leaf = np.asarray(leaf, current[key].dtype)
        if isinstance(current[key], jax.Array):
            leaf = jax.device_put(leaf, current[key].sharding)
        current[key] = leaf
    return traverse_util.unflatten_dict(current, sep="/")


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
