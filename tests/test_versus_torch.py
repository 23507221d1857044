"""The comparison with torch, as far as it goes without torch and without a GPU."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util

from avatar_jax import command
from benchmarks import (
    versus_cases,
    versus_processes,
    versus_programs,
    versus_side_jax,
    versus_torch,
)


@pytest.fixture
def bare_python(tmp_path: Path) -> str:
    """Return an interpreter that sees no installed packages."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_missing_torch_is_one_clear_line(bare_python, capsys):
    argv = ["--tiny", "--torch-python", bare_python]
    assert command.run(versus_torch.main, argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install torch diffusers accelerate" in line


def test_an_interpreter_that_is_none_is_one_clear_line(tmp_path, capsys):
    argv = ["--tiny", "--torch-python", str(tmp_path / "absent")]
    assert command.run(versus_torch.main, argv) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_written_weights_are_read_as_the_programs_expect_them(tmp_path):
    case = versus_cases.TINY
    versus_cases.write_weights(tmp_path, case.cfg)
    params = versus_side_jax.load_weights(tmp_path, case)
    described = versus_programs.describe_parameters(case.cfg)
    assert jax.tree.map(_kind, params) == jax.tree.map(_kind, described)
    flat = traverse_util.flatten_dict(params, sep="/")
    silent = [path for path, leaf in flat.items() if not np.asarray(leaf).any()]
    assert silent == ["embed/still_role"]  # of a row that Wan does not have


def test_case_has_the_parameters_of_the_published_network():
    described = versus_programs.describe_parameters(versus_cases.WAN)
    count = sum(leaf.size for leaf in jax.tree.leaves(described))
    flags, still = 2 * 4 * versus_cases.WAN.width, versus_cases.WAN.width
    assert count - flags - still == 1_418_996_800


def test_a_process_that_fails_says_why(tmp_path):
    sides = versus_processes.Sides("unused", tmp_path, on_cpu=True)
    answer = sides.ask("ours", {"case": "no such case"}, name="failing")
    assert answer == {"refused": "KeyError: 'no such case'"}


def _kind(leaf) -> tuple:
    return leaf.shape, str(leaf.dtype)
