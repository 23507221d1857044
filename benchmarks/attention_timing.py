"""Measure `benchmarks.attention` on a device, or say what a device could do at best."""

import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from avatar_kernels.reference_attention import block_sizes, resolve
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)

from benchmarks import attention_shapes
from benchmarks.attention_shapes import REFERENCES, VALIDITIES, Shape

# What compilers and kernels say of blocks that do not fit.
REFUSALS = (jax.errors.JaxRuntimeError, ValueError, NotImplementedError)
# Peak of dense bfloat16 products (TFLOP/s) and of memory (TB/s), makers' data sheets;
# tpu7x per core.
PEAKS = {
    "TPU v5 lite": (197, 0.82),
    "TPU v5": (459, 2.77),
    "TPU v6 lite": (918, 1.64),
    "TPU7x": (1153, 3.69),
    "NVIDIA A100": (312, 2.04),
    "NVIDIA H100": (989, 3.35),
    "NVIDIA H200": (989, 4.8),
}


def find_peak(kind: str) -> tuple[float, float]:
    """Return the peaks of a device by the start of its kind; NaN where unknown."""
    known = [name for name in PEAKS if kind.startswith(name)]
    return PEAKS[max(known, key=len)] if known else (np.nan, np.nan)


def print_rooflines(shapes: dict[str, Shape]) -> None:
    """Print the least time of a forward pass, R = 48, by arithmetic and by memory.

    Keys and values are read once per block of 1,024 queries.
    """
    print("least ms of a forward pass at R = 48: by arithmetic / by memory")
    print(f"{'shape':<32}" + "".join(f"{kind:>16}" for kind in PEAKS))
    for name, shape in shapes.items():
        flops = shape.flops(48, backward=False)
        bytes_moved = _count_bytes(shape, 48)
        cells = [
            f"{flops / peak / 1e9:.1f} / {bytes_moved / memory / 1e9:.1f}"
            for peak, memory in PEAKS.values()
        ]
        print(f"{name:<32}" + "".join(f"{cell:>16}" for cell in cells))
    print()


def _count_bytes(shape: Shape, reference: int, block: int = 1024) -> float:
    row = 2 * shape.heads * shape.width  # bfloat16
    pairs = shape.pairs(reference)
    return row * (2 * shape.rows + 2 * pairs / block)


def measure(
    shapes: dict[str, Shape], repeats: int, implementation: str | None = None
) -> None:
    """Print the table of each shape; None: the implementation that the device gets."""
    device = jax.devices()[0]
    peak, _ = find_peak(device.device_kind)
    print(f"{device.device_kind}, jax {jax.__version__}, bfloat16, median of {repeats}")
    width = next(iter(shapes.values())).width
    rows = jax.ShapeDtypeStruct((1, 1, 1, width), jnp.bfloat16)
    print(f"ours: {resolve(implementation, rows)}")
    for name, shape in shapes.items():
        print(f"\n{name}: {shape.rows} rows, {shape.heads} heads of {shape.width}")
        for backward in (False, True):
            ours = attention_shapes.make_operator(
                shape, backward=backward, implementation=implementation
            )
            _measure_shape(shape, jax.jit(ours), backward, repeats, peak)


def _measure_shape(
    shape: Shape, ours: Callable, backward: bool, repeats: int, peak: float
) -> None:
    print("forward and backward" if backward else "forward")
    print(
        f"{'R':>4}{'valid':>7}{'compile s':>11}{'ms':>10}{'TFLOP/s':>9}{'of peak':>9}"
        f"{'library ms':>12}{'library / ours':>16}{'ideal share':>13}"
    )
    full = {}
    for reference in REFERENCES if shape.segment is None else (0,):
        for validity in VALIDITIES if reference else (1.0,):
            arrays = _make_arrays(shape, reference, validity, backward=backward)
            first, seconds = _time_ours(ours, arrays, repeats)
            ideal = library = np.nan
            if validity < 1.0:
                least = full[reference] * shape.pairs(reference, validity)
                ideal = least / shape.pairs(reference) / seconds
            else:
                full[reference] = seconds
                if shape.window is None and shape.segment is None:
                    library = _time_library(shape, arrays, backward, repeats)
            flops = shape.flops(reference, validity, backward=backward)
            rate = flops / seconds / 1e12
            print(
                f"{reference:4d}{validity:7.0%}{first:11.1f}{1e3 * seconds:10.2f}"
                f"{rate:9.0f}{rate / peak:9.0%}{1e3 * library:12.2f}"
                f"{library / seconds:16.2f}{ideal:13.2f}",
                flush=True,
            )
    if len(full) > 3:
        _print_fit(full)


