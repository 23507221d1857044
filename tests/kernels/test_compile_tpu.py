"""The real TPU compiler takes each kernel at the LARGE shape (~60 s on 2 cores).

One generation here; all of them in `python -m benchmarks.attention compile`.
"""

import jax
import jax.numpy as jnp
import pytest
from avatar_kernels import topologies
from avatar_kernels.reference_attention import resolve

from benchmarks import attention

pytest.importorskip("libtpu", reason="needs libtpu, which is for Linux on x86-64")


@pytest.mark.parametrize("backward", [False, True])
def test_kernels_compile_without_a_concatenation(backward):
    shape = attention.SHAPES["480x896, 41 latents"]
    report = attention.compile_for("v5p", shape, backward=backward)
    rows = shape.rows + shape.reference_rows(48)
    concatenated = 2 * rows * 40 * 128 * 2  # K and V, bfloat16
    # The backward pass makes the output once more, a third of the own K and V.
    assert report.temporary_bytes < concatenated / (3 if backward else 50)


def test_the_device_that_a_program_is_made_for_decides():
    q = jax.ShapeDtypeStruct((1, 8, 2, 64), jnp.bfloat16)
    assert resolve(None, q) == "xla"  # a CPU
    device = topologies.describe(topologies.SMALLEST["v5e"])[:1]
    with jax.set_mesh(jax.make_mesh((1,), ("chip",), devices=device)):
        assert resolve(None, q) == "mosaic_tpu"
        narrow = jax.ShapeDtypeStruct((1, 8, 2, 32), jnp.bfloat16)
        assert resolve(None, narrow) == "xla"  # no kernel for this head_dim
