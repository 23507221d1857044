"""Stage 2 on a small DiT, killed, stopped, resumed; its compiles (~120 s, 2 cores)."""

import ast
import signal
import sys
from pathlib import Path

import chex
import jax
import pytest

from avatar_jax import checkpoint, sharding, stages
from avatar_jax.training import state, step

sys.path.insert(0, str(Path(__file__).parent))
from stage_runs import SMALL, STAGES, make_config, start, train, write_records
from test_loop import read_losses, read_weights

STAGE = STAGES[1]
LONG = (  # two buckets, dropout and prefixes: data order and every random draw count
    "--config.steps=24",
    "--config.log_every=1",
    "--config.checkpoint_every=3",
    "--config.data.buckets=((4, 4, 0.5), (5, 4, 0.5))",
)


def interrupt(folder, workdir, number, line):
    process = start(STAGE, folder, *LONG, workdir=workdir)
    for printed in process.stdout:
        if line in printed:
            process.send_signal(number)
            break
    output, errors = process.communicate()
    return process.returncode, output, errors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    write_records(folder / "records")
    train(STAGE, folder, *LONG, workdir="whole")
    return folder


def test_a_dit_killed_and_stopped_equals_the_uninterrupted_one_bit_for_bit(folder):
    workdir = "interrupted"
    code, _, errors = interrupt(folder, workdir, signal.SIGKILL, "step 7/24")
    assert code == -signal.SIGKILL, errors
    code, output, errors = interrupt(folder, workdir, signal.SIGTERM, "step 14/24")
    assert code == 0 and "SIGTERM: saved step" in output, errors
    assert not (folder / workdir / checkpoint.WEIGHTS_NAME).exists()
    assert "resumed at step" in train(STAGE, folder, *LONG, workdir=workdir)
    assert read_losses(folder / workdir) == read_losses(folder / "whole")
    chex.assert_trees_all_equal(
        read_weights(folder / workdir), read_weights(folder / "whole")
    )


def test_one_compile_per_bucket(folder, monkeypatch):
    monkeypatch.chdir(folder)
    run = stages.make_flow_run(make_config(STAGE, *SMALL, *LONG))
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=2), jax.devices()[:2])
    batches = iter(run.dataset(0, 1))
    seen = set()
    with jax.set_mesh(mesh):
        current = state.create(run, mesh, next(batches))
        chex.clear_trace_counter()
        counted = chex.assert_max_traces(step.make_step(run), n=2)
        placed = jax.tree.map(lambda leaf: leaf.sharding, current)
        take = jax.jit(counted, donate_argnums=0, out_shardings=(placed, None))
        while len(seen) < 2 or int(current.step) < 6:
            batch = next(batches)
            seen.add(batch.target.latents.shape[1])
            current, _ = take(current, sharding.put_batch(batch, mesh))
        assert take._cache_size() == 2
    assert seen == {row[0] for row in ast.literal_eval(LONG[-1].partition("=")[2])}
