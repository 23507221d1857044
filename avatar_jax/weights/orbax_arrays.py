"""Leaves in an Orbax checkpoint, written and read without holding one of them whole.

Orbax takes a tree of arrays, all in memory. Here the tree holds `leaves.Leaf`, and a
type handler writes each as Orbax lays out an array: a zarr array in a folder of the
leaf's name. So the checkpoint is one that any Orbax reader restores, to any sharding;
what the mesh decides is how arrays are cut into files, so that a device of such a mesh
reads the files of its part alone.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore
from flax import traverse_util
from tqdm import tqdm

from avatar_jax import sharding
from avatar_jax.weights.leaves import Leaf

CHUNK_BYTES = 32 << 20  # of a file, at most, where an array can be cut so


def write(path: Path, leaves: Sequence[Leaf], mesh: jax.sharding.AbstractMesh) -> None:
    """Write a new checkpoint; all processes together, each its share of the blocks.

    Args:
      mesh: that is going to read it.
    """
    tree = traverse_util.unflatten_dict({leaf.path: leaf for leaf in leaves}, sep="/")
    placed = traverse_util.flatten_dict(
        sharding.parameter_shardings(tree, mesh), sep="/"
    )
    chunks = {leaf.path: choose_chunks(leaf, placed[leaf.path]) for leaf in leaves}
    total = sum(leaf.nbytes for leaf in leaves)
    with tqdm(total=total, unit="B", unit_scale=True, disable=None) as progress:
        registry = ocp.type_handlers.create_type_handler_registry(
            (jax.Array, ocp.type_handlers.ArrayHandler()),
            (Leaf, _LeafHandler(chunks, progress)),
        )
        handler = ocp.PyTreeCheckpointHandler(
            use_ocdbt=False, use_zarr3=True, type_handler_registry=registry
        )
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(path.resolve(), ocp.args.PyTreeSave(tree))


def choose_chunks(leaf: Leaf, placed: jax.sharding.NamedSharding) -> tuple[int, ...]:
    """Cut an array into what one device holds, and that into `CHUNK_BYTES`."""
    chunks = list(placed.shard_shape(leaf.shape))
    for axis, length in enumerate(chunks):
        size = math.prod(chunks) * leaf.dtype.itemsize
        if size > CHUNK_BYTES:
            chunks[axis] = max(1, length * CHUNK_BYTES // size)
    return tuple(chunks)


def open_array(folder: Path, path: str) -> tensorstore.TensorStore:
    """Open a leaf that `write` wrote; what is indexed is read by `.read().result()`."""
    return tensorstore.open(
        {"driver": "zarr3", "kvstore": _file_store(folder / path.replace("/", "."))},
        open=True,
        read=True,
    ).result()


class _LeafHandler(ocp.type_handlers.TypeHandler):
    """Tells Orbax how to save a `Leaf`; what it saves is restored as a jax.Array."""

    def __init__(self, chunks: dict[str, tuple[int, ...]], progress: tqdm) -> None:
        self._chunks, self._progress = chunks, progress

    def typestr(self) -> str:
        """Name the type that reads it."""
        return "jax.Array"

    async def metadata(self, infos: Sequence[Any]) -> Sequence[Any]:
        """Is asked of the handler of jax.Array instead."""
        raise NotImplementedError

    async def deserialize(
        self, infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> Sequence[Any]:
        """Is asked of the handler of jax.Array instead."""
        raise NotImplementedError

    async def serialize(
        self,
        values: Sequence[Leaf],
        infos: Sequence[Any],
        args: Sequence[Any] | None = None,
    ) -> Sequence[Any]:
        """Write leaf after leaf, block after block."""
        for leaf, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            self._write(leaf, info.path)
        return []

    def _write(self, leaf: Leaf, folder: os.PathLike) -> None:
        chunks = self._chunks[leaf.path]
        array = tensorstore.open(
            _spec(folder, chunks),
            open=True,  # another process may have been first
            create=True,
            dtype=tensorstore.dtype(leaf.dtype.name),
            shape=leaf.shape,
        ).result()
        for number, start in enumerate(range(0, leaf.shape[0], chunks[0])):
            stop = min(start + chunks[0], leaf.shape[0])
            if number % jax.process_count() == jax.process_index():
                array[start:stop].write(leaf.read(start, stop)).result()
            self._progress.update(leaf.nbytes // leaf.shape[0] * (stop - start))


def _spec(folder: os.PathLike, chunks: tuple[int, ...]) -> dict[str, Any]:
    """Describe an array; uncompressed, as the bits of weights look random."""
    grid = {"name": "regular", "configuration": {"chunk_shape": list(chunks)}}
    return {
        "driver": "zarr3",
        "kvstore": _file_store(folder),
        "store_data_equal_to_fill_value": True,  # Orbax misses files of zeros else
        "metadata": {
            "chunk_grid": grid,
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        },
    }


def _file_store(folder: os.PathLike) -> dict[str, str]:
    return {"driver": "file", "path": f"{os.fspath(folder)}/"}
