"""Golden tensors of the published networks, found by what their JSON files say.

They lie outside the repository, in `oracle/` below AVATAR_JAX_SHARED or `../shared`;
names and equations are in the README there. A case is the path of its JSON file. Sizes
differ from folder to folder: take them from the JSON and from the tensors.
"""

import copy
import functools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

SHARED = Path(
    os.environ.get("AVATAR_JAX_SHARED")
    or Path(__file__).resolve().parents[3] / "shared"
)
ORACLE = SHARED / "oracle"


def find(kind: str) -> list:
    """Return every case of a kind as a pytest parameter; one that skips, if none."""
    found = [path for path in _described() if _describe(path)["kind"] == kind]
    if not found:
        reason = f"needs golden tensors of kind {kind!r} in {ORACLE}; none are there"
        return [pytest.param(None, id="absent", marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(path, id=f"{path.parent.name}-{path.stem}") for path in found]


def load(case: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Return the description of a case and its tensors: `in.X`, `out.X`, `mid.X`."""
    return _describe(case), load_file(case.with_suffix(".safetensors"))


def weights(case: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return the tensors of each network of a case under their original names."""
    names = _describe(case)["weights"]
    return {network: _read(case.parent / name) for network, name in names.items()}


@functools.cache
def _described() -> list[Path]:
    return [path for path in sorted(ORACLE.rglob("*.json")) if "kind" in _parse(path)]


def _describe(case: Path) -> dict:
    return copy.deepcopy(_parse(case))


@functools.cache
def _parse(path: Path) -> dict:
    return json.loads(path.read_text())


@functools.cache
def _read(path: Path) -> dict[str, np.ndarray]:
    return load_file(path)
