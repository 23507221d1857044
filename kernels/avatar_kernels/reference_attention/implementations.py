"""The kernels by name; those that end in "_interpreted" run on a CPU, for tests."""

import functools
from collections.abc import Callable

from jax.experimental.pallas import tpu as pltpu

from avatar_kernels.reference_attention import pallas_tpu, pallas_tpu_vjp
from avatar_kernels.reference_attention.vjp import Kernels


def _interpret(kernel: Callable) -> Callable:
    """Let a TPU kernel run on a CPU; rows beyond the end hold NaN, as the worst may."""

    @functools.wraps(kernel)
    def run(*args):
        params = pltpu.InterpretParams(out_of_bounds_reads="uninitialized")
        with pltpu.force_tpu_interpret_mode(params):
            return kernel(*args)

    return run


MOSAIC_TPU = Kernels(
    pallas_tpu.forward, pallas_tpu_vjp.backward_q, pallas_tpu_vjp.backward_kv
)
KERNELS = {
    "mosaic_tpu": MOSAIC_TPU,
    "mosaic_tpu_interpreted": Kernels(*map(_interpret, MOSAIC_TPU)),
}
