"""One step: micro-batches, devices, buckets, averages (~30 s on 2 cores)."""

import sys
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax import sharding
from avatar_jax.training import config as config_module
from avatar_jax.training import state, step

sys.path.insert(0, str(Path(__file__).parent))
import linear_run


def make_run(**overrides):
    config = linear_run.get_config()
    for name, text in overrides.items():
        config_module.override(config, name.replace("__", "."), str(text))
    return linear_run.get_run(config)


def run_steps(run, mesh_config, devices, num_steps=3):
    mesh = sharding.make_mesh(mesh_config, devices)
    batches = iter(run.dataset(0, 1))
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.LOGICAL_RULES):
        current = state.create(run, mesh, next(batches))
        take = step.jit_step(run, current)
        losses = []
        for _ in range(num_steps):
            current, metrics = take(current, sharding.put_batch(next(batches), mesh))
            losses.append(float(metrics["loss"].total / metrics["loss"].count))
    return losses, jax.device_get(current)


@pytest.fixture(scope="module")
def one_device():
    return run_steps(make_run(), sharding.MeshConfig(), jax.devices()[:1])


@pytest.mark.parametrize(
    "mesh", [{"data": 4, "fsdp": 2}, {"data": 2, "fsdp": 2, "tensor": 2}]
)
def test_eight_devices_give_the_losses_of_one(one_device, mesh):
    losses, end = run_steps(make_run(), sharding.MeshConfig(**mesh), jax.devices())
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-5)
    chex.assert_trees_all_close(end.params, one_device[1].params, rtol=1e-4, atol=1e-5)


def test_micro_batches_give_the_step_of_the_whole_batch(one_device):
    # Noise is drawn for the whole batch, so nothing differs but rounding.
    split = make_run(micro_batches=4)
    losses, end = run_steps(split, sharding.MeshConfig(), jax.devices()[:1])
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-5)
    chex.assert_trees_all_close(end.params, one_device[1].params, rtol=1e-4, atol=1e-5)


def test_metrics_add_up_over_micro_batches():
    run = make_run(micro_batches=2, data__batch=4)
    _, whole = run_one(make_run(data__batch=4))
    _, split = run_one(run)
    chex.assert_trees_all_close(
        {k: m.total / m.count for k, m in whole.items()},
        {k: m.total / m.count for k, m in split.items()},
        rtol=1e-5,
    )


def run_one(run):
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    batch = next(iter(run.dataset(0, 1)))
    with jax.set_mesh(mesh):
        current = state.create(run, mesh, batch)
        return jax.jit(step.make_step(run))(current, batch)


def test_one_compile_per_bucket():
    run = make_run(data__lengths="(1, 3)")
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=2))
    batches = iter(run.dataset(0, 1))
    with jax.set_mesh(mesh):
        current = state.create(run, mesh, next(batches))
        chex.clear_trace_counter()
        counted = chex.assert_max_traces(step.make_step(run), n=2)
        placed = jax.tree.map(lambda leaf: leaf.sharding, current)
        take = jax.jit(counted, donate_argnums=0, out_shardings=(placed, None))
        for _ in range(6):
            current, _ = take(current, sharding.put_batch(next(batches), mesh))
        assert take._cache_size() == 2


def test_average_forgets_the_start_and_follows_the_weights():
    run = make_run(ema_decay=0.5)
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    batch = next(iter(run.dataset(0, 1)))
    with jax.set_mesh(mesh):
        first = state.create(run, mesh, batch)
        second, _ = jax.jit(step.make_step(run))(first, batch)
    decay = 0.1  # (1 + 0) / (10 + 0), below the config's 0.5
    expected = jax.tree.map(
        lambda a, b: decay * a + (1 - decay) * b, first.ema, second.params
    )
    chex.assert_trees_all_close(second.ema, expected, rtol=1e-6)
    assert (
        int(second.step) == 1
        and second.params["model"]["blocks"]["kernel"].dtype == jnp.float32
    )


def test_parent_weights_replace_the_random_start(tmp_path):
    from avatar_jax import checkpoint

    run = make_run()
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    batch = next(iter(run.dataset(0, 1)))
    parent = {"blocks": {"scale": np.full((2, 4), 3.0, np.float32)}}
    path = tmp_path / "parent.safetensors"
    checkpoint.save_weights(path, parent, {"config": {}})
    with jax.set_mesh(mesh):
        plain = state.create(run, mesh, batch)
        warm = state.create(make_run(init_from=path), mesh, batch)
    blocks = warm.params["model"]["blocks"]
    np.testing.assert_array_equal(blocks["scale"], parent["blocks"]["scale"])
    kernel = plain.params["model"]["blocks"]["kernel"]
    np.testing.assert_array_equal(blocks["kernel"], kernel)
    chex.assert_trees_all_equal(warm.ema, warm.params)
