"""Stage 3 with the motion stream and without: does it bring the person's manner?

  python -m benchmarks.motion_stream --parent runs/stage2 --records records \\
      --steps 1000 --out runs/motion_stream

Trains both arms from the same weights with the same budget and seeds (a parent that has
the stream already loses it for the arm without), then scores held-out people as
`evaluate demo` does, numbers read back from mp4: the distance to their own manner, how
often it is the nearest of twenty (times chance), the lips. Each line has 95% bootstrap
intervals over people. The last lines pair the arms: each person's mean over seeds, on
minus off. An arm that is trained already is not again.

From a parent that was trained with the stream this is an ablation, of what pictures
lose when codes are taken away, rather than of what training with them brings.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from flax import traverse_util
from jaxtyping import Float

from avatar_jax import checkpoint, command, train
from avatar_jax.evaluation import demo_cases, demo_scores, personality_scores
from avatar_jax.evaluation.metrics import bootstrap
from avatar_jax.sampling import pretrained
from avatar_jax.types import InputError

CONFIG = "configs/stage3_personality.py"
ARMS = {"on": (), "off": ("--config.model.motion_width=0",)}
# What is scored: an arm, and by how much pictures are pushed towards its codes.
SAMPLED = {"off": ("off", 1.0), "on": ("on", 1.0), "on, guided 2": ("on", 2.0)}
FIGURES = ("style distance", "style, x chance", "sync")


def main(argv: list[str]) -> None:
    """Train, score and print."""
    args = _parse(argv)
    command.use_compilation_cache()
    weights = {
        (arm, seed): train_arm(args, arm, seed) for seed in args.seeds for arm in ARMS
    }
    by = personality_scores.load_judges()
    first = pretrained.load(next(iter(weights.values())))
    gallery = personality_scores.make_gallery(
        args.split, args.people, by, codec=first.codec, **_shape(first.card)
    )
    print(f"{args.steps} steps each from {args.parent}, {args.people} {args.split}")
    print(f"{'motion stream':<28}" + "".join(f"{name:>25}" for name in FIGURES))
    pooled = {}
    for label, (arm, guidance) in SAMPLED.items():
        rows = []
        for seed in args.seeds:
            settings = {"motion_guidance": guidance}
            path = weights[arm, seed]
            rows.append(score_arm(path, settings, by, gallery, args.people, args.split))
            _print(f"{label}, seed {seed}", rows[-1])
        pooled[label] = np.mean(rows, axis=0)
        _print(f"{label}, mean of seeds", pooled[label])
    for label in list(SAMPLED)[1:]:
        _print(f"{label} - off, paired", pooled[label] - pooled["off"])


def train_arm(args: argparse.Namespace, arm: str, seed: int) -> Path:
    """Train one arm; return its weights file.

    Raises:
      InputError: the run was stopped before its end.
    """
    workdir = args.out / f"{arm}_{seed}"
    train.main(
        [
            *("--config", CONFIG, "--workdir", str(workdir)),
            f"--config.init_from={_find_parent(args, arm)}",
            f"--config.data.directories={(args.records,)!r}",
            f"--config.steps={args.steps}",
            f"--config.evaluate_every={args.steps}",
            f"--config.seed={seed}",
            f"--config.data.seed={seed}",
            # The curriculum of 4,000 steps, in as many parts of fewer.
            f"--config.data.reference.cross_scene_from={args.steps // 4}",
            f"--config.human.ramp_steps={max(1, args.steps // 3)}",
            f"--config.optimizer.warmup_steps={max(1, args.steps // 10)}",
            *ARMS[arm],
        ]
    )
    weights = workdir / checkpoint.WEIGHTS_NAME
    if not weights.exists():
        raise InputError(
            f"expected a trained arm in {workdir}, but it was stopped before its end; "
            "the same command goes on with it."
        )
    return weights


def _find_parent(args: argparse.Namespace, arm: str) -> Path:
    """Return the parent's weights; for the arm without, those without the stream."""
    if arm == "on":
        return args.parent
    weights, metadata = checkpoint.load_parent(args.parent)
    kept = {
        key: leaf
        for key, leaf in traverse_util.flatten_dict(weights, sep="/").items()
        if not any(part.startswith(("motion", "manner")) for part in key.split("/"))
    }
    path = args.out / "parent_without_motion.safetensors"
    checkpoint.save_weights(path, traverse_util.unflatten_dict(kept, sep="/"), metadata)
    return path


def score_arm(
    path: Path,
    sampled: dict[str, float],
    by: personality_scores.Judges,
    gallery: personality_scores.Gallery,
    people: int,
    split: str,
) -> Float[np.ndarray, "3 people"]:
    """Return `FIGURES` for each of the first people of a split.

    Args:
      sampled: settings other than the weights' own.
    """
    loaded = pretrained.load(path)
    settings = pretrained.choose_settings(loaded.card, **sampled)
    with tempfile.TemporaryDirectory() as folder:
        cases = demo_cases.make_cases(
            Path(folder), people, split=split, **_shape(loaded.card)
        )
        prepared, plan = demo_scores.prepare_cases(cases, loaded)
        demo_scores.generate_cases(
            cases, loaded, prepared, plan=plan, settings=settings, seed=0
        )
        made = demo_scores.read_cases(cases, "generated")
    found = personality_scores.find(
        personality_scores.look(made, by), gallery, [case.person for case in cases]
    )
    lips = demo_scores.correlate_lips(cases, made, by.motion)
    return np.stack([found.style_distance, found.style_over_chance, lips])


def _shape(card: pretrained.Card) -> dict[str, int]:
    frames = demo_scores.case_frames(card.chunk_latents)
    return {"num_frames": frames, "size": card.size}


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--parent", type=Path, required=True, metavar="WEIGHTS", help="to train on")
    add("--records", required=True, metavar="FOLDER", help="of prepare procedural")
    add("--steps", type=int, default=1000, help="of each arm")
    add("--seeds", type=int, nargs="+", default=(0, 1, 2))
    add("--people", type=int, default=20, help="2 or more")
    add("--split", choices=("test", "validation"), default="validation")
    add("--out", type=Path, default=Path("runs/motion_stream"))
    return parser.parse_args(argv)


def _print(label: str, rows: Float[np.ndarray, "3 people"]) -> None:
    cells = "".join(f"{bootstrap.format_mean(row):>25}" for row in rows)
    print(f"{label:<28}{cells}", flush=True)


if __name__ == "__main__":
    sys.exit(command.run(main))
