"""Convert published weights, and back: `python -m avatar_jax.convert NETWORK IN OUT`.

Reads .safetensors (a file, shards, a folder) and archives of torch.save, whose code is
never run. Writes a folder that training starts from (`--config.init_from=OUT`) and
sampling reads. Takes the memory of a few tensors, whatever the size of the whole.
"""

import argparse
import dataclasses
import logging
import sys
import time
from typing import get_args

import jax

from avatar_jax import command, sharding
from avatar_jax.types import InputError
from avatar_jax.weights import conversion, export, leaves, networks

EXAMPLE = """examples:
  python -m avatar_jax.convert tavr tavr_transformer.safetensors weights/tavr \\
      --mesh fsdp=8
  python -m avatar_jax.convert wan-vae Wan2.1_VAE.pth weights/vae
  python -m avatar_jax.convert tavr weights/tavr back.safetensors --to safetensors"""


def main(argv: list[str]) -> None:
    """Convert by command line arguments."""
    arguments = _parser().parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # accelerators have nothing to do here
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax's, on how it stores
    if arguments.distributed:
        jax.distributed.initialize()
    start = time.perf_counter()
    if arguments.to == "safetensors":
        _check_export(arguments)
        count = export.export(
            arguments.network, arguments.source, arguments.out, arguments.dtype
        )
        print(f"wrote {count} tensors to {arguments.out}")
        return
    options = conversion.Options(
        mesh=parse_mesh(arguments.mesh),
        dtype=arguments.dtype,
        wishes=networks.Wishes(arguments.heads, arguments.still_concat),
    )
    done = conversion.convert(
        arguments.network, arguments.source, arguments.out, options
    )
    if jax.process_index() > 0:
        return
    print(
        f"wrote {arguments.out}: {done['tensors']} tensors, "
        f"{done['parameters']:,} parameters, {done['bytes'] / 1e9:.2f} GB in "
        f"{time.perf_counter() - start:.0f} s"
    )
    if done["unused"]:
        print(f"left out {done['unused']} tensors that are not used here")
    print(done["config"])


def parse_mesh(text: str) -> sharding.MeshConfig:
    """Read a mesh such as "fsdp=8,tensor=2".

    Raises:
      InputError: it is written in another way.
    """
    sizes = {}
    for part in filter(None, text.split(",")):
        axis, _, number = part.partition("=")
        if axis not in sharding.AXES or not number.isdigit():
            raise InputError(
                f"expected a mesh such as fsdp=8,tensor=2 of the axes "
                f"{', '.join(sharding.AXES)}, came {text!r}."
            )
        sizes[axis] = int(number)
    return dataclasses.replace(sharding.MeshConfig(), **sizes)


def cli() -> int:
    """Run the command; 2 for bad input."""
    return command.run(main)


def _check_export(arguments: argparse.Namespace) -> None:
    given = arguments.mesh, arguments.heads, arguments.still_concat
    if any(given) or arguments.distributed:
        raise InputError(
            "--mesh, --heads, --still-concat and --distributed are of conversions to "
            "our format; leave them out with --to safetensors."
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m avatar_jax.convert",
        description="Convert published weights to our format, or back.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("network", choices=get_args(networks.Kind))
    add("source", metavar="IN", help="checkpoint: a file, an index, or a folder")
    add("out", metavar="OUT", help="new folder; with --to safetensors, a file")
    add(
        "--to",
        choices=("orbax", "safetensors"),
        default="orbax",
        help="safetensors: from our format back to the original's names",
    )
    add(
        "--mesh",
        default="",
        metavar="AXIS=N,...",
        help="mesh that is going to read it, such as fsdp=8; files are cut to its "
        "shards, and any other mesh can read them too",
    )
    add(
        "--dtype",
        choices=tuple(leaves.DTYPES),
        help="default: the checkpoint's; norms, modulation and what t passes through "
        "stay float32",
    )
    add("--heads", type=int, metavar="N", help="default: as many as have 128 channels")
    add(
        "--still-concat",
        action="store_true",
        help="make room for the still's latents beside every row",
    )
    add(
        "--distributed",
        action="store_true",
        help="one of several processes of a cluster that jax.distributed knows, each "
        "of which reads and writes its share; OUT is a folder that all see",
    )
    return parser


if __name__ == "__main__":
    sys.exit(cli())
