"""How much a reference tells: looks and manner by its length, and details it may hide.

  python -m benchmarks.reference_length [--weights W --people 20 --seed 0]

First the held-out people of the demo, the person blanked in the still, against 1, 12,
24, 48 and 96 frames of their reference (the middle ones; a single frame has no speech
and fills one latent). Numbers are read back from mp4 files. Then paired references that
show a special tooth, a mole or an earring, or hide it (`benchmarks.hidden_details`).
All intervals are 95% bootstrap intervals over people.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax import command
from avatar_jax.evaluation import demo_cases, demo_scores, personality_scores
from avatar_jax.evaluation.metrics import bootstrap
from avatar_jax.media import decode
from avatar_jax.sampling import chunk, person, pretrained, windows
from avatar_jax.types import FRAMES_PER_LATENT, SAMPLES_PER_FRAME, InputError, Reference
from benchmarks import hidden_details

LENGTHS = (1, 12, 24, 48, 96)  # frames


def main(argv: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", default=str(pretrained.TINY_WEIGHTS))
    parser.add_argument("--people", type=int, default=20, help="2 or more")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    args = parser.parse_args(argv)
    command.use_compilation_cache()
    loaded = pretrained.load(args.weights)
    if not loaded.card.reference_latents:
        raise InputError(
            f"expected weights that take a reference, {args.weights} do not"
        )
    settings = pretrained.choose_settings(loaded.card)
    measure_lengths(
        loaded, settings, count=args.people, split=args.split, seed=args.seed
    )
    hidden_details.measure(loaded, count=args.people, split=args.split, seed=args.seed)


def measure_lengths(
    loaded: pretrained.Pretrained,
    settings: chunk.Settings,
    *,
    count: int,
    split: str,
    seed: int,
) -> None:
    """Print looks and manner of what is generated, for each length of reference."""
    by = personality_scores.load_judges()
    num_frames = demo_scores.case_frames(loaded.card.chunk_latents)
    shape = {"num_frames": num_frames, "size": loaded.card.size}
    gallery = personality_scores.make_gallery(
        split, count, by, codec=loaded.codec, **shape
    )
    columns = ("first by looks", "cosine", "style, x chance", "style distance")
    print(f"{count} people of {split}; means with 95% intervals")
    print(f"{'frames':>6}" + "".join(f"{name:>24}" for name in columns))
    with tempfile.TemporaryDirectory() as folder:
        cases = demo_cases.make_cases(Path(folder), count, split=split, **shape)
        prepared, plan = demo_scores.prepare_cases(cases, loaded)
        for length in LENGTHS:
            cut = [encode_frames(loaded, case, length) for case in cases]
            reference = jax.tree.map(lambda *rows: jnp.concatenate(rows), *cut)
            demo_scores.generate_cases(
                cases,
                loaded,
                prepared.replace(reference=reference),
                plan=plan,
                settings=settings,
                seed=seed,
            )
            found = personality_scores.find(
                personality_scores.look(demo_scores.read_cases(cases, "generated"), by),
                gallery,
                [case.person for case in cases],
            )
            rows = (
                found.identity_first,
                found.identity_cosine,
                found.style_over_chance,
                found.style_distance,
            )
            print(
                f"{length:6d}"
                + "".join(f"{bootstrap.format_mean(row):>24}" for row in rows)
            )


def encode_frames(
    loaded: pretrained.Pretrained, case: demo_cases.Case, length: int
) -> Reference:
    """Encode the middle frames of a case's reference.mp4, and their speech."""
    known = decode.read_video(case.folder / "reference.mp4")
    start = (len(known.frames) - length) // 2
    frames = known.frames[start : start + length]
    if length >= windows.LEAST_FRAMES:
        wave = known.audio[start * SAMPLES_PER_FRAME :][: length * SAMPLES_PER_FRAME]
        return person.encode_person(loaded, [person.portrait_clip(frames, wave)])
    held = np.resize(frames, (windows.LEAST_FRAMES, *frames.shape[1:]))
    reference = person.encode_person(loaded, [person.portrait_clip(held)])
    latents = -(-length // FRAMES_PER_LATENT)
    shown = reference.valid.at[:, latents:].set(False)
    return reference.replace(valid=shown)


if __name__ == "__main__":
    sys.exit(command.run(main))
