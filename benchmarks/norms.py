"""What norms, modulation and rotary cost in memory, by XLA and by kernels.

  python -m benchmarks.norms [--generations v5p v6e]

Bytes that the TPU compiler counts for LARGE rows (5,120 channels, 40 heads, bfloat16)
as multiples of reading and writing them once, forward and backward. Of a kernel the
compiler cannot count: it repeats what the kernel declares, each block read or written
once. No TPU is needed, `libtpu` is.
"""

import argparse
import sys

import jax
import jax.numpy as jnp
from avatar_kernels import norm_rotary, topologies
from avatar_kernels.modulated_norm import modulated_norm
from jax.sharding import NamedSharding, PartitionSpec

from avatar_jax import command

ROWS, WIDTH, HEADS = 8_820, 5_120, 40  # an eighth of 41 latents of 480x896 and a still
F32 = jnp.float32


def main(argv: list[str]) -> None:
    """Compile and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    generations = list(topologies.SMALLEST)
    parser.add_argument(
        "--generations", nargs="+", choices=generations, default=generations
    )
    args = parser.parse_args(argv)
    names = list(_operators())
    print("bytes accessed, as multiples of the least")
    print(f"{'':<16}" + "".join(f"{name:>28}" for name in names))
    for generation in args.generations:
        device = topologies.describe(topologies.SMALLEST[generation])[:1]
        mesh = jax.make_mesh((1,), ("chip",), devices=device)
        for backward in (False, True):
            cells = "".join(f"{_ratio(mesh, name, backward):>28.2f}" for name in names)
            label = f"{generation} {'backward' if backward else 'forward'}"
            print(f"{label:<16}{cells}", flush=True)


def _operators() -> dict:
    """Return (function, arguments, passes over the rows at least) by name."""
    rows = ((1, ROWS, WIDTH), jnp.bfloat16)
    vector, turn = ((1, 1, WIDTH), F32), ((1, ROWS, WIDTH // HEADS // 2), F32)

    def rotary(name: str):
        def run(x, gain, turn):
            return norm_rotary.norm_rotary(x, gain, turn, implementation=name)

        return run, (rows, ((WIDTH,), F32), turn), 2

    def modulate(name: str):
        def run(x, shift, scale):
            return modulated_norm(x, shift, scale, implementation=name)[1]

        return run, (rows, vector, vector), 2

    def residual(name: str):
        def run(x, y, gate, shift, scale):
            return modulated_norm(
                x, shift, scale, added=y, gate=gate, implementation=name
            )

        return run, (rows, rows, *[vector] * 3), 4

    makers = {
        "norm, rotary": rotary,
        "modulate": modulate,
        "residual, modulate": residual,
    }
    return {
        f"{what}: {label}": make(name)
        for what, make in makers.items()
        for label, name in (("XLA", "xla"), ("kernel", "mosaic_tpu"))
    }


def _ratio(mesh: jax.sharding.Mesh, name: str, backward: bool) -> float:
    function, arguments, passes = _operators()[name]
    sharding = NamedSharding(mesh, PartitionSpec())
    arrays = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for shape, dtype in arguments
    ]
    if backward:
        # Read what came in and the gradients of what went out; write those of the rows.
        passes = {2: 3, 4: 6}[passes]
        outs = jax.eval_shape(function, *arrays)
        grads = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), outs
        )
        pull = function

        def function(grads, *arrays):
            return jax.vjp(pull, *arrays)[1](grads)

        arrays = [grads, *arrays]
    program = jax.jit(function).lower(*arrays).compile()
    return program.cost_analysis()["bytes accessed"] / (passes * 2 * ROWS * WIDTH)


if __name__ == "__main__":
    sys.exit(command.run(main))
