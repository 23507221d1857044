"""Which tensor of a published wav2vec 2.0 is which of our parameters.

Names are those of transformers, with or without the prefix of the model with a head.
The positional convolution is stored as size and direction of its taps (weight norm),
for which there are two pairs of names.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from avatar_jax.models.wav2vec2 import Wav2Vec2Config
from avatar_jax.weights.table import Entry

PREFIX = "wav2vec2."
# Prefixes of tensors that belong to training or to a head: known, never read.
UNUSED = (
    "lm_head.",
    "wav2vec2.masked_spec_embed",
    "masked_spec_embed",
    "quantizer.",
    "project_hid.",
    "project_q.",
    "projector.",
    "classifier.",
)
_POSITIONS = "encoder.pos_conv_embed.conv."
_OLD = ("weight_g", "weight_v")
_NEW = ("parametrizations.weight.original0", "parametrizations.weight.original1")
# Ours in a layer -> theirs.
_LINEAR = {
    "attention/q": "attention.q_proj",
    "attention/k": "attention.k_proj",
    "attention/v": "attention.v_proj",
    "attention/o": "attention.out_proj",
    "feedforward/inner": "feed_forward.intermediate_dense",
    "feedforward/outer": "feed_forward.output_dense",
}
_NORMS = {"attention_norm": "layer_norm", "feedforward_norm": "final_layer_norm"}


def entries(cfg: Wav2Vec2Config, names: Collection[str] = ()) -> list[Entry]:
    """List the tensors, under the names that a checkpoint has for them.

    Args:
      names: of the checkpoint; none: those that transformers writes today.
    """
    prefix = PREFIX if not names or any(n.startswith(PREFIX) for n in names) else ""
    old = prefix + _POSITIONS + _OLD[0] in names
    listed = [
        *_features(cfg),
        *_positions(cfg, _OLD if old else _NEW),
        *_norm("encoder.layer_norm", "norm", cfg.width),
    ]
    for layer in range(cfg.layers):
        listed += _layer(cfg, layer)
    return [Entry(prefix + e.name, e.shape, e.path, e.layout, e.layer) for e in listed]


def read_config(fields: Mapping[str, Any]) -> Wav2Vec2Config:
    """Build the config from the fields of a config.json of transformers.

    An absent field has transformers' default, which is the BASE layout.
    """
    get = fields.get
    return Wav2Vec2Config(
        width=get("hidden_size", 768),
        heads=get("num_attention_heads", 12),
        mlp_width=get("intermediate_size", 3072),
        layers=get("num_hidden_layers", 12),
        conv_widths=tuple(get("conv_dim", (512,) * 7)),
        conv_kernels=tuple(get("conv_kernel", (10, 3, 3, 3, 3, 2, 2))),
        conv_strides=tuple(get("conv_stride", (5, 2, 2, 2, 2, 2, 2))),
        conv_bias=get("conv_bias", False),
        conv_norm=get("feat_extract_norm", "group"),
        norm_first=get("do_stable_layer_norm", False),
        positional_kernel=get("num_conv_pos_embeddings", 128),
        positional_groups=get("num_conv_pos_embedding_groups", 16),
    )


def _features(cfg: Wav2Vec2Config) -> Iterator[Entry]:
    into = 1
    for i, (width, kernel) in enumerate(
        zip(cfg.conv_widths, cfg.conv_kernels, strict=True)
    ):
        theirs, ours = f"feature_extractor.conv_layers.{i}", f"features/conv_{i}"
        shape = (width, into, kernel)
        yield Entry(f"{theirs}.conv.weight", shape, f"{ours}/kernel", "conv")
        if cfg.conv_bias:
            yield Entry(f"{theirs}.conv.bias", (width,), f"{ours}/bias")
        if cfg.conv_norm == "layer" or i == 0:
            yield from _norm(f"{theirs}.layer_norm", f"features/norm_{i}", width)
        into = width
    yield from _norm("feature_projection.layer_norm", "projection_norm", into)
    yield from _linear("feature_projection.projection", "projection", cfg.width, into)


def _positions(cfg: Wav2Vec2Config, names: tuple[str, str]) -> Iterator[Entry]:
    taps = cfg.positional_kernel
    shape = (cfg.width, cfg.width // cfg.positional_groups, taps)
    yield Entry(_POSITIONS + "bias", (cfg.width,), "positions/bias")
    yield Entry(_POSITIONS + names[0], (1, 1, taps), "positions/scale")
    yield Entry(_POSITIONS + names[1], shape, "positions/direction", "conv")


def _layer(cfg: Wav2Vec2Config, layer: int) -> Iterator[Entry]:
    wide = {"inner": (cfg.mlp_width, cfg.width), "outer": (cfg.width, cfg.mlp_width)}
    for ours, theirs in _LINEAR.items():
        out, into = wide.get(ours.partition("/")[2], (cfg.width, cfg.width))
        name = f"encoder.layers.{layer}.{theirs}"
        yield from _linear(name, f"layers/{ours}", out, into, layer)
    for ours, theirs in _NORMS.items():
        name = f"encoder.layers.{layer}.{theirs}"
        yield from _norm(name, f"layers/{ours}", cfg.width, layer)


def _linear(
    name: str, path: str, out: int, into: int, layer: int | None = None
) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", (out, into), f"{path}/kernel", "dense", layer)
    yield Entry(f"{name}.bias", (out,), f"{path}/bias", layer=layer)


def _norm(
    name: str, path: str, width: int, layer: int | None = None
) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", (width,), f"{path}/scale", layer=layer)
    yield Entry(f"{name}.bias", (width,), f"{path}/bias", layer=layer)
