"""Say whether a config fits a topology: `python -m avatar_jax.plan`, without hardware.

The real programs of sampling or training are lowered and compiled for it; nothing is
downloaded, no records and no weights are needed.
"""

import argparse
import dataclasses
import json
import sys
from typing import Any

import jax
import ml_collections

from avatar_jax import command, sharding
from avatar_jax.models import sizes
from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.planning import hardware as hardware_module
from avatar_jax.planning import plans
from avatar_jax.planning import sampling as sampling_plan
from avatar_jax.planning import training as training_plan
from avatar_jax.sampling import placement, pretrained
from avatar_jax.training import config as config_module
from avatar_jax.types import InputError, count_latents

EXAMPLE = """examples:
  python -m avatar_jax.plan --config configs/tavr.py --topology v6e:2x4
  python -m avatar_jax.plan --config configs/tavr.py --topology h200:1 \\
      --frames 161 --references 12
  python -m avatar_jax.plan --config configs/stage3_personality.py --model large \\
      --topology v5p:4x4x8 --frames 161 --size 480x896 --references 12 --batch 32 \\
      --config.human.view=24 --config.human.crop=18

Any field of the config is set with --config.<field>=<value>."""
# Of the named sizes: parts that a stage switches on are the config's own.
SWITCHES = (
    "audio_width",
    "reference",
    "reference_audio_width",
    "faces",
    "identity_width",
    "motion_width",
)


def main(argv: list[str]) -> None:
    """Plan by command line arguments."""
    overrides, rest = command.split_overrides(argv)
    arguments = _parser().parse_args(rest)
    module = config_module.load_module(arguments.config, needs=("get_config",))
    config = module.get_config()
    for name, text in overrides:
        config_module.override(config, name, text)
    asked = _read_sizes(arguments)
    hardware = hardware_module.find(arguments.topology)
    if "objective" in config:
        made = _plan_training(module, config, hardware, asked)
    else:
        made = _plan_sampling(config, hardware, asked, arguments.config)
    subject, mesh, compiled = made
    plan = plans.Plan(
        config=str(arguments.config),
        subject=subject,
        hardware=hardware,
        mesh={axis: size for axis, size in mesh.shape.items() if size > 1},
        made=compiled,
    )
    print(plans.format_plan(plan))
    if arguments.json:
        print(json.dumps(plan.to_json()))


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the command line says of sizes; None: the config decides."""

    latents: int | None
    pixels: tuple[int, int] | None
    references: int | None
    clips: int | None
    model: str | None
    mesh: sharding.MeshConfig | None


def _plan_sampling(
    config: ml_collections.ConfigDict,
    hardware: hardware_module.Hardware,
    asked: Asked,
    path: str,
) -> tuple[str, Any, plans.Programs]:
    card = pretrained.read_card(config.to_dict(), path)
    changes: dict[str, Any] = {}
    if asked.model:
        changes["config"] = _resize(card.config, asked.model)
    if asked.latents:
        changes["chunk_latents"] = asked.latents
    if asked.pixels:
        changes |= dict(zip(("size", "width"), asked.pixels, strict=True))
    if asked.references is not None:
        changes["reference_latents"] = asked.references
        if card.segment_latents == card.reference_latents:  # one segment stays one
            changes["segment_latents"] = max(asked.references, 1)
    card = dataclasses.replace(card, **changes)
    mesh = placement.make_mesh(hardware.devices, asked.mesh)
    height, width = card.shape
    subject = (
        f"sampling: chunks of {card.chunk_latents} latents of {height}x{width} pixels, "
        f"{card.reference_latents} reference latents, {card.num_steps} steps"
    )
    return subject, mesh, sampling_plan.plan(card, mesh)


def _plan_training(
    module: Any,
    config: ml_collections.ConfigDict,
    hardware: hardware_module.Hardware,
    asked: Asked,
) -> tuple[str, Any, plans.Programs]:
    with config.unlocked():
        _apply(config, asked)
    run = module.get_run(config, records=False)
    cfg = config_module.build(DiTConfig, config.model.to_dict())
    shape = _shape_batch(cfg, config, asked.pixels or training_plan.PIXELS)
    mesh_config = asked.mesh or run.train.mesh
    if mesh_config == sharding.MeshConfig():
        mesh_config = training_plan.choose_mesh(
            run,
            cfg,
            shape,
            num_devices=len(hardware.devices),
            usable=hardware.usable,
        )
    mesh = sharding.make_mesh(mesh_config, hardware.devices)
    height, width = (side * cfg.spatial_stride for side in (shape.height, shape.width))
    subject = (
        f"training: {shape.clips} clips of {shape.latents} latents of {height}x{width} "
        f"pixels, {shape.reference_latents} reference latents"
    )
    return subject, mesh, training_plan.plan(run, cfg, shape, mesh)


def _apply(config: ml_collections.ConfigDict, asked: Asked) -> None:
    """Set the fields of a training config that the command line says."""
    if asked.model:
        model = config_module.build(DiTConfig, config.model.to_dict())
        sized = _resize(model, asked.model)
        config.model = ml_collections.ConfigDict(dataclasses.asdict(sized))
        config.objective.loss_space = sized.prediction
        config.objective.floor = sized.time_floor
    longest = max(config.data.buckets)
    latents, clips = asked.latents or longest[0], asked.clips or longest[1]
    config.data.buckets = ((latents, clips, 1.0),)
    segments, length = config.data.reference.segments, _segment_length(config)
    if asked.references is not None:
        if not length or asked.references % length or not asked.references:
            raise InputError(
                f"--references {asked.references} is no multiple of "
                f"data.reference.segment_latents={length}; use one, or set that field."
            )
        segments = (asked.references // length,)
    config.data.reference.segments = (max(segments),)


def _segment_length(config: ml_collections.ConfigDict) -> int:
    return config.data.reference.segment_latents


def _shape_batch(
    cfg: DiTConfig, config: ml_collections.ConfigDict, pixels: tuple[int, int]
) -> training_plan.BatchShape:
    side = cfg.patch * cfg.spatial_stride
    if any(length % side or length < side for length in pixels):
        raise InputError(
            f"pictures of {pixels[0]}x{pixels[1]} pixels do not divide into patches of "
            f"{side}x{side}; use multiples of {side}."
        )
    ((latents, clips, _),) = config.data.buckets
    height, width = (length // cfg.spatial_stride for length in pixels)
    length = _segment_length(config)
    return training_plan.BatchShape(
        clips=clips,
        latents=latents,
        height=height,
        width=width,
        text_rows=training_plan.count_text_rows(cfg),
        reference_latents=length * config.data.reference.segments[0],
        segment_latents=length,
    )


def _resize(model: DiTConfig, name: str) -> DiTConfig:
    """Give a stage's model a named size; what the stage switches on stays."""
    kept = {field: getattr(model, field) for field in SWITCHES}
    return dataclasses.replace(getattr(sizes, name.upper()), **kept)


