"""Which tensor of a published umT5 encoder is which of our parameters.

Two dialects name the same tensors: Wan's own (its .pth file) and that of transformers'
UMT5EncoderModel (diffusers' folders).
"""

from collections.abc import Collection, Mapping
from typing import Any

from avatar_jax.models.umt5 import UMT5Config
from avatar_jax.weights.table import Entry

# Our path in a layer -> its name there in Wan's and in transformers' dialect.
_LAYER = {
    "attention/q/kernel": ("attn.q", "layer.0.SelfAttention.q"),
    "attention/k/kernel": ("attn.k", "layer.0.SelfAttention.k"),
    "attention/v/kernel": ("attn.v", "layer.0.SelfAttention.v"),
    "attention/o/kernel": ("attn.o", "layer.0.SelfAttention.o"),
    "attention/distance": (
        "pos_embedding.embedding",
        "layer.0.SelfAttention.relative_attention_bias",
    ),
    "attention_norm/scale": ("norm1", "layer.0.layer_norm"),
    "feedforward/gate/kernel": ("ffn.gate.0", "layer.1.DenseReluDense.wi_0"),
    "feedforward/inner/kernel": ("ffn.fc1", "layer.1.DenseReluDense.wi_1"),
    "feedforward/outer/kernel": ("ffn.fc2", "layer.1.DenseReluDense.wo"),
    "feedforward_norm/scale": ("norm2", "layer.1.layer_norm"),
}
# transformers names the table of tokens twice, and writes either or both.
_SHARED, _OWN = "shared.weight", "encoder.embed_tokens.weight"
UNUSED = (_SHARED, _OWN)  # known where `entries` does not read them


def entries(cfg: UMT5Config, names: Collection[str] = ()) -> list[Entry]:
    """List the tensors, in the dialect that the names of a checkpoint speak.

    Args:
      names: of the checkpoint; none: Wan's dialect.
    """
    if _SHARED in names or _OWN in names:
        return _entries(cfg, 1, _OWN if _OWN in names else _SHARED)
    return _entries(cfg, 0, "token_embedding.weight")


def read_config(fields: Mapping[str, Any]) -> UMT5Config:
    """Build the config from the fields of a config.json of transformers."""
    return UMT5Config(
        vocabulary=fields["vocab_size"],
        width=fields["d_model"],
        heads=fields["num_heads"],
        head_dim=fields["d_kv"],
        mlp_width=fields["d_ff"],
        layers=fields["num_layers"],
        buckets=fields.get("relative_attention_num_buckets", 32),
        farthest=fields.get("relative_attention_max_distance", 128),
    )


def _entries(cfg: UMT5Config, dialect: int, table: str) -> list[Entry]:
    width, inner = cfg.width, cfg.heads * cfg.head_dim
    shapes = {
        "q/kernel": (inner, width),
        "k/kernel": (inner, width),
        "v/kernel": (inner, width),
        "o/kernel": (width, inner),
        "distance": (cfg.buckets, cfg.heads),
        "gate/kernel": (cfg.mlp_width, width),
        "inner/kernel": (cfg.mlp_width, width),
        "outer/kernel": (width, cfg.mlp_width),
    }
    block = ("blocks", "encoder.block")[dialect]
    norm = ("norm.weight", "encoder.final_layer_norm.weight")[dialect]
    listed = [Entry(table, (cfg.vocabulary, width), "embedding")]
    for layer in range(cfg.layers):
        for path, names in _LAYER.items():
            shape = shapes.get(path.partition("/")[2], (width,))
            layout = "dense" if path.endswith("kernel") else "same"
            name = f"{block}.{layer}.{names[dialect]}.weight"
            listed.append(Entry(name, shape, f"layers/{path}", layout, layer))
    return [*listed, Entry(norm, (width,), "norm/scale")]
