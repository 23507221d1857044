"""Make records that training reads, from a folder of clips or from rendered people.

    python -m avatar_jax.prepare clips --input my_clips --out data/me --size 96
    python -m avatar_jax.prepare procedural --out data/people

The result is a folder of three tiers (see `data/records.py`) for each split.
"""

import argparse
import sys
from pathlib import Path

from avatar_jax import command
from avatar_jax.models import codec, faces, judges, speech, text
from avatar_jax.preparation import clips, latents, procedural, tiers
from avatar_jax.types import InputError

SIZES = (64, 96, 128)  # pixels


def main(argv: list[str]) -> None:
    """Prepare a dataset as the arguments say; it appears only when it is complete."""
    arguments = _parser().parse_args(argv)
    arguments.run(arguments)


def cli() -> int:
    """Run as a program."""
    return command.run(main)


def prepare_clips(arguments: argparse.Namespace) -> None:
    """Write a folder of real clips as records, and say what was skipped."""
    config = clips.ClipsConfig(
        folder=arguments.input,
        size=arguments.size,
        scale=arguments.scale,
        holdout=arguments.holdout,
        holdout_names=_read_list(arguments.holdout_list),
        person=arguments.person,
        caption=arguments.caption,
        rights=arguments.rights,
        seed=arguments.seed,
        workers=arguments.workers,
    )
    video = codec.DCTCodec(arguments.channels)
    with tiers.new_dataset(arguments.out) as directory:
        report = clips.write_media(directory, config)
        _add_tiers(directory, video)
    print(report)


def prepare_procedural(arguments: argparse.Namespace) -> None:
    """Write rendered people as records."""
    config = procedural.ProceduralConfig(
        people=arguments.people,
        clips_per_person=arguments.clips_per_person,
        seconds=arguments.seconds,
        size=arguments.size,
        seed=arguments.seed,
        workers=arguments.workers,
    )
    video = codec.DCTCodec(arguments.channels)
    with tiers.new_dataset(arguments.out) as directory:
        motion = procedural.write_media(directory, config)
        _add_tiers(directory, video, motion)
    print(f"clips made: {len(motion)}")


def _add_tiers(directory: Path, video: codec.LatentCodec, motion=None) -> None:
    looks, moves = (
        judges.load(judges.asset(kind, "training")) for kind in ("identity", "motion")
    )
    tiers.add_features(
        directory,
        speech=speech.LogMel(),
        text=text.Bytes(),
        motion=motion,
        motion_reader=moves.read,
        identity=(looks.embed, faces.IDENTITY_WIDTH),
    )
    latents.add_latents(directory, codec=video)


def _read_list(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    if not path.is_file():
        raise InputError(f"expected a list of file names, but {path} does not exist")
    names = tuple(line.strip() for line in path.read_text().splitlines())
    if not any(names):
        raise InputError(f"expected one file name per line, but {path} has none")
    return tuple(filter(None, names))


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m avatar_jax.prepare", description=__doc__, formatter_class=raw
    )
    commands = parser.add_subparsers(required=True, metavar="{clips,procedural}")
    _add_clips(commands)
    _add_procedural(commands)
    for sub in commands.choices.values():
        sub.add_argument("--out", type=Path, required=True, help="new folder to make")
        sub.add_argument("--seed", type=int, default=0)
        sub.add_argument("--workers", type=int, default=2, help="processes")
        sub.add_argument("--channels", type=int, default=64, help="of the codec")
        sub.formatter_class = raw
    return parser


def _add_clips(commands) -> None:
    sub = commands.add_parser(
        "clips",
        help="a folder of real clips",
        description=clips.__doc__,
        epilog="example:\n  python -m avatar_jax.prepare clips --input my_clips "
        "--out data/me --size 96 --holdout 20",
    )
    sub.set_defaults(run=prepare_clips)
    sub.add_argument(
        "--input", type=Path, required=True, help="folder, searched with its folders"
    )
    sub.add_argument("--size", type=int, choices=SIZES, default=96, help="pixels")
    sub.add_argument(
        "--scale", type=float, default=clips.ClipsConfig.scale, help="crop / face side"
    )
    held = sub.add_mutually_exclusive_group()
    held.add_argument("--holdout", type=int, help="clips for split test; else 1 in 20")
    held.add_argument("--holdout-list", type=Path, help="file with one name per line")
    sub.add_argument("--person", help="who is seen; else the name of the clip's folder")
    sub.add_argument(
        "--caption",
        default=clips.ClipsConfig.caption,
        help="of clips without a .txt file of the same name",
    )
    sub.add_argument("--rights", default="unstated", help="kept in every record")


def _add_procedural(commands) -> None:
    sub = commands.add_parser(
        "procedural",
        help="rendered talking people",
        description=procedural.__doc__,
        epilog="example:\n  python -m avatar_jax.prepare procedural "
        "--out data/people --people 1600 --clips-per-person 4",
    )
    sub.set_defaults(run=prepare_procedural)
    sub.add_argument("--people", type=int, default=1600)
    sub.add_argument(
        "--clips-per-person", type=int, default=4, help="two of each scene"
    )
    sub.add_argument("--seconds", type=float, default=4.0, help="of each clip")
    sub.add_argument("--size", type=int, choices=SIZES, default=64, help="pixels")


if __name__ == "__main__":
    sys.exit(cli())
