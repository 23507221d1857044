"""From a config file and `--config.x=value` to the frozen objects of a run.

A config file defines `get_config() -> ConfigDict` of plain values and `get_run(config)
-> Run`, which makes the objects once, after overrides.
"""

import ast
import dataclasses
import difflib
import importlib.util
import json
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import grain
import ml_collections
import numpy as np
import optax

from avatar_jax.objectives import base
from avatar_jax.sharding import MeshConfig
from avatar_jax.types import InputError

CONFIG_NAME = "config.json"

# Fields that a resumed run may change: they do not alter what is learnt.
FREE_FIELDS = (
    "resume",
    "log_every",
    "evaluate_every",
    "checkpoint_every",
    "keep_checkpoints",
    "mesh",
    "preview",
)

Evaluation = tuple[dict[str, float], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What the loop itself is told.

    Attributes:
      steps: updates in all; the schedule's length.
      micro_batches: gradient accumulation inside a step; 1 is none.
      init_from: weights file or workdir to start from; empty: random.
      resume: go on from the workdir's newest checkpoint if there is one.
    """

    steps: int
    seed: int = 0
    micro_batches: int = 1
    ema_decay: float = 0.9999
    init_from: str = ""
    resume: bool = True
    log_every: int = 20
    evaluate_every: int = 1000
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        counts = ("steps", "micro_batches", "keep_checkpoints")
        cadences = ("log_every", "evaluate_every", "checkpoint_every")
        for name in counts + cadences:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; use 1 or more.")


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """The objects of a run, as a config file makes them.

    Attributes:
      dataset: (process_index, process_count) -> this process's endless batches.
      describe: a host batch -> plain values stored with the exported weights, the
        model config among them.
      evaluators: each takes (step, averaged players) and returns scalars and videos
        (frames height width 3, uint8) by name.
      export: the player whose averaged weights are the run's product.
      frozen_as_made: frozen players that `objective.init` gives their own weights, so
        that `init_from` does not touch them.
      check_parent: (metadata, path) of the weights to start from -> raises InputError
        where they mean something else than their shapes tell.
    """

    train: TrainConfig
    objective: base.Objective
    optimizer: optax.GradientTransformation
    dataset: Callable[[int, int], grain.IterDataset]
    describe: Callable[[Any], dict]
    evaluators: tuple[Callable[[int, base.Players], Evaluation], ...] = ()
    export: str = "model"
    frozen_as_made: tuple[str, ...] = ()
    check_parent: Callable[[dict, str], None] | None = None


def load_module(
    path: str | Path, *, needs: tuple[str, ...] = ("get_config", "get_run")
) -> ModuleType:
    """Import a config file; one that is not found here is sought beside the package.

    Raises:
      InputError: no such file, or it lacks one of the functions that it needs.
    """
    tried = [Path(path), Path(__file__).parents[2] / path]
    found = next((p for p in tried if p.is_file()), None)
    if found is None:
        raise InputError(
            f"config file {path} does not exist; give a file such as "
            "configs/stage2_audio_to_video.py."
        )
    spec = importlib.util.spec_from_file_location(f"config_{found.stem}", found)
    if spec is None or spec.loader is None:
        raise InputError(f"config file {found} is not Python; its name ends in .py.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in needs:
        if not hasattr(module, name):
            raise InputError(f"config file {found} defines no {name}().")
    return module


def override(config: ml_collections.ConfigDict, name: str, text: str) -> None:
    """Set the field `name` (dotted) to the value that `text` spells.

    Raises:
      InputError: no such field (names the closest), or a value of another type.
    """
    fields = flatten(config.to_dict())
    if name not in fields:
        raise InputError(f"config has no field {name!r}{_suggest(name, fields)}")
    old = fields[name]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False}.get(text, text)
    if isinstance(old, str):
        value = text
    elif isinstance(old, float) and type(value) is int:
        value = float(value)
    elif isinstance(old, tuple) and isinstance(value, list):
        value = tuple(value)
    elif isinstance(old, tuple) and old and isinstance(old[0], str):
        value = tuple(text.split(",")) if isinstance(value, str) else value
    if old is not None and type(value) is not type(old):
        raise InputError(
            f"config field {name} takes {type(old).__name__} (now {old!r}), "
            f"{text!r} is {type(value).__name__}."
        )
    with config.unlocked():
        config.update_from_flattened_dict({name: value})


def build(cls: type, values: Mapping[str, Any]) -> Any:
    """Make the frozen dataclass `cls` from plain values; lists become tuples.

    Raises:
      InputError: a field is unknown (names the closest) or its value is refused.
    """
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    arguments = {}
    for name, value in values.items():
        if name not in names:
            raise InputError(
                f"{cls.__name__} has no field {name!r}{_suggest(name, names)}"
            )
        nested = dataclasses.is_dataclass(hints[name]) and isinstance(value, Mapping)
        arguments[name] = build(hints[name], value) if nested else _to_tuple(value)
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"{cls.__name__}: {error}") from None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name every leaf by its dotted path."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def check_workdir(workdir: Path, resolved: Mapping[str, Any]) -> None:
    """Check that a workdir, if it was used before, holds a run of the same config.

    Raises:
      InputError: a field that alters training differs; names it and both values.
    """
    path = workdir / CONFIG_NAME
    if not path.is_file():
        return
    saved = flatten(json.loads(path.read_text()))
    asked = flatten(json.loads(json.dumps(resolved)))
    for name in sorted(saved.keys() | asked.keys()):
        free = any(name == f or name.startswith(f"{f}.") for f in FREE_FIELDS)
        if not free and saved.get(name) != asked.get(name):
            raise InputError(
                f"{workdir} holds a run with {name}={saved.get(name)!r}, this one has "
                f"{asked.get(name)!r}; use the same value or another --workdir."
            )


def write_config(workdir: Path, resolved: Mapping[str, Any]) -> None:
    """Write the resolved config as JSON, complete or not at all."""
    workdir.mkdir(parents=True, exist_ok=True)
    temporary = workdir / f".{CONFIG_NAME}"
    temporary.write_text(json.dumps(resolved, indent=2) + "\n")
    temporary.replace(workdir / CONFIG_NAME)


def _suggest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    by_leaf = [k for k in known if k.rpartition(".")[2] == name.rpartition(".")[2]]
    close = by_leaf or difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"; did you mean {close[0]!r}?" if close else "."


def _to_tuple(value: Any) -> Any:
    return tuple(map(_to_tuple, value)) if isinstance(value, list | tuple) else value
