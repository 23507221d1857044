"""Compile a described program, and what the compiler says of it."""

import dataclasses
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from avatar_jax.planning import collectives

Tree = Any
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
# Without a GPU XLA cannot time tilings of its own kernels for products, and fails where
# its first guess does not work; cuBLAS needs no guess.
OPTIONS = {"gpu": {"xla_gpu_enable_triton_gemm": False}, "tpu": {}}
# Refusals; the number has everything in it, arguments too.
_OUT_OF_MEMORY = (
    re.compile(r"\(([\d.]+)([KMG]?)\) exceeds available HBM"),
    re.compile(r"[Uu]sed ([\d.]+)([KMG]?) of [\d.]+[KMG]? hbm"),
)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of one program on one device, in bytes.

    Attributes:
      name: of the program.
      seconds: to compile.
      arguments, outputs, temporary, code: as `memory_analysis` has them.
      reused: outputs that are written over arguments.
      twice: arguments that are one array given several times.
      needed: where it does not fit, what the compiler would need; else None.
      model_flops: useful operations of all devices together, by formula.
      traffic: what a device sends.
    """

    name: str
    seconds: float
    arguments: int = 0
    outputs: int = 0
    temporary: int = 0
    code: int = 0
    reused: int = 0
    twice: int = 0
    needed: int | None = None
    model_flops: int = 0
    traffic: collectives.Traffic = collectives.Traffic({})

    @property
    def total(self) -> int:
        """Bytes that are held while the program runs."""
        if self.needed is not None:
            return self.needed
        held = self.arguments - self.twice + self.outputs - self.reused
        return held + self.temporary + self.code


def place(tree: Tree, shardings: Tree) -> Tree:
    """Describe arrays with their shardings."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        tree,
        shardings,
    )


def count_bytes(tree: Tree) -> int:
    """Count the bytes of described arrays on one device, without its tiling."""
    return sum(
        leaf.dtype.itemsize * _size(leaf)
        for leaf in jax.tree.leaves(tree)
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def count_repeats(tree: Tree) -> int:
    """Count the bytes of described arrays that the tree holds more than once."""
    leaves = jax.tree.leaves(tree)
    once = {id(leaf): leaf for leaf in leaves}
    return count_bytes(leaves) - count_bytes(list(once.values()))


def compile_program(
    name: str,
    lowered: jax.stages.Lowered,
    *,
    devices: Sequence[jax.Device],
    model_flops: int,
    twice: int = 0,
) -> Compiled:
    """Compile and read what the compiler says; a program too large is one, too."""
    start = time.perf_counter()
    try:
        compiled, text = _compile(lowered, devices[0].platform)
    except jax.errors.JaxRuntimeError as error:
        found = _find_needed(str(error))
        if found is None:
            raise
        seconds = time.perf_counter() - start
        return Compiled(name, seconds, needed=found, model_flops=model_flops)
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    return Compiled(
        name=name,
        seconds=seconds,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        reused=memory.alias_size_in_bytes,
        twice=twice,
        model_flops=model_flops,
        traffic=collectives.count(text, len(devices)),
    )


def _compile(
    lowered: jax.stages.Lowered, platform: str
) -> tuple[jax.stages.Compiled, str]:
    """Compile; also return the program's text.

    libtpu writes its own: jax does not read all that its compiler says.
    """
    options = OPTIONS.get(platform, {})
    if platform != "tpu":
        compiled = lowered.compile(compiler_options=options)
        return compiled, compiled.as_text()
    with tempfile.TemporaryDirectory() as folder:
        dumped = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = lowered.compile(compiler_options=options | dumped)
        texts = list(Path(folder).glob("*.after_optimizations.txt"))
        return compiled, texts[0].read_text() if texts else compiled.as_text()


def _find_needed(error: str) -> int | None:
    """Return the bytes that a program would need of which a compiler says so."""
    for pattern in _OUT_OF_MEMORY:
        found = pattern.search(error)
        if found:
            return int(float(found[1]) * UNITS[found[2]])
    return None


def _size(leaf: jax.ShapeDtypeStruct) -> int:
    shape = leaf.shape
    if leaf.sharding is not None:
        shape = leaf.sharding.shard_shape(shape)
    size = 1
    for length in shape:
        size *= length
    return size
