"""The kernels by name; those that end in "_interpreted" run on a CPU, for tests.

What belongs to one platform is imported when it is asked for.
"""

import functools
from collections.abc import Callable

from avatar_kernels.reference_attention.vjp import Kernels


@functools.cache
def find(name: str) -> Kernels:
    """Return the kernels of an implementation; there is none for "xla"."""
    platform = name.removesuffix("_interpreted")
    interpret = platform != name
    if platform == "mosaic_tpu":
        from avatar_kernels.reference_attention import pallas_tpu, pallas_tpu_vjp

        kernels = Kernels(
            pallas_tpu.forward, pallas_tpu_vjp.backward_q, pallas_tpu_vjp.backward_kv
        )
        return Kernels(*map(_interpret_tpu, kernels)) if interpret else kernels
    if platform == "triton":
        from avatar_kernels.reference_attention import pallas_triton, pallas_triton_vjp

        return Kernels(
            *(
                functools.partial(kernel, interpret=interpret)
                for kernel in (
                    pallas_triton.forward,
                    pallas_triton_vjp.backward_q,
                    pallas_triton_vjp.backward_kv,
                )
            )
        )
    from avatar_kernels.reference_attention import pallas_hopper, pallas_hopper_vjp

    return Kernels(
        pallas_hopper.forward,
        pallas_hopper_vjp.backward_q,
        pallas_hopper_vjp.backward_kv,
    )


def _interpret_tpu(kernel: Callable) -> Callable:
    """Let a TPU kernel run on a CPU; rows beyond the end hold NaN, as the worst may."""
    from jax.experimental.pallas import tpu as pltpu

    @functools.wraps(kernel)
    def run(*args):
        params = pltpu.InterpretParams(out_of_bounds_reads="uninitialized")
        with pltpu.force_tpu_interpret_mode(params):
            return kernel(*args)

    return run
