"""Names of the Wan2.1 video autoencoder's tensors, the original's and diffusers'.

The original counts layers in the order of execution, as our tree does: `down_5` is its
`downsamples.5`. Nothing is stacked, since no two levels are alike.
"""

import re

import jax
from flax import traverse_util

from avatar_jax.models import vae
from avatar_jax.weights.table import Entry

_ENDS = {"kernel": "weight", "bias": "bias", "scale": "gamma"}
_PARTS = {
    "quant": "conv1",
    "post_quant": "conv2",
    "middle_in": "middle.0",
    "middle_attention": "middle.1",
    "middle_out": "middle.2",
    "norm_out": "head.0",
    "conv_out": "head.2",
    "conv_in": "conv1",
    "norm_1": "residual.0",
    "conv_1": "residual.2",
    "norm_2": "residual.3",
    "conv_2": "residual.6",
    "conv": "resample.1",
}
# Patterns of the original's names, tried in order; all that fit are applied.
_DIFFUSERS = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"\.conv1\.", ".conv_in."),
    (r"\.downsamples\.", ".down_blocks."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.head\.0\.", ".norm_out."),
    (r"\.head\.2\.", ".conv_out."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
)


def entries(cfg: vae.WanVAEConfig) -> list[Entry]:
    """List every tensor of a checkpoint under the original names."""
    tree = jax.eval_shape(lambda: vae.init_params(cfg, jax.random.key(0)))
    leaves = traverse_util.flatten_dict(tree, sep="/")
    return [_entry(path, leaf.shape) for path, leaf in leaves.items()]


def diffusers_name(name: str, residual_blocks: int = 2) -> str:
    """Turn an original name into that of diffusers.

    Args:
      residual_blocks: of `WanVAEConfig`; they say which upsampling level a slot is of.
    """
    for pattern, replacement in _DIFFUSERS:
        name = re.sub(pattern, replacement, name)
    found = re.search(r"\.upsamples\.(\d+)\.", name)
    if found is None:
        return name
    level, place = divmod(int(found[1]), residual_blocks + 2)
    part = f"resnets.{place}" if place <= residual_blocks else "upsamplers.0"
    return name.replace(found[0], f".up_blocks.{level}.{part}.")


def _entry(path: str, shape: tuple[int, ...]) -> Entry:
    """Say where a leaf of our tree is in the original."""
    *parts, end = path.split("/")
    name = ".".join([*map(_original_part, parts), _ENDS[end]])
    match end:
        case "kernel":
            *kernel, into, out = shape
            return Entry(name, (out, into, *kernel), path, "conv")
        case "scale":
            # One axis of length 1 for each of frames, rows, columns; attention is 2-D.
            axes = 2 if "middle_attention" in parts else 3
            return Entry(name, (*shape, *(1,) * axes), path)
        case _:
            return Entry(name, shape, path)


def _original_part(part: str) -> str:
    """Translate one module's name; some are the same."""
    slot = re.fullmatch(r"(down|up)_(\d+)", part)
    return f"{slot[1]}samples.{slot[2]}" if slot else _PARTS.get(part, part)
