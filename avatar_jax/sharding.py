"""Where arrays live: the mesh, the rules for parameters and for logical axes, as data.

Axes: `data` replicates parameters and splits the batch, `fsdp` splits both, `context`
splits tokens, `tensor` splits heads and feed-forward width. Any may be 1, so that one
program runs on one device and on a pod. Enter the mesh with `jax.set_mesh`; `with
mesh:` silently drops flax's constraints.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from avatar_jax.types import InputError

Tree = Any

AXES = ("data", "fsdp", "context", "tensor")
BATCH_AXES = ("data", "fsdp")

# Models name logical axes at block borders; what is not listed stays whole.
LOGICAL_RULES = (
    ("batch", BATCH_AXES),
    ("tokens", "context"),
    ("width", None),
    ("heads", "tensor"),
    ("mlp", "tensor"),
)

# The first pattern found in a leaf's path decides; specs align with the last axes, so
# that a rule serves a kernel (in, out) and a stack of kernels (layers, in, out) alike.
PARAMETER_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"/(o|outer|down)/kernel$", PartitionSpec("tensor", "fsdp")),
    (r"/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"/embedding$", PartitionSpec(None, "fsdp")),
    (r"", PartitionSpec()),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis; `data` = -1 takes all that the others leave."""

    data: int = -1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arrange the devices (default: all) by `config`.

    Raises:
      InputError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dataclasses.asdict(config)
    others = config.fsdp * config.context * config.tensor
    if config.data == -1 and others > 0:
        sizes["data"] = len(devices) // others
    if min(sizes.values()) < 1 or math.prod(sizes.values()) != len(devices):
        raise InputError(
            f"mesh {dataclasses.asdict(config)} does not fill {len(devices)} devices; "
            "choose axes whose product is that number, or data=-1 for the rest."
        )
    return jax.make_mesh(
        tuple(sizes[axis] for axis in AXES),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=devices,
    )


def parameter_shardings(
    tree: Tree, mesh: Mesh | AbstractMesh, *, over: tuple[str, ...] = ("fsdp",)
) -> Tree:
    """Give each leaf (array or ShapeDtypeStruct) its NamedSharding by PARAMETER_RULES.

    The tree may hold optimiser state: its paths end like those of the parameters. An
    axis that the devices do not divide stays whole.

    Args:
      over: mesh axes that together take the place of `fsdp` in the rules: where one
        sample's rows are spread, its parameters can be spread over the same devices.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, _find_spec(path, leaf.shape, mesh, over)
        ),
        tree,
    )


def _find_spec(
    path: tuple,
    shape: tuple[int, ...],
    mesh: Mesh | AbstractMesh,
    over: tuple[str, ...],
) -> PartitionSpec:
    name = "/" + jax.tree_util.keystr(path, simple=True, separator="/")
    spec = next(spec for rule, spec in PARAMETER_RULES if re.search(rule, name))
    if not spec or len(spec) > len(shape):
        return PartitionSpec()
    axes = (None,) * (len(shape) - len(spec)) + tuple(spec)
    named = (over if axis == "fsdp" else (axis,) if axis else () for axis in axes)
    return PartitionSpec(
        *(_divide(size, names, mesh) for names, size in zip(named, shape, strict=True))
    )


def _divide(
    size: int, names: tuple[str, ...], mesh: Mesh | AbstractMesh
) -> str | tuple[str, ...] | None:
    """Return the axes if their devices divide `size`; one of them by its name alone."""
    if not names or size % math.prod(mesh.shape[name] for name in names):
        return None
    return names if len(names) > 1 else names[0]


def check_batch(rows: int, mesh: Mesh, *, micro_batches: int = 1) -> None:
    """Check that a global batch of `rows` clips splits over devices and micro-batches.

    Raises:
      InputError: it does not.
    """
    devices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    parts = devices * micro_batches
    if rows % parts:
        raise InputError(
            f"a batch of {rows} clips is not divisible by {parts} = {devices} devices "
            f"of mesh axes 'data' x 'fsdp' x {micro_batches} micro-batches; use a "
            f"multiple of {parts}."
        )


def put_batch(batch: Tree, mesh: Mesh) -> Tree:
    """Form the global batch from this process's rows (host arrays, B first)."""
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)),
        batch,
    )
