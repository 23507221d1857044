"""What the demo refuses before it starts, and the script around it; ~5 s."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from avatar_jax import command, demo
from avatar_jax.evaluation import demo_scores
from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.sampling import pretrained

LAUNCH = Path(__file__).resolve().parents[1] / "launch"


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--reference", "me.mp4"], "--reference and --audio together"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors does not exist"),
        (["--cases", "1"], "--cases of 2 or more"),
    ],
)
def test_bad_input_is_one_line(argv, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "use_compilation_cache", lambda: None)
    assert command.run(demo.main, [*argv, "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_the_script_says_which_python_it_needs(tmp_path):
    """A copy without a virtual environment, and a python that is too old."""
    for name in ("demo.sh", "venv.sh"):
        (tmp_path / "launch").mkdir(exist_ok=True)
        (tmp_path / "launch" / name).write_bytes((LAUNCH / name).read_bytes())
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    run = subprocess.run(
        ["bash", str(tmp_path / "launch" / "demo.sh")],
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(old)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert "Python 3.11 or newer" in run.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("blank", [True, False])
def test_weights_trained_without_the_person_get_a_still_without_them(
    blank, tmp_path, monkeypatch
):
    card = pretrained.Card(
        config=DiTConfig(width=8, mlp_width=12, heads=1, layers=1, channels=64),
        size=64,
        chunk_latents=7,
        reference_latents=6 if blank else 0,
        blank_still=blank,
    )
    curve = np.zeros((2, 20))
    scores = demo_scores.Scores({"sync_correlation": curve[:, 0]}, curve, curve, 0)
    asked, told = [], {}

    def make_case(folder, *_, **__):
        folder.mkdir(parents=True)

    monkeypatch.setattr(command, "use_compilation_cache", lambda: None)
    monkeypatch.setattr(demo.pretrained, "load", lambda _: SimpleNamespace(card=card))
    monkeypatch.setattr(demo.demo_cases, "make_case", make_case)
    monkeypatch.setattr(demo.sample, "main", asked.extend)
    monkeypatch.setattr(demo.evaluate, "score_demo", lambda *_, **__: scores)
    monkeypatch.setattr(demo.report, "write_report", lambda _, **t: told.update(t))
    demo.main(["--out", str(tmp_path / "out")])
    assert ("--blank-person" in asked) == blank
    beside = [Path(path).name for path in told["videos"][0].values()]
    assert beside == (["reference.mp4"] if blank else []) + ["avatar.mp4"]
    assert (tmp_path / "out" / "metrics.json").is_file()