def _time_ours(
    ours: Callable, arrays: list[jax.Array], repeats: int
) -> tuple[float, float]:
    """Return the seconds of the first call, compilation included, and of later ones."""
    start = time.perf_counter()
    jax.block_until_ready(ours(*arrays))
    return time.perf_counter() - start, _time(ours, arrays, repeats)


def _print_fit(seconds: dict[int, float]) -> None:
    lengths = np.array(list(seconds), float)
    c, b, a = np.polyfit(lengths, 1e3 * np.array(list(seconds.values())), 2)
    share = c * lengths[-1] ** 2 / np.polyval((c, b, a), lengths[-1])
    print(
        f"fit: {a:.3g} + {b:.3g} R + {c:.3g} R^2 ms; quadratic part at "
        f"R = {lengths[-1]:.0f}: {share:.1%}"
    )


def time_sizes(
    shape: Shape,
    reference: int,
    sizes: block_sizes.KernelSizes,
    implementation: str,
) -> str:
    """Return the times of both passes with these blocks, or why there is none."""
    cells = []
    for backward in (False, True):
        operator = attention_shapes.make_operator(
            shape, backward=backward, sizes=sizes, implementation=implementation
        )
        arrays = _make_arrays(shape, reference, 1.0, backward=backward)
        try:
            seconds = _time(jax.jit(operator), arrays, 5)
            cells.append(f"{1e3 * seconds:10.2f} ms")
        except REFUSALS as error:
            cells.append(str(error).split("\n")[0][:60])
    return "  ".join(cells)


def _make_arrays(
    shape: Shape, reference: int, validity: float, *, backward: bool
) -> list[jax.Array]:
    kinds = attention_shapes.describe_arrays(shape, reference, backward=backward)
    arrays = []
    for seed, kind in enumerate(kinds):
        if kind.dtype == jnp.bool_:
            arrays.append(jnp.ones(kind.shape, bool))
        else:
            draw = jax.random.normal(jax.random.key(seed), kind.shape, jnp.bfloat16)
            arrays.append(draw)
    arrays[6] = jnp.asarray(attention_shapes.find_valid(reference, validity))[None]
    return arrays


def _time(call: Callable, arrays: list[jax.Array], repeats: int) -> float:
    """Return the median seconds of a call that is already compiled, or will be."""
    jax.block_until_ready(call(*arrays))
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call(*arrays))
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def _time_library(
    shape: Shape, arrays: list[jax.Array], backward: bool, repeats: int
) -> float:
    """Time the platform's own attention over one concatenated sequence."""
    name = resolve(None, arrays[0].reshape(*arrays[0].shape[:2], -1, shape.width))
    attend = _splash if name == "mosaic_tpu" else _cudnn
    operator = attention_shapes.make_operator(shape, backward=backward, attend=attend)
    return _time(jax.jit(operator), arrays, repeats)


def _cudnn(q, k, v, reference_k, reference_v, **_):
    k = jnp.concatenate([k, reference_k], 1)
    v = jnp.concatenate([v, reference_v], 1)
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


def _splash(q, k, v, reference_k, reference_v, **_):
    k = jnp.concatenate([k, reference_k], 1)
    v = jnp.concatenate([v, reference_v], 1)
    rows, keys, heads = q.shape[1], k.shape[1], q.shape[2]
    extra_q, extra_k = -rows % 1024, -keys % 1024
    one = splash_attention_mask.FullMask((rows + extra_q, keys + extra_k))
    kernel = splash_attention_kernel.make_splash_mha_single_device(
        splash_attention_mask.MultiHeadMask([one] * heads),
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=1024,
            block_kv=1024,
            block_kv_compute=512,
            block_q_dkv=1024,
            block_kv_dkv=1024,
            block_kv_dkv_compute=512,
            block_q_dq=1024,
            block_kv_dq=1024,
        ),
    )
    pad = functools.partial(jnp.pad, mode="constant")
    q, k, v = (
        pad(jnp.swapaxes(a, 1, 2), ((0, 0), (0, 0), (0, extra), (0, 0)))
        for a, extra in ((q * q.shape[-1] ** -0.5, extra_q), (k, extra_k), (v, extra_k))
    )
    out = jax.vmap(kernel)(q, k, v)
    return jnp.swapaxes(out[:, :, :rows], 1, 2)
