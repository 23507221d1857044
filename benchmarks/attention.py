"""Sparse Reference Attention: time on a TPU or GPU, or what the compilers say without.

  python -m benchmarks.attention [--shapes 480 --repeats 9]
  python -m benchmarks.attention compile [--devices v5e v5p v6e tpu7x]
  bash launch/compile_cuda.sh                                     # the same for GPUs
  python -m benchmarks.attention search [--devices v6e]

The first prints, for each shape, length R of reference (latents) and share of it that
is valid (a face box in each latent), the median time, useful TFLOP/s (eq. 1) and their
share of the device's peak, and the ratio to the best library path on the same device:
cuDNN, or splash attention on TPU, given everything in one sequence. Then the ratio to
the ideal of skipping what is not valid (eq. 2) and the fit a + b R + c R^2. On a CPU it
prints rooflines and what the TPU compiler says of each kernel instead. `search` times
candidates of block sizes on a device, or without one names those that compile.

  (1) useful operations  4 N K (own pairs seen + T valid R) forward, 3.5 times that with
      the backward pass
  (2) ideal ratio        (S + valid R) / (S + R)
"""

import argparse
import dataclasses
import sys
import time
from typing import NamedTuple

import jax
from avatar_kernels import cuda_targets, topologies
from avatar_kernels.reference_attention import block_sizes, resolve
from jax.sharding import NamedSharding, PartitionSpec

from avatar_jax import command
from avatar_jax.types import InputError
from benchmarks import attention_shapes, attention_timing

SHAPES = attention_shapes.make_shapes()
REFERENCE = 48  # latents, where one length stands for all
MEBIBYTE = 2**20


def _sizes(*blocks: tuple[int, int]) -> block_sizes.KernelSizes:
    return block_sizes.KernelSizes(
        *(block_sizes.BlockSizes(q, kv, kv) for q, kv in blocks)
    )


# Blocks of each kernel: forward, backward of queries, backward of keys and values.
CANDIDATES = {
    "mosaic_tpu": tuple(
        block_sizes.same(q, kv, compute)
        for q in (512, 1024, 2048)
        for kv, compute in ((512, 512), (1024, 512), (1024, 1024), (2048, 512))
    ),
    "triton": tuple(
        _sizes((q, kv), (q, narrow), (narrow, q))
        for q in (64, 128)
        for kv, narrow in ((32, 16), (32, 32), (64, 32), (128, 64))
    ),
    "mosaic_gpu": tuple(
        _sizes((q, kv), (q, narrow), (narrow, q))
        for q in (128, 192)
        for kv, narrow in ((64, 64), (128, 64), (128, 128))
    ),
}


class Report(NamedTuple):
    """What a compiler says of one program."""

    seconds: float
    temporary_bytes: int
    argument_bytes: int


def main(argv: list[str]) -> None:
    """Do what the first argument says; none: measure."""
    args = _parse(argv)
    shapes = {name: s for name, s in SHAPES.items() if args.shapes in name}
    if not shapes:
        raise InputError(
            f"expected a part of {', '.join(SHAPES)}, came --shapes {args.shapes!r}"
        )
    if args.action == "compile" or jax.default_backend() == "cpu":
        for device in args.devices:
            _choose(device, args.implementation)  # refused before anything is printed
    if args.action == "search":
        search(args.devices, shapes, args.implementation)
    elif args.action == "compile":
        compile_all(args.devices, shapes, args.implementation)
    elif jax.default_backend() == "cpu":
        print("No accelerator: rooflines, and what the TPU compiler says.\n")
        attention_timing.print_rooflines(shapes)
        compile_all(args.devices, {name: shapes[name] for name in list(shapes)[:1]})
    else:
        attention_timing.measure(shapes, args.repeats, args.implementation)


def compile_all(
    devices: list[str],
    shapes: dict[str, attention_shapes.Shape],
    implementation: str | None = None,
) -> None:
    """Compile every kernel for every device and print what the compiler says."""
    print(f"R = {REFERENCE}, bfloat16; 5 heads: as on each of 8 chips")
    head = f"{'device':<8}{'shape':<32}{'heads':>9}{'pass':>10}"
    print(f"{head}{'compile s':>11}{'temporary MiB':>15}{'arguments MiB':>15}")
    for device in devices:
        for name, shape in shapes.items():
            for backward in (False, True):
                shape, report = _fit(device, shape, backward, implementation)
                label = "backward" if backward else "forward"
                heads = f"{shape.heads} x {shape.width}"
                print(
                    f"{device:<8}{name:<32}{heads:>9}{label:>10}{report.seconds:11.1f}"
                    f"{report.temporary_bytes / MEBIBYTE:15.0f}"
                    f"{report.argument_bytes / MEBIBYTE:15.0f}",
                    flush=True,
                )


