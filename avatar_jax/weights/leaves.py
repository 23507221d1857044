"""Our leaves as they come out of a checkpoint's tensors, made block by block.

A leaf that holds all layers is as large as a twentieth of the network; a block of it is
a range of its leading axis, and the only thing that is ever in memory.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import ml_dtypes
import numpy as np

from avatar_jax.types import InputError
from avatar_jax.weights import files
from avatar_jax.weights.networks import Network
from avatar_jax.weights.table import Entry, to_ours
from avatar_jax.weights.torch_archive import StoredTensor

FLOAT32 = np.dtype(np.float32)
DTYPES = {
    "float32": FLOAT32,
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# Leaves that stay float32 at any dtype: small, and read in float32 by the models. (The
# sums of a modulation, or a norm's scale near 1, lose what training has moved in them.)
_FINE = re.compile(
    r"(^|/)(patch|(reference_)?time|(head_)?modulation|\w*norm\w*|\w+_(role|slots)"
    r"|null)(/|$)"
)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf of our tree and where its values are.

    Attributes:
      path: in our tree, keys joined by "/".
      sources: of each layer in order, or the one; none: the leaf is zero.
      is_stacked: whether the leading axis holds layers.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    sources: tuple[tuple[Entry, StoredTensor], ...] = ()
    is_stacked: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of all its values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, start: int, stop: int) -> np.ndarray:
        """Make the block of that range of the leading axis."""
        block = np.empty((stop - start, *self.shape[1:]), self.dtype)
        if not self.sources:
            block[:] = 0
        elif self.is_stacked:
            for row, (entry, tensor) in zip(
                block, self.sources[start:stop], strict=True
            ):
                _copy(to_ours(tensor.read(), entry), row)
        else:
            entry, tensor = self.sources[0]
            _copy(to_ours(tensor.read(), entry)[start:stop], block)
        return block


def check_tensors(network: Network, tensors: files.Tensors, path: object) -> None:
    """Check that a checkpoint holds all tensors of a network, and no others.

    Raises:
      InputError: names the first that is missing, unexpected, mis-shaped or of a dtype
        that is not of weights, with their numbers.
    """
    entries = {entry.name: entry for entry in network.entries}
    missing = [name for name in entries if name not in tensors]
    unexpected = [
        name for name in tensors if name not in entries and not network.is_unused(name)
    ]
    both = [(e, tensors[n]) for n, e in entries.items() if n in tensors]
    shaped = [(e, tensor) for e, tensor in both if e.shape != tensor.shape]
    kinds = [(e, t) for e, t in both if t.dtype not in DTYPES.values()]
    wrong = []
    if missing:
        wrong.append(f"{len(missing)} missing, first {missing[0]!r}")
    if unexpected:
        wrong.append(f"{len(unexpected)} unexpected, first {unexpected[0]!r}")
    if shaped:
        entry, tensor = shaped[0]
        wrong.append(
            f"{len(shaped)} mis-shaped, first {entry.name!r}: {list(entry.shape)} "
            f"expected, {list(tensor.shape)} came"
        )
    if kinds:
        entry, tensor = kinds[0]
        wrong.append(
            f"{len(kinds)} of a dtype other than {', '.join(DTYPES)}, first "
            f"{entry.name!r}: {tensor.dtype}"
        )
    if wrong:
        raise InputError(
            f"{path} does not hold the {len(entries)} tensors of {network.kind}: "
            f"{'; '.join(wrong)}; give a whole checkpoint of that network."
        )


def list_leaves(
    network: Network, tensors: files.Tensors, dtype: str | None = None
) -> list[Leaf]:
    """List the leaves of a network's tree, largest layers stacked.

    Args:
      dtype: of all leaves but those that stay float32; None: the checkpoint's.
    """
    found: dict[str, list[tuple[Entry, StoredTensor]]] = {}
    for entry in sorted(network.entries, key=lambda entry: entry.layer or 0):
        found.setdefault(entry.path, []).append((entry, tensors[entry.name]))
    leaves = [_make_leaf(path, sources, dtype) for path, sources in found.items()]
    made = [Leaf(path, shape, FLOAT32) for path, shape in network.made.items()]
    return sorted([*leaves, *made], key=lambda leaf: leaf.path)


def choose_dtype(path: str, came: Sequence[np.dtype], wish: str | None) -> np.dtype:
    """Choose the dtype of a leaf whose tensors came in these."""
    if wish == "float32" or _FINE.search(path):
        return FLOAT32
    if wish is not None:
        return DTYPES[wish]
    return came[0] if len(set(came)) == 1 else FLOAT32


def _make_leaf(
    path: str, sources: list[tuple[Entry, StoredTensor]], dtype: str | None
) -> Leaf:
    first = sources[0][0]
    is_stacked = first.layer is not None
    shape = (len(sources), *first.our_shape) if is_stacked else first.our_shape
    chosen = choose_dtype(path, [tensor.dtype for _, tensor in sources], dtype)
    return Leaf(path, shape, chosen, tuple(sources), is_stacked)


def _copy(array: np.ndarray, to: np.ndarray) -> None:
    """Copy values, through plain integers where no dtype changes: that is fast."""
    if array.dtype == to.dtype and array.dtype.itemsize == 2:
        array, to = array.view(np.uint16), to.view(np.uint16)
    to[...] = array
