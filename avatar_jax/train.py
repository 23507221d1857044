"""Train what a config file says: `python -m avatar_jax.train --config FILE`.

Several processes train one model: start the same command on each host with
`--distributed` (TPU pods, SLURM, Open MPI and Kubernetes are recognised), or name the
cluster with `--coordinator HOST:PORT --num-processes N --process-id I`.
"""

import argparse
import sys
from pathlib import Path

import jax

from avatar_jax import command
from avatar_jax.training import config as config_module
from avatar_jax.training import loop, metrics
from avatar_jax.types import InputError

EXAMPLE = """example:
  python -m avatar_jax.train --config configs/stage2_audio_to_video.py \\
      --config.steps=10 --config.data.directories=records --workdir runs/stage2

Any field of the config file is set with --config.<field>=<value>. The same command
again goes on from the newest checkpoint in the workdir."""


def main(argv: list[str]) -> None:
    """Train by command line arguments."""
    overrides, rest = command.split_overrides(argv)
    arguments = _parser().parse_args(rest)
    _initialize_distributed(arguments)
    command.use_compilation_cache()  # a resumed run starts at once
    module = config_module.load_module(arguments.config)
    config = module.get_config()
    for name, text in overrides:
        config_module.override(config, name, text)
    workdir = Path(arguments.workdir or f"runs/{Path(arguments.config).stem}")
    resolved = config.to_dict()
    config_module.check_workdir(workdir, resolved)  # before anything is loaded
    loop.train(module.get_run(config), workdir, resolved=resolved)


def cli() -> int:
    """Run the command; 1 after a non-finite loss, 2 for bad input."""
    try:
        return command.run(main)
    except metrics.NonFiniteLossError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m avatar_jax.train",
        description="Train what a config file says.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="config file")
    parser.add_argument("--workdir", metavar="DIR", help="default: runs/<config name>")
    parser.add_argument(
        "--distributed", action="store_true", help="one of several processes"
    )
    parser.add_argument("--coordinator", metavar="HOST:PORT")
    parser.add_argument("--num-processes", type=int, metavar="N")
    parser.add_argument("--process-id", type=int, metavar="I")
    return parser


def _initialize_distributed(arguments: argparse.Namespace) -> None:
    named = (arguments.coordinator, arguments.num_processes, arguments.process_id)
    if any(value is not None for value in named):
        if None in named:
            raise InputError(
                "--coordinator, --num-processes and --process-id go together; give "
                "all three, or --distributed on a recognised cluster."
            )
        jax.distributed.initialize(*named)
    elif arguments.distributed:
        jax.distributed.initialize()


if __name__ == "__main__":
    sys.exit(cli())
