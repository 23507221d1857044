"""The subcommands that train judges and print how well they judge."""

import argparse
import dataclasses
import time
from pathlib import Path
from typing import get_args

from avatar_jax.evaluation import (
    judge_identity,
    judge_motion,
    judge_quality,
    judge_sync,
    judge_training,
)
from avatar_jax.models import judges
from avatar_jax.types import InputError

KINDS = {
    "motion": judge_motion,
    "identity": judge_identity,
    "sync": judge_sync,
    "quality": judge_quality,
}


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `train-judge` and `score-judge`."""
    train = commands.add_parser("train-judge", help="train a judge")
    train.set_defaults(run=_train)
    train.add_argument("--people", type=int, help="default: the kind's")
    train.add_argument("--steps", type=int, help="default: the kind's")
    train.add_argument("--out", metavar="SAFETENSORS", help="default: package data")
    score = commands.add_parser("score-judge", help="print how well a judge judges")
    score.set_defaults(run=_score)
    score.add_argument("--judge", metavar="SAFETENSORS", help="default: the role's")
    for sub in (train, score):
        sub.add_argument("--kind", choices=tuple(KINDS), default="motion")
        sub.add_argument("--role", choices=get_args(judges.Role), required=True)
        sub.add_argument("--seed", type=int, required=True, help="of its people")
        sub.add_argument("--held-out", type=int, default=60, help="validation people")


def _train(arguments: argparse.Namespace) -> None:
    kind = KINDS[arguments.kind]
    told = {"people": arguments.people, "num_steps": arguments.steps}
    config = dataclasses.replace(
        kind.DEFAULTS,
        role=arguments.role,
        seed=arguments.seed,
        **{name: value for name, value in told.items() if value is not None},
    )
    out = Path(arguments.out or judges.asset(arguments.kind, arguments.role))
    if not out.parent.is_dir():
        raise InputError(f"expected a folder to write into, {out.parent} is none.")
    started = time.time()
    judges.save(out, kind.train(config))
    print(f"wrote {out} after {time.time() - started:.0f} s: {config}")
    _print_table(out, arguments)


def _score(arguments: argparse.Namespace) -> None:
    path = arguments.judge or judges.asset(arguments.kind, arguments.role)
    _print_table(Path(path), arguments)


def _print_table(path: Path, arguments: argparse.Namespace) -> None:
    judge = judges.load(path)
    if judge.kind != arguments.kind:
        raise InputError(
            f"expected a judge of {arguments.kind}, {path} judges {judge.kind}; give "
            f"--kind {judge.kind}."
        )
    count, seed = arguments.held_out, arguments.seed
    rows = KINDS[judge.kind].held_out_table(judge, people=count, seed=seed)
    print(f"{path.name}, {count} validation people of seed {seed}:\n")
    print(judge_training.format_table(rows))
