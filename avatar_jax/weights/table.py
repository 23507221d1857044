"""Which tensor of a foreign checkpoint is which of our parameters.

Each network's file beside this one returns a list of entries, one for each tensor of
the checkpoint; reading, exporting, checking names and shapes are then the same code.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from flax import traverse_util

from avatar_jax.types import InputError

Layout = Literal["same", "dense", "conv", "patch"]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint and its place in our tree.

    Attributes:
      name: in the checkpoint.
      shape: there.
      path: of our leaf, keys joined by "/".
      layout: "same": its values in their order, axes of length 1 apart; "dense": `out
        in` there, `in out` here; "conv": `out in *kernel` there, `*kernel in out` here;
        "patch": a convolution that cuts patches, `D C 1 p q` there, `(p q C) D` here.
      layer: where along the leading axis of our leaf, which holds all layers; None: it
        has no such axis.
      added: of "patch": channels that patches have here and not there. Their weights
        are zero, so that they change nothing until they are trained.
    """

    name: str
    shape: tuple[int, ...]
    path: str
    layout: Layout = "same"
    layer: int | None = None
    added: int = 0

    @property
    def our_shape(self) -> tuple[int, ...]:
        """Shape here, without the axis of layers."""
        match self.layout:
            case "same":
                return tuple(n for n in self.shape if n != 1) or (1,)
            case "dense":
                return self.shape[::-1]
            case "conv":
                out, into, *kernel = self.shape
                return (*kernel, into, out)
            case "patch":
                out, into, *kernel = self.shape
                return math.prod(kernel) * (into + self.added), out


def to_ours(array: np.ndarray, entry: Entry) -> np.ndarray:
    """Turn a tensor of the checkpoint into our layout."""
    match entry.layout:
        case "dense":
            array = array.T
        case "conv":
            array = np.moveaxis(array, (0, 1), (-1, -2))
        case "patch":
            array = np.moveaxis(array, (0, 1), (-1, -2))  # ... C D
            if entry.added:
                array = np.pad(array, [(0, 0)] * 3 + [(0, entry.added), (0, 0)])
    return array.reshape(entry.our_shape)


def to_foreign(array: np.ndarray, entry: Entry) -> np.ndarray:
    """Undo `to_ours`.

    Raises:
      InputError: channels that the checkpoint has no room for are in use.
    """
    match entry.layout:
        case "dense":
            array = array.T
        case "conv":
            array = np.moveaxis(array, (-1, -2), (0, 1))
        case "patch":
            out, into, *kernel = entry.shape
            array = array.reshape(*kernel, into + entry.added, out)
            if array[..., into:, :].any():
                raise InputError(
                    f"{entry.name!r} has room for {into} channels, but the network has "
                    f"learnt from {entry.added} more; give one that was not trained."
                )
            array = np.moveaxis(array[..., :into, :], (-1, -2), (0, 1))
    return array.reshape(entry.shape)


def assemble(entries: Sequence[Entry], tensors: Mapping[str, np.ndarray]) -> dict:
    """Build our tree of parameters from the tensors of a checkpoint.

    Tensors that no entry names are left aside.

    Raises:
      InputError: a tensor is missing or has another shape; names it.
    """
    found: dict[str, dict[int | None, np.ndarray]] = {}
    for entry in entries:
        if entry.name not in tensors:
            raise InputError(
                f"the checkpoint lacks {entry.name!r} {list(entry.shape)}; use one of "
                "this network."
            )
        array = np.asarray(tensors[entry.name])
        if array.shape != entry.shape:
            raise InputError(
                f"{entry.name!r} should have shape {list(entry.shape)}, came "
                f"{list(array.shape)}; use a checkpoint or a config of that size."
            )
        found.setdefault(entry.path, {})[entry.layer] = to_ours(array, entry)
    flat = {path: _stack(layers) for path, layers in found.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def _stack(layers: dict[int | None, np.ndarray]) -> np.ndarray:
    """Put layers in order along a leading axis, where the leaf has one."""
    if None in layers:
        return layers[None]
    return np.stack([layers[i] for i in sorted(layers)])
