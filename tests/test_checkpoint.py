"""Weights files, overlays and checkpoints that survive kill -9 (~15 s on 2 cores)."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import grain
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from avatar_jax import checkpoint, sharding
from avatar_jax.types import InputError


def make_params():
    rng = np.random.default_rng(0)
    return {
        "blocks": {"kernel": rng.standard_normal((2, 3, 5)).astype(np.float32)},
        "bias": rng.standard_normal(5).astype(np.float32),
    }


def make_iterator(seed=0):
    numbers = grain.MapDataset.range(100).shuffle(seed=seed).repeat()
    return iter(numbers.batch(3).to_iter_dataset())


@pytest.mark.parametrize("dtype", [None, np.float16, ml_dtypes.bfloat16])
def test_weights_come_back_with_their_metadata(tmp_path, dtype):
    params = make_params()
    path = tmp_path / "w.safetensors"
    checkpoint.save_weights(path, params, {"config": {"width": 5}}, dtype=dtype)
    loaded, metadata = checkpoint.load_weights(path)
    assert metadata == {"config": {"width": 5}}
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a.astype(dtype or a.dtype), b),
        params,
        loaded,
    )
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_wrong_weights_files_are_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        checkpoint.load_weights(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("not weights, though long enough to hold a header")
    with pytest.raises(InputError, match="safetensors file"):
        checkpoint.load_weights(tmp_path / "text")
    foreign = tmp_path / "foreign.safetensors"
    safetensors_numpy.save_file({"a": np.ones(2)}, foreign)
    with pytest.raises(InputError, match="metadata"):
        checkpoint.load_weights(foreign)
    with pytest.raises(InputError, match="neither"):
        checkpoint.load_parent(tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_overlay_keeps_new_modules_and_names_the_first_misfit():
    params = jax.tree.map(jnp.asarray, make_params())
    loaded = {"bias": np.full(5, 7.0, np.float16)}
    merged = checkpoint.overlay(params, loaded)
    np.testing.assert_array_equal(merged["bias"], jnp.full(5, 7.0, jnp.float32))
    np.testing.assert_array_equal(
        merged["blocks"]["kernel"], params["blocks"]["kernel"]
    )
    with pytest.raises(InputError, match="'extra/kernel'"):
        checkpoint.overlay(params, {"extra": {"kernel": np.ones(2)}})
    with pytest.raises(InputError, match=r"'bias'.*\(5,\).*\(4,\)"):
        checkpoint.overlay(params, {"bias": np.ones(4)})


def test_a_checkpoint_restores_the_next_batch_and_another_mesh(tmp_path):
    state = {"step": jnp.int32(4), "kernel": jnp.arange(24.0).reshape(4, 6)}
    iterator = make_iterator()
    for _ in range(4):
        next(iterator)
    with checkpoint.make_manager(tmp_path) as manager:
        checkpoint.save(manager, 4, state, iterator)
        manager.wait_until_finished()
    expected = next(iterator)

    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=2))
    empty = jax.tree.map(jnp.zeros_like, state)
    placed = jax.device_put(empty, sharding.parameter_shardings(empty, mesh))
    fresh = make_iterator()
    with checkpoint.make_manager(tmp_path) as manager:
        restored = checkpoint.restore(manager, placed, fresh)
    np.testing.assert_array_equal(restored["kernel"], state["kernel"])
    assert restored["kernel"].sharding == placed["kernel"].sharding
    np.testing.assert_array_equal(next(fresh), expected)


SAVE_FOREVER = """
    import sys
    import grain, jax.numpy as jnp
    from avatar_jax import checkpoint
    iterator = iter(grain.MapDataset.range(9).repeat().to_iter_dataset())
    manager = checkpoint.make_manager(sys.argv[1])
    checkpoint.save(manager, 1, {"x": jnp.full((8,), 1.0)}, iterator)
    manager.wait_until_finished()
    for step in range(2, 1000):
        state = {f"x{i}": jnp.full((1 << 20,), float(step)) for i in range(8)}
        checkpoint.save(manager, step, {"x": state["x0"][:8], **state}, iterator)
        print(step, flush=True)
        manager.wait_until_finished()
"""


def test_kill_during_a_checkpoint_leaves_a_whole_one(tmp_path):
    for delay in (0.0, 0.02):
        workdir = tmp_path / f"delay{delay}"
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SAVE_FOREVER), str(workdir)],
            stdout=subprocess.PIPE,
            text=True,
        )
        begun = [int(process.stdout.readline()) for _ in range(3)][-1]
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with checkpoint.make_manager(workdir) as manager:
            newest = manager.latest_step()
            assert newest >= begun - 1
            restored = manager.restore(
                newest,
                args=checkpoint.ocp.args.Composite(
                    state=checkpoint.ocp.args.StandardRestore()
                ),
            )["state"]
        values = {float(v) for leaf in restored.values() for v in (leaf[0], leaf[-1])}
        assert values == {float(newest)}
