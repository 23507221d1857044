"""Score models, and train the judges that do: `python -m avatar_jax.evaluate`."""

import argparse
import dataclasses
import math
import sys
import time
from pathlib import Path

from avatar_jax import command
from avatar_jax.evaluation import (
    clip_cases,
    clip_identity,
    clip_scores,
    demo_cases,
    demo_scores,
    judge_commands,
    personality_scores,
    report,
    side_by_side,
)
from avatar_jax.models import judges
from avatar_jax.sampling import chunk, pretrained
from avatar_jax.types import InputError

EXAMPLE = """examples:
  python -m avatar_jax.evaluate demo --out scores --cases 16
  python -m avatar_jax.evaluate clips --records data/me --weights me.safetensors
  python -m avatar_jax.evaluate train-judge --kind identity --role evaluation --seed 2
  python -m avatar_jax.evaluate score-judge --kind motion --role training --seed 1"""

SHOWN_CASES = 4  # in side_by_side.mp4


def main(argv: list[str]) -> None:
    """Run a subcommand by command line arguments."""
    arguments = _parser().parse_args(argv)
    command.use_compilation_cache()
    arguments.run(arguments)


def score_demo(
    loaded: pretrained.Pretrained,
    out: Path,
    *,
    num_cases: int,
    settings: chunk.Settings,
    seed: int = 0,
    split: str = "test",
) -> demo_scores.Scores:
    """Render held-out people, generate, and score what the mp4 files show.

    Weights that take a reference are also asked whom they show and whose manner it is.
    Writes `cases/` and `side_by_side.mp4` into `out`.
    """
    if num_cases < 2:
        raise InputError(f"expected --cases of 2 or more, came {num_cases}.")
    card = loaded.card
    judge = judges.load(judges.asset("motion", "evaluation"))
    sets, takes_reference = demo_scores.SPEECH_SETS, card.reference_latents > 0
    if takes_reference:
        by = personality_scores.load_judges()
        sets = sets | demo_scores.REFERENCE_SETS
    out.mkdir(parents=True, exist_ok=True)
    num_frames = demo_scores.case_frames(card.chunk_latents)
    shape = {"num_frames": num_frames, "size": card.size}
    cases = demo_cases.make_cases(out / "cases", num_cases, split=split, **shape)
    demo_scores.write_codec_cases(cases, loaded.codec)
    prepared, plan = demo_scores.prepare_cases(cases, loaded)
    how = {"plan": plan, "settings": settings, "seed": seed}
    for name, given in sets.items():
        demo_scores.generate_cases(
            cases, loaded, prepared, name=name, given=given, **how
        )
    side_by_side.write_side_by_side(
        out / "side_by_side.mp4", cases[:SHOWN_CASES], with_reference=takes_reference
    )
    scores = demo_scores.score_cases(cases, judge)
    if takes_reference:
        gallery = personality_scores.make_gallery(
            split, num_cases, by, codec=loaded.codec, **shape
        )
        rows = demo_scores.score_personality(cases, by, gallery)
        scores = dataclasses.replace(scores, per_case=scores.per_case | rows)
    return scores


def make_settings(
    arguments: argparse.Namespace, card: pretrained.Card
) -> chunk.Settings:
    """Return the sampler's settings; what is not told is the weights' own choice."""
    least = {
        "steps": 1,
        "overshoot": 0,
        "audio_guidance": 1,
        "motion_guidance": 1,
        "motion_lead": 1,
    }
    for name, value in least.items():
        came = getattr(arguments, name)
        if came is not None and not value <= came < math.inf:
            flag = name.replace("_", "-")
            raise InputError(f"expected --{flag} of {value} or more, came {came}.")
    if arguments.shift is not None and not 0 < arguments.shift < math.inf:
        raise InputError(f"expected --shift above 0, came {arguments.shift}.")
    return pretrained.choose_settings(
        card,
        num_steps=arguments.steps,
        overshoot=arguments.overshoot,
        audio_guidance=arguments.audio_guidance,
        shift=arguments.shift,
        motion_lead=arguments.motion_lead,
        motion_guidance=arguments.motion_guidance,
    )


def format_summary(metrics: dict) -> str:
    """Return the figures as aligned lines."""
    return "\n".join(
        f"{name:32s} {metrics[name]:8.3f}   {what}; want {hope}"
        for name, (what, hope) in report.MEANING.items()
        if name in metrics
    )