def _read_sizes(arguments: argparse.Namespace) -> Asked:
    frames, latents = arguments.frames, None
    if frames is not None:
        latents = count_latents(frames)
        if frames < 1 or frames % 4 != 1 or latents < 3:
            raise InputError(
                f"--frames {frames} is not 4n+1 of 9 or more; use one like 81 or 161."
            )
    for name, least in (("references", 0), ("batch", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise InputError(f"--{name} {value} is too few; use {least} or more.")
    return Asked(
        latents=latents,
        pixels=_read_pixels(arguments.size),
        references=arguments.references,
        clips=arguments.batch,
        model=arguments.model,
        mesh=_read_mesh(arguments.mesh),
    )


def _read_pixels(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdigit() for side in sides):
        raise InputError(f"--size {text!r} is not HEIGHTxWIDTH, as 480x896.")
    return int(sides[0]), int(sides[1])


def _read_mesh(text: str | None) -> sharding.MeshConfig | None:
    """Read "fsdp=8,context=4"; axes that are not named are 1."""
    if text is None:
        return None
    axes = dict.fromkeys(sharding.AXES, 1)
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in axes or not size.isdigit():
            raise InputError(
                f"--mesh {text!r} has {part!r}; use parts as fsdp=8 of the axes "
                f"{', '.join(axes)}."
            )
        axes[name] = int(size)
    return sharding.MeshConfig(**axes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m avatar_jax.plan",
        description="Say whether a config fits a topology, without the hardware.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add, own = parser.add_argument, "default: the config's"
    add("--config", required=True, metavar="FILE", help="of training or of sampling")
    add(
        "--topology",
        required=True,
        metavar="KIND:SHAPE",
        help=f"TPUs by shape, GPUs by number: {hardware_module.EXAMPLES}",
    )
    add("--frames", type=int, metavar="N", help=f"of a chunk or clip, 4n+1; {own}")
    add("--size", metavar="HxW", help="pixels; default: the card's; training: 64x64")
    add("--references", type=int, metavar="R", help=f"reference latents; {own}")
    add("--batch", type=int, metavar="N", help=f"clips of a training step; {own}")
    names = [name.lower() for name in vars(sizes) if name.isupper()]
    add("--model", choices=names, help=f"a named size; {own}")
    add("--mesh", metavar="AXIS=N,...", help="as fsdp=32,context=4; default: chosen")
    add("--json", action="store_true", help="also as JSON, on the last line")
    return parser


def cli() -> int:
    """Run the command; 2 for bad input."""
    # Nothing runs on a device here; a chip that this machine has is left alone.
    jax.config.update("jax_platforms", "cpu")
    return command.run(main)


if __name__ == "__main__":
    sys.exit(cli())
