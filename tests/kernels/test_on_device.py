"""Kernels on the device that is there, against the specification; skipped on a CPU.

  AVATAR_JAX_TEST_PLATFORM=cuda python -m pytest tests/kernels/test_on_device.py

with a device that kernels are made for: `tpu`, or `cuda` with an sm_80 or later.
"""

import attention_cases
import jax
import jax.numpy as jnp
import pytest
from avatar_kernels.reference_attention import block_sizes

HERE = jax.default_backend()
HOPPER = HERE == "gpu" and jax.devices()[0].compute_capability == "9.0"
NAMES = {
    "mosaic_tpu": HERE == "tpu",
    "triton": HERE == "gpu",
    "mosaic_gpu": HOPPER,
}
pytestmark = pytest.mark.skipif(HERE == "cpu", reason="needs a TPU or GPU")


@pytest.mark.parametrize("implementation", NAMES)
@pytest.mark.parametrize("name", attention_cases.CASES)
def test_kernels_equal_the_specification(name, implementation):
    if not NAMES[implementation]:
        pytest.skip(f"{implementation} is not for {jax.devices()[0].device_kind}")
    # Products of float32 are rounded on the way: what is used is bfloat16.
    case = attention_cases.CASES[name]._replace(dtype=jnp.bfloat16)
    attention_cases.compare(
        case,
        implementation=implementation,
        sizes=block_sizes.find_sizes(
            implementation, jax.devices()[0].device_kind, case.width
        ),
    )