def _run_demo(arguments: argparse.Namespace) -> None:
    started = time.time()
    out = Path(arguments.out)
    loaded = pretrained.load(arguments.weights)
    scores = score_demo(
        loaded,
        out,
        num_cases=arguments.cases,
        settings=make_settings(arguments, loaded.card),
        seed=arguments.seed,
        split=arguments.split,
    )
    metrics = scores.summary() | {"seconds_run": time.time() - started}
    command.write_json(out / "metrics.json", metrics)
    report.write_report(
        out / "report.html",
        metrics=metrics,
        scores=scores,
        videos=[{"side_by_side.mp4: held-out people": out / "side_by_side.mp4"}],
        notes=[f"Weights: {arguments.weights}"],
    )
    print(format_summary(metrics))


def _run_clips(arguments: argparse.Namespace) -> None:
    out, started = Path(arguments.out), time.time()
    records, blank = Path(arguments.records), arguments.blank_person
    loaded = pretrained.load(arguments.weights)
    if blank and not loaded.card.reference_latents:
        raise InputError(
            "expected weights that take a reference, came some that know the person "
            "from the still alone; leave --blank-person out."
        )
    settings = make_settings(arguments, loaded.card)
    cases = clip_cases.read_cases(
        records, out / "cases", size=loaded.card.size, limit=arguments.cases
    )
    gallery = clip_identity.read_gallery(records)
    swapped = clip_cases.swap_references(cases) if blank else []
    out.mkdir(parents=True, exist_ok=True)
    clip_cases.write_codec_cases(cases, loaded.codec)
    how = {"settings": settings, "seed": arguments.seed, "blank_person": blank}
    clip_cases.generate_cases(cases, loaded, name="generated", **how)
    clip_cases.generate_cases(swapped, loaded, name="swapped", **how)
    metrics = clip_scores.score_cases(cases, gallery=gallery, swapped=swapped)
    clip_scores.write_contact_sheet(out / "frames.png", cases, swapped)
    clip_scores.write_mouths(out / "mouths.png", cases)
    metrics |= {"weights": arguments.weights, "blank_person": blank}
    metrics |= {"seconds_run": time.time() - started}
    command.write_json(out / "metrics.json", metrics)
    print(clip_scores.format_scores(metrics))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m avatar_jax.evaluate",
        description="Score models, and train the judges that score them.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = "{demo,clips,train-judge,score-judge}"
    commands = parser.add_subparsers(required=True, metavar=names)
    demo = commands.add_parser("demo", help="score weights on held-out people")
    demo.set_defaults(run=_run_demo)
    demo.add_argument("--weights", default=str(pretrained.TINY_WEIGHTS))
    demo.add_argument("--cases", type=int, default=16, help="people, 2 or more")
    demo.add_argument(
        "--split",
        choices=("test", "validation"),
        default="test",
        help="people; choose settings on validation, report on test",
    )
    clips = commands.add_parser("clips", help="score weights on held-out real clips")
    clips.set_defaults(run=_run_clips)
    clips.add_argument("--records", required=True, metavar="FOLDER", help="of prepare")
    clips.add_argument("--weights", required=True)
    clips.add_argument("--cases", type=int, help="clips, 2 or more; else all held out")
    clips.add_argument(
        "--blank-person",
        action="store_true",
        help="show the person in a reference alone; the still is the empty scene",
    )
    for sub in (demo, clips):
        sub.add_argument("--out", default="scores", metavar="DIR")
        sub.add_argument("--steps", type=int, help="default: the weights'")
        sub.add_argument("--overshoot", type=float, help="default: the weights'")
        sub.add_argument("--audio-guidance", type=float, help="default: the weights'")
        sub.add_argument("--shift", type=float, help="default: the weights'")
        sub.add_argument("--motion-lead", type=float, help="default: the weights'")
        sub.add_argument("--motion-guidance", type=float, help="default: the weights'")
        sub.add_argument("--seed", type=int, default=0)
    judge_commands.add_commands(commands)
    return parser


def cli() -> int:
    """Run the command; 2 for bad input."""
    return command.run(main)


if __name__ == "__main__":
    sys.exit(cli())
