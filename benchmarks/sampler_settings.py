"""Which sampler settings suit weights, on validation people; do pictures obey codes.

  python -m benchmarks.sampler_settings --settings steps=4,shift=2 steps=8,overshoot=0

Each settings is a list of `steps`, `shift`, `overshoot`, `audio_guidance`,
`motion_guidance` and `motion_lead`; what is left out is the weights' own. Per settings:
the demo's figures, read from the frames themselves (no mp4 file in between), and with
--codes for each motion code

  obeyed   correlation, within clips, of the code that was sampled and of what the
           evaluation judge reads off the picture
  spread   deviation within clips of the sampled code over that of the true one

and whose manner the codes alone have, sampled and true.
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from avatar_jax.evaluation import demo_cases, demo_scores, judge_frames
from avatar_jax.evaluation import personality_scores as scores
from avatar_jax.evaluation.metrics import style, texture
from avatar_jax.sampling import chunk, pretrained, video

SPLIT, SEED = "validation", 0


def main() -> None:
    """Print a line per settings, and one per code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", default=str(pretrained.TINY_WEIGHTS))
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--settings", nargs="+", default=["motion_guidance=1"])
    parser.add_argument("--codes", action="store_true")
    args = parser.parse_args()
    loaded = pretrained.load(args.weights)
    card = loaded.card
    shape = {
        "num_frames": demo_scores.case_frames(card.chunk_latents),
        "size": card.size,
    }
    print(f"{jax.devices()[0].device_kind}, {args.cases} {SPLIT} people, {shape}")
    with tempfile.TemporaryDirectory() as folder:
        cases = demo_cases.make_cases(Path(folder), args.cases, split=SPLIT, **shape)
        prepared, plan = demo_scores.prepare_cases(cases, loaded)
    by = scores.load_judges()
    gallery = scores.make_gallery(SPLIT, args.cases, by, codec=loaded.codec, **shape)
    shown = [judge_frames.codec_round_trip(case.truth, loaded.codec) for case in cases]
    for text in args.settings:
        started = time.perf_counter()
        frames, codes = generate(loaded, prepared, plan, read_settings(text, card))
        seconds = time.perf_counter() - started
        seen = scores.look(frames, by)
        found = scores.find(seen, gallery, [case.person for case in cases])
        figures = {
            "first by looks": found.identity_first,
            "style x chance": found.style_over_chance,
            "style distance": found.style_distance,
            "sync": demo_scores.correlate_lips(cases, frames, by.motion),
            "sharpness": demo_scores.compare(texture.sharpness, frames, shown),
            "motion": demo_scores.compare(texture.motion, frames, shown),
        }
        line = ", ".join(f"{name} {row.mean():.3f}" for name, row in figures.items())
        print(f"{text}: {line}; {seconds:.0f} s with compiling")
        if args.codes and codes is not None:
            codes = codes * np.array(card.motion_std) + np.array(card.motion_mean)
            read = np.stack([by.motion.read(video) for video in frames])
            true = np.stack([case.motion for case in cases])
            print_codes(by.motion.names, codes, read, true)
            for name, tracks in {"sampled": codes, "true": true}.items():
                print_manner(name, tracks, seen, gallery, cases, by)


def read_settings(text: str, card: pretrained.Card) -> chunk.Settings:
    """Read `name=value,...`."""
    told = dict(pair.split("=") for pair in text.split(","))
    values = {name: float(value) for name, value in told.items()}
    if "steps" in values:
        values["num_steps"] = int(values.pop("steps"))
    return pretrained.choose_settings(card, **values)


def generate(
    loaded: pretrained.Pretrained,
    prepared: video.Prepared,
    plan: video.Plan,
    settings: chunk.Settings,
) -> tuple[
    list[UInt8[np.ndarray, "frames Y X 3"]],
    Float[np.ndarray, "cases frames Dm"] | None,
]:
    """Return each case's frames and its sampled codes."""
    made = list(
        video.sample_chunks(
            loaded.model,
            loaded.params,
            prepared,
            plan=plan,
            settings=settings,
            rng=jax.random.key(SEED),
        )
    )
    latents = (sample.latents for sample in made)
    runs = video.decode_stream(loaded.codec, latents, plan.num_frames)
    frames = np.concatenate(list(runs), axis=1)
    if made[0].motion is None:
        return list(frames), None
    codes = jnp.concatenate([sample.motion for sample in made], axis=1)
    return list(frames), np.asarray(codes)[:, : plan.num_frames]


def print_codes(
    names: tuple[str, ...], made: np.ndarray, read: np.ndarray, true: np.ndarray
) -> None:
    """Print `obeyed` and `spread` of each code."""
    made, read, true = (x - x.mean(axis=1, keepdims=True) for x in (made, read, true))
    both = (made * read).sum(axis=(0, 1))
    norm = np.sqrt((made**2).sum(axis=(0, 1)) * (read**2).sum(axis=(0, 1)))
    spread = made.std(axis=(0, 1)) / true.std(axis=(0, 1))
    for name, obeyed, ratio in zip(names, both / norm, spread, strict=True):
        print(f"  {name:16s} obeyed {obeyed:5.2f}   spread {ratio:5.2f}")


def print_manner(
    name: str,
    codes: Float[np.ndarray, "cases frames Dm"],
    seen: scores.Seen,
    gallery: scores.Gallery,
    cases: list[demo_cases.Case],
    by: scores.Judges,
) -> None:
    """Print whose manner codes themselves have, whatever the pictures show."""
    styles = style.describe(codes, by.motion.names)
    found = scores.find(
        dataclasses.replace(seen, styles=styles),
        gallery,
        [case.person for case in cases],
    )
    print(
        f"  {name} codes alone: style x chance {found.style_over_chance.mean():.3f}, "
        f"mean rank {found.style_rank.mean():.2f} of {scores.AMONG}, "
        f"style distance {found.style_distance.mean():.3f}"
    )


if __name__ == "__main__":
    main()
