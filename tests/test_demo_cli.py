"""What the demo refuses before it starts, and the script around it; ~3 s."""

import subprocess
from pathlib import Path

import pytest

from avatar_jax import command, demo

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
