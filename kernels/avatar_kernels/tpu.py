"""What TPU kernels share: the width of a vector, an interpreter for tests."""

import contextlib

from jax.experimental.pallas import tpu as pltpu

LANES = 128  # numbers side by side in a vector


def interpret_tpu(switch: bool = True) -> contextlib.AbstractContextManager:
    """Interpret the TPU kernels that are called inside; off: do nothing.

    Rows beyond the end of an array hold NaN, as at worst they may on a device.
    """
    if not switch:
        return contextlib.nullcontext()
    params = pltpu.InterpretParams(out_of_bounds_reads="uninitialized")
    return pltpu.force_tpu_interpret_mode(params)
