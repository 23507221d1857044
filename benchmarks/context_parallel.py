"""What one attention sends between chips: compiled bytes against the formulas.

  python -m benchmarks.context_parallel

Compiles `nn.context_parallel.target_attention` with the TPU kernel at the LARGE shape
(40 heads of 128, 41 latents of 480x896, a reference of 48) for a v6e 2x4, whose 8 chips
trade rows for heads, and for a v5p 4x4x8, where 4 samples lie on 32 chips each: 8 that
trade and a ring of 4. No TPU is needed, `libtpu` is. Printed are the bytes that a chip
sends per block and forward pass, counted in the compiled program, and what eqs. 1 and 2
of `avatar_jax.nn.context_parallel` say.
"""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
from avatar_kernels import topologies
from jax.sharding import NamedSharding, PartitionSpec

from avatar_jax import command, sharding
from avatar_jax.nn import context_parallel, layouts
from avatar_jax.planning import collectives
from benchmarks import attention_shapes

REFERENCE = 48  # latents
RUNS = {
    "v6e:2x4": sharding.MeshConfig(data=1, context=8),
    "v5p:4x4x8": sharding.MeshConfig(data=4, context=32),
}


class Sent(NamedTuple):
    """Bytes that one chip sends, by kind of collective."""

    all_to_all: float
    permute: float


def main(argv: list[str]) -> None:
    """Compile and print."""
    del argv
    shape = attention_shapes.make_shapes()["480x896, 41 latents"]
    print(f"{'topology':<12}{'Ulysses x ring':>16}", end="")
    print("".join(f"{name:>26}" for name in ("all-to-all MiB", "ring MiB")))
    print(f"{'':<28}" + f"{'compiled / formula':>26}" * 2)
    for topology, config in RUNS.items():
        layout, counted, expected = compare(topology, config, shape)
        cells = "".join(
            f"{f'{ours / 2**20:.1f} / {theirs / 2**20:.1f}':>26}"
            for ours, theirs in zip(counted, expected, strict=True)
        )
        print(f"{topology:<12}{f'{layout.ulysses} x {layout.ring}':>16}{cells}")


def compare(
    topology: str, config: sharding.MeshConfig, shape: attention_shapes.Shape
) -> tuple[layouts.Layout, Sent, Sent]:
    """Return the layout, the bytes of the program and those of the formulas."""
    mesh = sharding.make_mesh(config, topologies.describe(topology))
    rows = _fill(shape.rows, config.context)
    extra = _fill(shape.reference_rows(REFERENCE), config.context)
    q = jax.ShapeDtypeStruct(
        (config.data, rows, shape.heads, shape.width), jnp.bfloat16
    )
    with jax.set_mesh(mesh):
        layout = layouts.find_layout(q, "mosaic_tpu")
        reference = layout.rows() if layout.ring > 1 else layout.by_head()
        marks = layout.marks()
        specs = [layout.rows()] * 3 + [reference] * 2 + [marks, marks]
        arrays = [
            jax.ShapeDtypeStruct(
                (config.data, length, *rest), dtype, sharding=NamedSharding(mesh, spec)
            )
            for (length, *rest), dtype, spec in zip(
                [q.shape[1:]] * 3 + [(extra, *q.shape[2:])] * 2 + [(rows,), (extra,)],
                [jnp.bfloat16] * 5 + [jnp.bool_] * 2,
                specs,
                strict=True,
            )
        ]
        program = jax.jit(_attend, out_shardings=layout_sharding(mesh, layout)).lower(
            *arrays
        )
        text = program.compile().as_text()
    sent = collectives.count(text, mesh.size).sent
    counted = Sent(sent["all-to-all"], sent["collective-permute"])
    return layout, counted, _predict(q, extra, layout)


def layout_sharding(mesh, layout: layouts.Layout) -> NamedSharding:
    """Return where the output stays: with its rows."""
    return NamedSharding(mesh, PartitionSpec(*layout.rows()))


def _attend(q, k, v, reference_k, reference_v, valid, reference_valid):
    return context_parallel.target_attention(
        q,
        k,
        v,
        reference_k,
        reference_v,
        valid=valid,
        reference_valid=reference_valid,
        implementation="mosaic_tpu",
    )


def _fill(rows: int, devices: int) -> int:
    return rows + -rows % devices


def _predict(q, extra: int, layout: layouts.Layout) -> Sent:
    """Return eqs. 1 and 2 for one sample per group of chips."""
    rows, width = q.shape[1], 2 * q.shape[2] * q.shape[3]
    u, r = layout.ulysses, layout.ring
    traded = 4 * rows + (2 * extra if r > 1 else 0)
    all_to_all = traded / layout.context * width * (u - 1) / u
    return Sent(all_to_all, 2 * (rows + extra) / r * width / u * (r - 1))


if __name__ == "__main__":
    sys.exit(command.run(main))
