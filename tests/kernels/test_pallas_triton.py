"""Triton kernels on a CPU, interpreted (~50 s on 2 cores)."""

import attention_cases
import pytest
from avatar_kernels import cuda_targets
from avatar_kernels.reference_attention.block_sizes import BlockSizes, KernelSizes

# Small and different, so that lists are long and a swapped size fails.
SIZES = KernelSizes(
    BlockSizes(128, 64, 64), BlockSizes(64, 128, 128), BlockSizes(128, 64, 64)
)


@pytest.mark.parametrize("name", attention_cases.CASES)
def test_kernels_equal_the_specification(name):
    attention_cases.compare(
        attention_cases.CASES[name], implementation="triton_interpreted", sizes=SIZES
    )


def test_only_a_described_gpu_is_a_target():
    assert cuda_targets.names() == ["a100", "h100", "h200"]
    with pytest.raises(ValueError, match="expected one of"):
        cuda_targets.devices("v100")
