"""Runs of the command, killed, stopped and resumed (~60 s on 2 cores)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from avatar_jax import checkpoint, command, train
from avatar_jax.training import config as config_module
from avatar_jax.training import loop, metrics
from avatar_jax.types import InputError

sys.path.insert(0, str(Path(__file__).parent))
import linear_run

CONFIG = linear_run.__file__


def train_here(workdir, **overrides):
    config = linear_run.get_config()
    for name, text in overrides.items():
        config_module.override(config, name.replace("__", "."), str(text))
    run = linear_run.get_run(config)
    devices = jax.devices()[:1]
    return loop.train(run, workdir, resolved=config.to_dict(), devices=devices)


def start(workdir, *arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "avatar_jax.train", "--config", CONFIG]
        + ["--workdir", str(workdir), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=workdir.parent,  # works from any folder
        env=environment,
    )


def wait_for_line(process, text):
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"ended without {text!r}: {process.stderr.read()}")


def read_losses(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def read_weights(workdir):
    return checkpoint.load_weights(workdir / checkpoint.WEIGHTS_NAME)[0]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    process = start(workdir)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return workdir


def test_a_run_leaves_what_it_promises(uninterrupted):
    assert read_losses(uninterrupted).keys() == set(range(1, 13))
    saved = json.loads((uninterrupted / "config.json").read_text())
    assert saved["optimizer"]["learning_rate"] == 0.05
    _, metadata = checkpoint.load_weights(uninterrupted / checkpoint.WEIGHTS_NAME)
    assert metadata == {"config": {"widths": [6, 4]}}
    assert (uninterrupted / "previews" / "ramp_0000012.gif").is_file()
    assert list((uninterrupted / "tensorboard").iterdir())
    assert sorted(p.name for p in (uninterrupted / "checkpoints").iterdir()) == [
        "12",
        "9",
    ]


def test_resume_after_sigkill_equals_the_uninterrupted_run(uninterrupted, tmp_path):
    workdir = tmp_path / "killed"
    process = start(workdir, "--config.data.pause=0.2")
    wait_for_line(process, "step 8/12")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (workdir / checkpoint.WEIGHTS_NAME).exists()

    process = start(workdir, "--config.data.pause=0.2")
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "resumed at step" in output
    # Bit for bit: the losses depend on data order and noise, the weights on everything.
    assert read_losses(workdir) == read_losses(uninterrupted)
    chex.assert_trees_all_equal(read_weights(workdir), read_weights(uninterrupted))


def test_sigterm_saves_and_exits_0_and_the_run_goes_on(uninterrupted, tmp_path):
    workdir = tmp_path / "stopped"
    process = start(
        workdir, "--config.data.pause=0.2", "--config.checkpoint_every=1000"
    )
    wait_for_line(process, "step 4/12")
    asked = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "SIGTERM: saved step" in output
    assert time.perf_counter() - asked < 20
    # The cadence of checkpoints may change on a resume; the result may not.
    process = start(workdir, "--config.data.pause=0.2", "--config.checkpoint_every=6")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    chex.assert_trees_all_equal(read_weights(workdir), read_weights(uninterrupted))


def test_non_finite_loss_stops_naming_the_step_and_is_never_saved(tmp_path):
    with pytest.raises(metrics.NonFiniteLossError, match="nan at step 6"):
        train_here(tmp_path / "poisoned", data__poison=5, checkpoint_every=1)
    with checkpoint.make_manager(tmp_path / "poisoned") as manager:
        assert manager.latest_step() == 5


def test_non_finite_loss_exits_1_with_one_line(tmp_path):
    process = start(tmp_path / "poisoned", "--config.data.poison=2")
    _, errors = process.communicate()
    assert process.returncode == 1
    assert errors.count("\n") == 1 and "at step 3" in errors


def test_a_workdir_of_another_config_names_the_field_and_both_values(tmp_path):
    train_here(tmp_path / "run", steps=2)
    with pytest.raises(InputError, match=r"optimizer.learning_rate=0.05.*0.1"):
        train_here(tmp_path / "run", steps=2, optimizer__learning_rate=0.1)
    with pytest.raises(InputError, match="up to step 2 and resume is off"):
        train_here(tmp_path / "run", steps=2, resume=False)


def test_a_finished_run_does_nothing_more(tmp_path):
    first = train_here(tmp_path / "run", steps=2)
    again = train_here(tmp_path / "run", steps=2)
    chex.assert_trees_all_equal(first.params, again.params)


def test_an_unfinished_workdir_is_a_parent(tmp_path):
    train_here(tmp_path / "parent", steps=2)
    exported = read_weights(tmp_path / "parent")
    (tmp_path / "parent" / checkpoint.WEIGHTS_NAME).unlink()
    live = tmp_path / "parent" / "checkpoints" / "3.orbax-checkpoint-tmp-1"
    live.mkdir()  # what a run that still trains is writing
    parent, metadata = checkpoint.load_parent(tmp_path / "parent")
    assert live.is_dir() and metadata == {}
    chex.assert_trees_all_equal(parent, exported)


def test_the_handler_of_sigterm_is_ours_in_one_process_alone(monkeypatch):
    """Among several, `jax.distributed` has one that tells all of them."""
    before = signal.getsignal(signal.SIGTERM)
    with loop._catch_sigterm() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals == [signal.SIGTERM]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with loop._catch_sigterm():
        assert signal.getsignal(signal.SIGTERM) is before


def test_a_batch_that_does_not_split_leaves_no_workdir(tmp_path):
    with pytest.raises(InputError, match="multiple of 3"):
        train_here(tmp_path / "run", micro_batches=3)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.stps=3"], "no field 'stps'; did you mean 'steps'?"),
        (["--config.learning_rate=3"], "'optimizer.learning_rate'"),
        (["--config.steps=many"], "steps takes int"),
        (["--config.steps=0"], "steps=0; use 1 or more"),
        (["--config.log_every=0"], "log_every=0; use 1 or more"),
        (["--config.steps"], "needs a value"),
        (["--config.init_from=nowhere"], "nowhere does not exist"),
        (["--process-id=1"], "go together"),
    ],
)
def test_bad_arguments_say_what_is_wrong(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    config = ["--config", CONFIG, "--config.mesh.data=-1"]
    with pytest.raises(InputError) as error:
        train.main([*config, *arguments])
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "runs" / "linear_run" / "config.json").exists()


def test_a_missing_config_file_is_named():
    with pytest.raises(InputError, match="nothing.py does not exist"):
        train.main(["--config", "nothing.py"])


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    shown = capsys.readouterr().out
    words = shown.split("example:")[1].split("\n\n")[0].replace("\\\n", " ").split()
    overrides, rest = command.split_overrides(words[3:])
    config = config_module.load_module(rest[rest.index("--config") + 1]).get_config()
    for name, text in overrides:
        config_module.override(config, name, text)
    assert config.steps == 10


def test_gif_keeps_every_frame():
    import io

    import av

    ramp = np.arange(0, 240, 5, dtype=np.uint8)
    frames = np.broadcast_to(ramp[:6, None, None, None], (6, 16, 24, 3)).copy()
    with av.open(io.BytesIO(metrics.encode_gif(frames))) as container:
        assert container.streams.video[0].average_rate == 25
        shown = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    np.testing.assert_array_equal(np.stack(shown), frames)