def _fit(
    device: str,
    shape: attention_shapes.Shape,
    backward: bool,
    implementation: str | None,
) -> tuple[attention_shapes.Shape, Report]:
    """Compile with all heads, or where rows alone overfill the chip with an eighth."""
    shares = (shape, dataclasses.replace(shape, heads=shape.heads // 8))
    for share in shares:
        try:
            return share, compile_for(
                device, share, backward=backward, implementation=implementation
            )
        except jax.errors.JaxRuntimeError as error:
            if "HbmOom" not in str(error) or share is shares[-1]:
                raise
    raise AssertionError("unreachable")


def compile_for(
    device: str,
    shape: attention_shapes.Shape,
    *,
    backward: bool,
    sizes: block_sizes.KernelSizes | None = None,
    implementation: str | None = None,
) -> Report:
    """Compile one pass for one chip: a TPU generation, or a GPU of `cuda_targets`."""
    name = _choose(device, implementation)
    if device in topologies.SMALLEST:
        devices = topologies.describe(topologies.SMALLEST[device])
    else:
        devices = cuda_targets.devices(device)
    mesh = jax.make_mesh((1,), ("chip",), devices=devices[:1])
    sharding = NamedSharding(mesh, PartitionSpec())
    operator = attention_shapes.make_operator(
        shape, backward=backward, implementation=name, sizes=sizes
    )
    arrays = attention_shapes.describe_arrays(
        shape, REFERENCE, backward=backward, sharding=sharding
    )
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        program = jax.jit(operator).lower(*arrays).compile()
    memory = program.memory_analysis()
    return Report(
        time.perf_counter() - start,
        memory.temp_size_in_bytes,
        memory.argument_size_in_bytes,
    )


def search(
    devices: list[str],
    shapes: dict[str, attention_shapes.Shape],
    implementation: str | None = None,
) -> None:
    """Time each candidate where there is a device, or say which of them compile."""
    name, shape = next(iter(shapes.items()))
    print(f"{name}, R = {REFERENCE}; q x kv / kv_compute, forward and backward")
    if jax.default_backend() != "cpu":
        rows = jax.ShapeDtypeStruct((1, 1, 1, shape.width), "bfloat16")
        ours = resolve(implementation, rows)
        for sizes in CANDIDATES.get(ours, ()):
            cells = attention_timing.time_sizes(shape, REFERENCE, sizes, ours)
            print(f"{_describe(sizes)}  {cells}", flush=True)
        return
    for device in devices:
        for sizes in CANDIDATES[_choose(device, implementation)]:
            verdicts = [
                _try(device, shape, backward, sizes, implementation)
                for backward in (False, True)
            ]
            label = f"{_describe(sizes)}  {device:<6}"
            print(f"{label} {verdicts[0]:<30}{verdicts[1]}", flush=True)


def _choose(device: str, implementation: str | None) -> str:
    """Return the kernels for a device: a TPU generation, or a GPU.

    Raises:
      InputError: kernels for GPUs, and a TPU.
    """
    if device not in topologies.SMALLEST:
        return implementation or "triton"
    if implementation is not None:
        raise InputError(
            f"expected GPUs of {', '.join(cuda_targets.names())} for --implementation "
            f"{implementation}, came {device}; name them with --devices."
        )
    return "mosaic_tpu"


def _describe(sizes: block_sizes.KernelSizes) -> str:
    parts = (sizes.forward, sizes.backward_q, sizes.backward_kv)
    return ", ".join(f"{b.q:>4} x {b.kv} / {b.kv_compute}" for b in parts)


def _try(
    device: str,
    shape: attention_shapes.Shape,
    backward: bool,
    sizes: block_sizes.KernelSizes,
    implementation: str | None,
) -> str:
    try:
        report = compile_for(
            device,
            shape,
            backward=backward,
            sizes=sizes,
            implementation=implementation,
        )
    except attention_timing.REFUSALS as error:
        return str(error).split("\n")[0][:60]
    return f"compiles ({report.seconds:.0f} s)"


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "action", nargs="?", choices=("measure", "compile", "search"), default="measure"
    )
    tpus = list(topologies.SMALLEST)
    known = [*tpus, *cuda_targets.names()]
    parser.add_argument("--devices", nargs="+", choices=known, default=tpus)
    parser.add_argument(
        "--implementation", choices=("triton", "mosaic_gpu"), help="on a GPU"
    )
    parser.add_argument("--shapes", default="", help="part of the names to take")
    parser.add_argument("--repeats", type=int, default=9)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(command.run(main))
