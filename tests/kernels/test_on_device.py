"""Kernels on the device that is there, against the specification.

  AVATAR_JAX_TEST_PLATFORM=cuda python -m pytest tests/kernels/test_on_device.py

`tpu` for a TPU; a GPU must be of sm_80 or later. Everything else skips this file: the
same kernels run interpreted in the files beside it.
"""

import attention_cases
import jax
import jax.numpy as jnp
import pytest
from avatar_kernels.reference_attention import block_sizes


def _find_kernels() -> list[str]:
    """Name the kernels that the device runs."""
    device = jax.devices()[0]
    if device.platform == "tpu":
        return ["mosaic_tpu"]
    kind = device.device_kind
    if device.platform == "cpu" or not block_sizes.has_kernels("gpu", kind):
        return []
    hopper = device.compute_capability == "9.0"
    return ["triton", "mosaic_gpu"] if hopper else ["triton"]


NAMES = _find_kernels()
if not NAMES:
    pytest.skip(
        "the tests' device is a CPU or a GPU before sm_80; with a TPU or a newer GPU "
        "set AVATAR_JAX_TEST_PLATFORM to tpu or cuda",
        allow_module_level=True,
    )


@pytest.mark.parametrize("implementation", NAMES)
@pytest.mark.parametrize("name", attention_cases.CASES)
def test_kernels_equal_the_specification(name, implementation):
    # Products of float32 are rounded on the way: what is used is bfloat16.
    case = attention_cases.CASES[name]._replace(dtype=jnp.bfloat16)
    attention_cases.compare(case, implementation=implementation)
