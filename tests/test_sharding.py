"""Mesh and rules on eight CPU devices (~3 s on 2 cores)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from avatar_jax import sharding
from avatar_jax.types import InputError


def test_data_axis_takes_the_devices_that_the_others_leave():
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=2))
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "context": 1, "tensor": 1}


@pytest.mark.parametrize("sizes", [{"data": 3}, {"fsdp": 3}, {"tensor": 0}])
def test_a_mesh_that_does_not_fill_the_devices_is_refused(sizes):
    with pytest.raises(InputError, match="8 devices"):
        sharding.make_mesh(sharding.MeshConfig(**sizes))


def test_rules_shard_kernels_and_their_optimiser_state_alike():
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
    tree = {
        "model": {
            "blocks": {
                "q": {"kernel": jnp.zeros((3, 4, 6)), "bias": jnp.zeros((3, 6))},
                "o": {"kernel": jnp.zeros((3, 6, 4))},
            },
            "odd": {"kernel": jnp.zeros((5, 4))},
        }
    }
    specs = jax.tree.map(
        lambda s: s.spec, sharding.parameter_shardings({"mu": tree, **tree}, mesh)
    )
    blocks = specs["model"]["blocks"]
    assert blocks["q"]["kernel"] == P(None, "fsdp", "tensor")
    assert blocks["o"]["kernel"] == P(None, "tensor", "fsdp")
    assert blocks["q"]["bias"] == P()
    assert specs["model"]["odd"]["kernel"] == P(None, "tensor")  # 5 rows stay whole
    assert specs["mu"]["model"] == specs["model"]


def test_batch_is_split_over_data_and_fsdp():
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, context=2))
    x = np.arange(24.0).reshape(8, 3)
    placed = sharding.put_batch({"x": x, "absent": None}, mesh)
    assert placed["x"].addressable_shards[0].data.shape == (2, 3)
    np.testing.assert_array_equal(placed["x"], x)


def test_a_batch_that_does_not_divide_says_what_would():
    mesh = sharding.make_mesh(sharding.MeshConfig(data=4, fsdp=2))
    sharding.check_batch(16, mesh, micro_batches=2)
    with pytest.raises(InputError, match="12 clips.*multiple of 16"):
        sharding.check_batch(12, mesh, micro_batches=2)
