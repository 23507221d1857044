"""Make a talking video from files: `python -m avatar_jax.sample`."""

import argparse
import contextlib
import dataclasses
import hashlib
import math
import sys
import time
import typing
from pathlib import Path

import jax
from jax.sharding import Mesh

from avatar_jax import command
from avatar_jax.sampling import (
    chunk,
    delivery,
    placement,
    pretrained,
    request,
    tavr_request,
    video,
)
from avatar_jax.training import config as config_module
from avatar_jax.types import FRAMES_PER_SECOND, InputError

CONSENT = "the person in the reference agreed to this video"

EXAMPLE = """example:
  python -m avatar_jax.sample --reference me.mp4 --audio speech.wav \\
      --consent statement.txt --out avatar.mp4

avatar.json beside the video records consent, seed, settings and hashes."""


def main(argv: list[str]) -> None:
    """Sample by command line arguments."""
    arguments = _parser().parse_args(argv)
    started = time.time()
    consent = read_consent(arguments.consent, arguments.i_have_consent)
    out = Path(arguments.out)
    asked = _request(arguments)
    _check(arguments, out)
    hashed = hash_inputs(asked, Path(arguments.weights))
    command.use_compilation_cache()
    card = read_card_file(arguments.config) if arguments.config else None
    mesh = choose_mesh(arguments.devices)
    loaded = pretrained.load(arguments.weights, card, arguments.encoders, mesh)
    settings = _settings(arguments, loaded.card)
    delivered = delivery.Delivery(fps=arguments.fps, size=arguments.size)
    hidden = out.with_name(f".{out.name}")  # no video without its record
    prepare = {"avatar": request.prepare, "tavr": tavr_request.prepare}
    prepared, plan, wave = prepare[loaded.card.protocol](asked, loaded)
    ready = time.time()
    announce_compile(loaded, settings)
    with contextlib.nullcontext() if mesh is None else placement.entered(mesh):
        runs = video.generate(
            loaded, prepared, plan=plan, settings=settings, seed=arguments.seed
        )
        delivery.write_avatar(hidden, runs, wave, delivery=delivered)
    record = {
        "generated": True,
        "consent": consent,
        "seed": arguments.seed,
        "settings": dataclasses.asdict(settings),
        "delivery": dataclasses.asdict(delivered),
        **hashed,
        "model": loaded.card.to_metadata(),
        "frames": plan.frames_out,
        "chunks": plan.num_chunks,
        "seconds": {"prepare": ready - started, "generate": time.time() - ready},
    }
    command.write_json(out.with_suffix(".json"), record)
    hidden.replace(out)
    print(f"wrote {out} ({plan.frames_out / FRAMES_PER_SECOND:.1f} s)")


def read_consent(statement: str | None, acknowledged: bool) -> dict:
    """Return the record of the person's consent.

    Raises:
      InputError: neither a statement nor the acknowledgement was given.
    """
    if statement:
        path = Path(statement)
        if not path.is_file():
            raise InputError(f"expected a consent statement, {path} does not exist.")
        text = path.read_text(errors="replace").strip()
        if not text:
            raise InputError(f"expected a consent statement, {path} is empty.")
        return {"statement": text, **_hash_file(path)}
    if acknowledged:
        return {"acknowledged": CONSENT}
    raise InputError(
        f"expected consent: say that {CONSENT} with --i-have-consent, or give their "
        "statement with --consent FILE."
    )


def read_card_file(path: str | Path) -> pretrained.Card:
    """Read a config file that says what weights are and how they are sampled.

    Raises:
      InputError: no such file, or its values are not those of a card.
    """
    module = config_module.load_module(path, needs=("get_config",))
    return pretrained.read_card(module.get_config().to_dict(), path)


def choose_mesh(count: int) -> Mesh | None:
    """Lay one video over `count` devices; None for a single one.

    Raises:
      InputError: there are fewer.
    """
    devices = jax.devices()
    if not 1 <= count <= len(devices):
        raise InputError(
            f"expected --devices of 1 to {len(devices)}, the "
            f"{devices[0].device_kind} there are, came {count}."
        )
    return None if count == 1 else placement.make_mesh(devices[:count])


def announce_compile(loaded: pretrained.Pretrained, settings: chunk.Settings) -> None:
    """Say what the first chunk waits for."""
    card = loaded.card
    height, width = card.shape
    print(
        f"compiling {card.chunk_latents} latents of {width}x{height} px, "
        f"{settings.num_steps} steps, on {jax.devices()[0].device_kind}: up to a "
        f"minute the first time; kept in {jax.config.jax_compilation_cache_dir}",
        flush=True,
    )


def _settings(arguments: argparse.Namespace, card: pretrained.Card) -> chunk.Settings:
    return pretrained.choose_settings(
        card,
        num_steps=arguments.steps,
        solver=arguments.solver,
        overshoot=arguments.overshoot,
        audio_guidance=arguments.audio_guidance,
        text_guidance=arguments.text_guidance,
        motion_guidance=arguments.motion_guidance,
        shift=arguments.shift,
    )


