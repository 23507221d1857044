"""TPU kernels on a CPU, interpreted with race detection (~60 s on 2 cores)."""

import attention_cases
import jax.numpy as jnp
import numpy as np
import pytest
from avatar_kernels.reference_attention import block_sizes, target_attention
from jax.experimental.pallas import tpu as pltpu

SIZES = block_sizes.same(128, 128, 128)


@pytest.mark.parametrize("name", attention_cases.CASES)
def test_kernels_equal_the_specification_without_races(name, capfd):
    params = pltpu.InterpretParams(
        detect_races=True, out_of_bounds_reads="uninitialized"
    )
    with pltpu.force_tpu_interpret_mode(params):
        attention_cases.compare(
            attention_cases.CASES[name], implementation="mosaic_tpu", sizes=SIZES
        )
    assert "RACE DETECTED" not in capfd.readouterr().out  # the interpreter prints it


def test_nan_in_a_block_that_is_not_visited_reaches_nothing():
    q = jnp.ones((1, 128, 1, 128))
    k = jnp.ones((1, 384, 1, 128))
    valid = jnp.arange(384)[None] // 128 != 1
    broken = jnp.where(valid[..., None, None], k, jnp.nan)
    out = target_attention(
        q,
        broken,
        broken,
        q[:, :0],
        q[:, :0],
        valid=valid,
        reference_valid=valid[:, :0],
        implementation="mosaic_tpu_interpreted",
    )
    np.testing.assert_array_equal(out, 1.0)


def test_another_head_dim_is_refused_by_name():
    q = jnp.ones((1, 8, 1, 32))
    valid = jnp.ones((1, 8), bool)
    with pytest.raises(NotImplementedError, match="head_dim=32.*'mosaic_tpu'"):
        target_attention(
            q,
            q,
            q,
            q,
            q,
            valid=valid,
            reference_valid=valid,
            implementation="mosaic_tpu",
        )
