"""The demo: a talking video, figures and a report in one run; see launch/demo.sh."""

import argparse
import sys
import time
from pathlib import Path

from avatar_jax import checkpoint, command, evaluate, prepare, sample, train
from avatar_jax.evaluation import demo_cases, report
from avatar_jax.evaluation.judge_frames import people_of
from avatar_jax.sampling import pretrained
from avatar_jax.types import FRAMES_PER_SECOND, InputError

EXAMPLE = """example:
  python -m avatar_jax.demo --out demo_out
  python -m avatar_jax.demo --reference me.mp4 --audio speech.wav

By giving --reference you state that the person in it agreed to the video; avatar.json
records it."""

AVATAR_FRAMES = 8 * FRAMES_PER_SECOND
AVATAR_SIZE = 256  # pixels of avatar.mp4
CONSENT = "This person is drawn by a program; it is nobody's likeness.\n"
# A short training run: lips move, but worse than with the shipped weights.
TRAIN_PEOPLE, TRAIN_CLIPS = 400, 4  # clips of each, two in either of two scenes
TRAIN_STAGES = {
    "stage1_text_to_video": ("--config.steps=400",),
    "stage2_audio_to_video": ("--config.steps=1000",),
    "stage3_personality": (
        "--config.steps=600",
        "--config.data.reference.cross_scene_from=160",
        "--config.human.ramp_steps=200",
    ),
}


def main(argv: list[str]) -> None:
    """Run the demo by command line arguments."""
    arguments = _parser().parse_args(argv)
    if bool(arguments.reference) != bool(arguments.audio):
        raise InputError("expected --reference and --audio together; give both.")
    if arguments.cases < 2:
        raise InputError(f"expected --cases of 2 or more, came {arguments.cases}.")
    started = time.time()
    out = Path(arguments.out)
    command.use_compilation_cache()
    weights = train_tiny(out / "training") if arguments.train else arguments.weights
    loaded = pretrained.load(weights)
    out.mkdir(parents=True, exist_ok=True)
    shown = _write_avatar(arguments, out, Path(weights), loaded.card)
    scores = evaluate.score_demo(
        loaded,
        out,
        num_cases=arguments.cases,
        settings=pretrained.choose_settings(loaded.card, num_steps=arguments.steps),
    )
    metrics = scores.summary() | {
        "seconds_install": arguments.seconds_install,
        "seconds_run": time.time() - started,
    }
    command.write_json(out / "metrics.json", metrics)
    report.write_report(
        out / "report.html",
        metrics=metrics,
        scores=scores,
        videos=[
            shown,
            {"side_by_side.mp4: held-out people": out / "side_by_side.mp4"},
        ],
        notes=[
            f"Weights: {Path(weights).name}. Installed in "
            f"{arguments.seconds_install:.0f} s, run in {metrics['seconds_run']:.0f} s."
        ],
    )
    print(evaluate.format_summary(metrics))
    print(f"open {out / 'report.html'}; watch {out / 'avatar.mp4'}")


def train_tiny(folder: Path) -> Path:
    """Train TINY by the committed configs of stages 1 to 3 for a short while.

    Returns the weights file; a second call goes on where the first one stopped.
    """
    records = folder / "records"
    if not records.is_dir():
        count = ["--people", str(TRAIN_PEOPLE), "--clips-per-person", str(TRAIN_CLIPS)]
        prepare.main(["procedural", "--out", str(records), *count])
    workdir, parent = folder, ""
    for name, overrides in TRAIN_STAGES.items():
        workdir = folder / name
        train.main(
            [
                *("--config", f"configs/{name}.py", "--workdir", str(workdir)),
                f"--config.data.directories={(str(records),)!r}",
                f"--config.init_from={parent}",
                *overrides,
            ]
        )
        parent = str(workdir)
    return workdir / checkpoint.WEIGHTS_NAME


def _write_avatar(
    arguments: argparse.Namespace, out: Path, weights: Path, card: pretrained.Card
) -> dict[str, Path]:
    """Write avatar.mp4 of the user's person, or of a held-out procedural one.

    Returns the videos of the report's first row with their titles.
    """
    settings = ["--weights", str(weights)]
    settings += ["--blank-person"] if card.blank_still else []
    if arguments.steps is not None:
        settings += ["--steps", str(arguments.steps)]
    if arguments.reference:
        print("--reference given: taken as statement that the person in it agreed")
        files = ["--reference", arguments.reference, "--audio", arguments.audio]
        files += ["--i-have-consent"]
        shown = {"avatar.mp4: your reference and your speech": out / "avatar.mp4"}
    else:
        folder = out / "avatar_case"
        files = _write_avatar_case(folder, arguments.cases, card.size)
        settings += ["--size", str(AVATAR_SIZE)]
        title = "avatar.mp4: a held-out person, a speech never heard in training"
        known = {"reference.mp4: the same person elsewhere": folder / "reference.mp4"}
        shown = (known if card.reference_latents else {}) | {title: out / "avatar.mp4"}
    sample.main([*files, *settings, "--out", str(out / "avatar.mp4")])
    return shown


def _write_avatar_case(folder: Path, num_cases: int, size: int) -> list[str]:
    """Render a person who is in no case; return the arguments of `sample`."""
    person = people_of("test", num_cases + 1)[-1]
    demo_cases.make_case(folder, person, num_frames=AVATAR_FRAMES, size=size)
    (folder / "consent.txt").write_text(CONSENT)
    return [
        *("--reference", str(folder / "reference.mp4")),
        *("--still", str(folder / "still.png")),
        *("--audio", str(folder / "speech.wav")),
        *("--consent", str(folder / "consent.txt")),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m avatar_jax.demo",
        description="Make a talking video and score the model on held-out people.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", default="demo_out", metavar="DIR")
    add("--reference", metavar="VIDEO", help="make avatar.mp4 of this person")
    add("--audio", metavar="SPEECH", help="what they shall say")
    add("--train", action="store_true", help="train the weights first")
    add("--weights", default=str(pretrained.TINY_WEIGHTS), metavar="SAFETENSORS")
    add("--cases", type=int, default=16, help="held-out people, 2 or more")
    add("--steps", type=int, help="solver steps; default: the weights' own")
    add("--seconds-install", type=float, default=0.0, help="measured by demo.sh")
    return parser


def cli() -> int:
    """Run the command; 2 for bad input."""
    return command.run(main)


if __name__ == "__main__":
    sys.exit(cli())