def _request(arguments: argparse.Namespace) -> request.Request:
    detector = arguments.face_detector
    return request.Request(
        reference=tuple(Path(path) for path in arguments.reference),
        audio=Path(arguments.audio),
        still=Path(arguments.still) if arguments.still else None,
        prompt=arguments.prompt,
        negative_prompt=arguments.negative_prompt,
        crop=arguments.crop,
        blank_person=arguments.blank_person,
        seconds=arguments.seconds,
        face_detector=Path(detector) if detector else None,
    )


def _check(arguments: argparse.Namespace, out: Path) -> None:
    """Refuse values out of range before anything is read."""
    least = {
        "steps": 1,
        "fps": 1,
        "size": 0,
        "overshoot": 0,
        "audio_guidance": 1,
        "motion_guidance": 1,
        "text_guidance": 1,
    }
    for name, value in least.items():
        came = getattr(arguments, name)
        if came is not None and not value <= came < math.inf:
            flag = name.replace("_", "-")
            raise InputError(f"expected --{flag} of {value} or more, came {came}.")
    for name in ("shift", "seconds"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"expected --{name} above 0, came {value}.")
    if not out.parent.is_dir():
        raise InputError(f"expected a folder to write into, {out.parent} is none.")
    if out.suffix != ".mp4":
        raise InputError(f"expected --out to end in .mp4, came {out.name}.")
    written = {out.resolve(), out.with_suffix(".json").resolve()}
    given = [("reference", path) for path in arguments.reference]
    for name in ("audio", "still", "consent", "weights"):
        given.append((name, getattr(arguments, name)))
    for name, path in given:
        if path and Path(path).resolve() in written:
            raise InputError(
                f"expected --out beside the inputs, but it would replace {path}, the "
                f"--{name}; choose another name."
            )


def hash_inputs(asked: request.Request, weights: Path) -> dict:
    """Return a request and its weights as plain values; files with their SHA-256."""
    values = {
        name: _hash_file(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(asked).items()
    }
    values["reference"] = [_hash_file(path) for path in asked.reference]
    # A folder of converted weights has the hash of each tensor in its manifest.
    known = weights / "manifest.json" if weights.is_dir() else weights
    return {"request": values, "weights": _hash_file(known)}


def _hash_file(path: Path) -> dict:
    if not path.is_file():
        raise InputError(f"expected a file, {path} does not exist.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": str(path), "sha256": digest}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m avatar_jax.sample",
        description="Make a person of a reference video say a given speech.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--reference",
        required=True,
        nargs="+",
        action="extend",
        metavar="VIDEO",
        help="the person; several clips of them are welcome. The first 10 s of each "
        "are read; their speech counts if all have sound",
    )
    add("--audio", required=True, metavar="FILE", help="the speech, any container")
    add("--still", metavar="PICTURE", help="scene; default: best reference frame")
    add("--out", required=True, metavar="MP4")
    consent = parser.add_mutually_exclusive_group()
    consent.add_argument("--consent", metavar="FILE", help="the person's statement")
    consent.add_argument("--i-have-consent", action="store_true", help=CONSENT)
    add("--weights", default=str(pretrained.TINY_WEIGHTS), metavar="SAFETENSORS")
    add(
        "--config",
        metavar="FILE",
        help="such as configs/tavr.py: what the weights are, and how they are sampled, "
        "in place of what they say",
    )
    add(
        "--encoders",
        metavar="FOLDER",
        help="with wan-vae, umt5 and wav2vec2 in it, converted; default: the folder "
        "that the weights lie in",
    )
    add("--devices", type=int, default=1, help="that share the work; default: 1")
    add("--prompt", default="")
    add("--negative-prompt", default="", help="for --text-guidance above 1")
    add("--crop", choices=("face", "none"), default="face", help="none: as it is")
    add(
        "--face-detector",
        metavar="ONNX",
        help="YuNet's weights; default: OpenCV's own cascade",
    )
    add("--blank-person", action="store_true", help="grey in the still")
    add("--seconds", type=float, metavar="N", help="only the first N seconds")
    add("--fps", type=int, default=FRAMES_PER_SECOND, help="of the file")
    add("--size", type=int, default=0, help="pixels of its short side; 0: the model's")
    own = "; default: the weights' own"
    add("--steps", type=int, help=f"solver steps{own}")
    add("--solver", choices=typing.get_args(chunk.Solver), help=f"of steps{own}")
    add("--shift", type=float, help=f"of times; 5 for large pictures{own}")
    add("--overshoot", type=float, help=f"0: Euler; 1: the paper's{own}")
    add("--audio-guidance", type=float, help=f"1: off{own}")
    add("--motion-guidance", type=float, help=f"of the person's codes; 1: off{own}")
    add("--text-guidance", type=float, help=f"1: off{own}")
    add("--seed", type=int, default=42)
    return parser


def cli() -> int:
    """Run the command; 2 for bad input."""
    return command.run(main)


if __name__ == "__main__":
    sys.exit(cli())
