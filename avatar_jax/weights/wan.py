"""Names of a Wan2.1 text-to-video transformer's tensors, the original's and diffusers'.

Any `DiTConfig` can start from such a checkpoint: `entries` lists the tensors that the
config's network takes over. Flags, and the still beside every row, are channels that
Wan's patches lack (`Entry.added`); the role of the still is a vector of zeros.
"""

import re
from collections.abc import Iterator, Mapping

from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.types import InputError
from avatar_jax.weights.table import Entry

Shapes = Mapping[str, tuple[int, ...]]

HEAD_DIM = 128  # of every published size; no shape shows it
ROTARY_SCALE = 1.0
MADE = ("embed/still_role",)  # leaves without a tensor, which are zero
# A key of diffusers' dialect alone.
DIFFUSERS_KEY = "condition_embedder.time_proj.weight"
# Patterns of the original's names, tried in order; all that fit are applied.
_DIFFUSERS = (
    (r"^text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
    (r"^text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
    (r"^time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
    (r"^time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
    (r"^time_projection\.1\.", "condition_embedder.time_proj."),
    (r"^head\.head\.", "proj_out."),
    (r"^(head\.)?(.*)modulation$", r"\2scale_shift_table"),
    (r"\.self_attn\.", ".attn1."),
    (r"\.cross_attn\.", ".attn2."),
    (r"\.([qkv])\.", r".to_\1."),
    (r"\.o\.", ".to_out.0."),
    (r"\.ffn\.0\.", ".ffn.net.0.proj."),
    (r"\.ffn\.2\.", ".ffn.net.2."),
    (r"\.norm3\.", ".norm2."),  # the original's norm2 has no tensors
)


def entries(cfg: DiTConfig, *, flags: int = 0) -> list[Entry]:
    """List the tensors under the original names.

    Args:
      flags: channels of the checkpoint's patches behind those of the latents.
    """
    width, into = cfg.width, cfg.channels + flags
    patch = Entry(
        "patch_embedding.weight",
        (width, into, 1, cfg.patch, cfg.patch),
        "embed/patch/kernel",
        "patch",
        added=cfg.input_channels - into,
    )
    listed = [
        patch,
        Entry("patch_embedding.bias", (width,), "embed/patch/bias"),
        *mlp("text_embedding", "embed/text", (cfg.text_width, width, width)),
        *mlp("time_embedding", "embed/time", (cfg.time_features, width, width)),
        *linear("time_projection.1", "embed/modulation", width, 6 * width),
        Entry("head.modulation", (1, 2, width), "head_modulation"),
        *linear("head.head", "head", width, cfg.patch**2 * cfg.channels),
    ]
    for layer in range(cfg.layers):
        listed += _block(cfg, layer)
    return listed


def diffusers_name(name: str) -> str:
    """Turn an original name into that of diffusers."""
    for pattern, replacement in _DIFFUSERS:
        name = re.sub(pattern, replacement, name)
    return name


def read_config(
    shapes: Shapes, *, heads: int | None = None, still_concat: bool = False
) -> DiTConfig:
    """Build the config from the shapes of a checkpoint, under the original names.

    Precision and recomputation, which no shape shows, are those of `sizes.LARGE`.

    Args:
      heads: None: as many as have `HEAD_DIM` channels.
      still_concat: make room for the still's latents beside every row.

    Raises:
      InputError: a tensor that shows a size is missing, or sizes do not fit.
    """
    width, _, _, patch, _ = shape_of(shapes, "patch_embedding.weight", axes=5)
    if heads is None and width % HEAD_DIM:
        raise InputError(
            f"expected a width in multiples of {HEAD_DIM}, came {width}; say the "
            "number of heads with --heads."
        )
    cells = shape_of(shapes, "head.head.weight")[0]
    try:
        return DiTConfig(
            width=width,
            mlp_width=shape_of(shapes, "blocks.0.ffn.0.weight")[0],
            heads=width // HEAD_DIM if heads is None else heads,
            layers=_count_blocks(shapes),
            channels=cells // patch**2,
            patch=patch,
            text_width=shape_of(shapes, "text_embedding.0.weight")[1],
            time_features=shape_of(shapes, "time_embedding.0.weight")[1],
            rotary_scale=ROTARY_SCALE,
            still_concat=still_concat,
            remat=True,
            dtype="bfloat16",
        )
    except InputError:
        raise
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"the checkpoint's sizes do not fit: {error}") from None


def shape_of(shapes: Shapes, name: str, *, axes: int = 2) -> tuple[int, ...]:
    """Return the shape of a tensor that must be there, with that many axes.

    Raises:
      InputError: it is not.
    """
    shape = shapes.get(name)
    if shape is None or len(shape) != axes:
        came = "none" if shape is None else f"shape {list(shape)}"
        raise InputError(
            f"expected a tensor {name!r} of {axes} axes, came {came}; give a "
            "checkpoint of this network."
        )
    return tuple(shape)


def linear(
    name: str, path: str, into: int, out: int, layer: int | None = None
) -> Iterator[Entry]:
    """List the two tensors of a linear layer."""
    yield Entry(f"{name}.weight", (out, into), f"{path}/kernel", "dense", layer)
    yield Entry(f"{name}.bias", (out,), f"{path}/bias", layer=layer)


def norm(name: str, path: str, width: int, layer: int | None = None) -> Iterator[Entry]:
    """List the two tensors of a layer norm."""
    yield Entry(f"{name}.weight", (width,), f"{path}/scale", layer=layer)
    yield Entry(f"{name}.bias", (width,), f"{path}/bias", layer=layer)


def mlp(
    name: str, path: str, widths: tuple[int, int, int], layer: int | None = None
) -> Iterator[Entry]:
    """List the tensors of two linear layers with an activation between."""
    into, inner, out = widths
    yield from linear(f"{name}.0", f"{path}/inner", into, inner, layer)
    yield from linear(f"{name}.2", f"{path}/outer", inner, out, layer)


def attention(name: str, path: str, width: int, layer: int) -> Iterator[Entry]:
    """List the tensors of an attention with norms of queries and keys."""
    for part in "qkvo":
        yield from linear(f"{name}.{part}", f"{path}/{part}", width, width, layer)
    for part in ("norm_q", "norm_k"):
        scale = f"{path}/{part}/scale"
        yield Entry(f"{name}.{part}.weight", (width,), scale, layer=layer)


def _block(cfg: DiTConfig, layer: int) -> Iterator[Entry]:
    name, width = f"blocks.{layer}", cfg.width
    shape = (1, 6, width)
    yield Entry(f"{name}.modulation", shape, "blocks/modulation", layer=layer)
    yield from attention(f"{name}.self_attn", "blocks/attention", width, layer)
    yield from norm(f"{name}.norm3", "blocks/text_norm", width, layer)
    yield from attention(f"{name}.cross_attn", "blocks/text_attention", width, layer)
    widths = (width, cfg.mlp_width, width)
    yield from mlp(f"{name}.ffn", "blocks/feedforward", widths, layer)


def _count_blocks(shapes: Shapes) -> int:
    """Count the blocks that have any tensor."""
    return len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
