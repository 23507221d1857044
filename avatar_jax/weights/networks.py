"""The published networks: which one a checkpoint holds, and where its tensors belong.

What a network is, is read from names and shapes; fields of the config.json of
transformers, where it lies beside, say what shapes do not show.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.models.umt5 import UMT5Config
from avatar_jax.models.vae_config import WanVAEConfig
from avatar_jax.models.wav2vec2 import Wav2Vec2Config
from avatar_jax.types import InputError
from avatar_jax.weights import tavr, umt5, wan, wan_vae, wav2vec2
from avatar_jax.weights.table import Entry
from avatar_jax.weights.wan import Shapes

Kind = Literal["tavr", "wan", "wan-vae", "umt5", "wav2vec2"]

_WAV2VEC2_KEY = "feature_extractor.conv_layers.0.conv.weight"
_VAE_DIFFUSERS_KEY = "quant_conv.weight"
# One key of each network, in each of its dialects; the first that is found decides.
_KEYS: tuple[tuple[str, Kind], ...] = (
    (tavr.KEY, "tavr"),
    ("patch_embedding.weight", "wan"),
    ("decoder.upsamples.0.residual.2.weight", "wan-vae"),
    (_VAE_DIFFUSERS_KEY, "wan-vae"),
    ("blocks.0.pos_embedding.embedding.weight", "umt5"),
    ("encoder.block.0.layer.0.SelfAttention.q.weight", "umt5"),
    (_WAV2VEC2_KEY, "wav2vec2"),
    (wav2vec2.PREFIX + _WAV2VEC2_KEY, "wav2vec2"),
)


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of a checkpoint.

    Attributes:
      kind: which one.
      config: of our network with these weights.
      entries: one for each tensor that is read, in the checkpoint's own dialect.
      made: leaves that have no tensor there, which are zero, with their shapes.
      unused: beginnings of names that may be there and are not read.
    """

    kind: Kind
    config: Any
    entries: list[Entry]
    made: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    unused: tuple[str, ...] = ()

    def is_unused(self, name: str) -> bool:
        """Tell whether a tensor may be there without being read."""
        return name.startswith(self.unused)


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What a user says of a transformer, as shapes do not."""

    heads: int | None = None
    still_concat: bool = False


def identify(
    kind: Kind,
    shapes: Shapes,
    fields: Mapping[str, Any] | None = None,
    wishes: Wishes | None = None,
) -> Network:
    """Say what network the tensors of a checkpoint are.

    Args:
      kind: that is expected.
      shapes: of all tensors, by name.
      fields: of a config.json of transformers, if there is one.

    Raises:
      InputError: they are another network's, or a size cannot be read from them.
    """
    found = find_kind(shapes)
    if found != kind:
        some = ", ".join(map(repr, list(shapes)[:2])) or "none"
        known = f"which is {found}" if found else "which no known network has"
        raise InputError(
            f"expected the tensors of {kind}, came {len(shapes)} ({some}, ...), "
            f"{known}; give another file{f' or convert {found}' if found else ''}."
        )
    wishes = wishes or Wishes()
    if kind not in ("tavr", "wan") and wishes != Wishes():
        raise InputError(
            f"--heads and --still-concat are of tavr and wan, came {kind}; leave them."
        )
    if fields is not None and "hidden_size" not in fields and "d_model" not in fields:
        fields = None  # not of transformers
    match kind:
        case "tavr" | "wan":
            return _read_transformer(kind, shapes, wishes)
        case "wan-vae":
            return _read_vae(shapes)
        case "umt5":
            return _read_umt5(shapes, fields)
        case "wav2vec2":
            return _read_wav2vec2(shapes, fields)


def describe(kind: Kind, config: Any, names: Collection[str] = ()) -> Network:
    """Return the network of a config, as a checkpoint to write.

    Args:
      names: of the checkpoint, which show its dialect; none: the original's.
    """
    match kind:
        case "tavr":
            return Network(kind, config, tavr.entries(config))
        case "wan":
            entries, name = wan.entries(config), wan.diffusers_name
            if wan.DIFFUSERS_KEY in names:
                entries = _rename(entries, name)
            made = {path: (config.width,) for path in wan.MADE}
            return Network(kind, config, entries, made)
        case "wan-vae":
            entries = wan_vae.entries(config)
            if _VAE_DIFFUSERS_KEY in names:
                entries = _rename(
                    entries,
                    lambda n: wan_vae.diffusers_name(n, config.residual_blocks),
                )
            return Network(kind, config, entries)
        case "umt5":
            entries = umt5.entries(config, names)
            return Network(kind, config, entries, unused=umt5.UNUSED)
        case "wav2vec2":
            entries = wav2vec2.entries(config, names)
            return Network(kind, config, entries, unused=wav2vec2.UNUSED)


def find_kind(names: Collection[str]) -> Kind | None:
    """Tell which network has tensors of these names."""
    return next((kind for key, kind in _KEYS if key in names), None)


def read_config(kind: Kind, fields: Mapping[str, Any]) -> Any:
    """Build a config from the plain values that `dataclasses.asdict` made of it.

    Raises:
      InputError: they are not of that network's config.
    """
    cls = _CONFIGS[kind]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"expected the config of {kind}, came another ({error}); give weights of "
            "that network."
        ) from None


def _rename(entries: list[Entry], rename: Callable[[str], str]) -> list[Entry]:
    return [dataclasses.replace(entry, name=rename(entry.name)) for entry in entries]


def _read_transformer(kind: Kind, shapes: Shapes, wishes: Wishes) -> Network:
    read = tavr.read_config if kind == "tavr" else wan.read_config
    config = read(_original(shapes), **dataclasses.asdict(wishes))
    return describe(kind, config, shapes)


def _original(shapes: Shapes) -> Shapes:
    """Return the shapes that show sizes under original names, whatever the dialect."""
    if wan.DIFFUSERS_KEY not in shapes:
        return shapes
    shown = (
        "patch_embedding.weight",
        "head.head.weight",
        "blocks.0.ffn.0.weight",
        "text_embedding.0.weight",
        "time_embedding.0.weight",
    )
    known = {name: wan.diffusers_name(name) for name in shown}
    renamed = {name: shapes[n] for name, n in known.items() if n in shapes}
    return {n: s for n, s in shapes.items() if n.startswith("blocks.")} | renamed


def _read_vae(shapes: Shapes) -> Network:
    dialect = _VAE_DIFFUSERS_KEY in shapes
    name = "encoder.conv1.weight"
    name = wan_vae.diffusers_name(name) if dialect else name
    width = wan.shape_of(shapes, name, axes=5)[0]
    return describe("wan-vae", WanVAEConfig(width=width), shapes)


def _read_umt5(shapes: Shapes, fields: Mapping[str, Any] | None) -> Network:
    if fields is not None and "d_model" in fields:
        return describe("umt5", umt5.read_config(fields), shapes)
    ends = (".attn.q.weight", ".SelfAttention.q.weight")
    layers = sum(name.endswith(ends) for name in shapes)
    sizes = UMT5Config(layers=layers)
    first = {e.path: e.name for e in umt5.entries(sizes, shapes) if not e.layer}
    vocabulary, width = wan.shape_of(shapes, first["embedding"])
    buckets, heads = wan.shape_of(shapes, first["layers/attention/distance"])
    config = dataclasses.replace(
        sizes,
        vocabulary=vocabulary,
        width=width,
        heads=heads,
        head_dim=wan.shape_of(shapes, first["layers/attention/q/kernel"])[0] // heads,
        mlp_width=wan.shape_of(shapes, first["layers/feedforward/inner/kernel"])[0],
        buckets=buckets,
    )
    return describe("umt5", config, shapes)


def _read_wav2vec2(shapes: Shapes, fields: Mapping[str, Any] | None) -> Network:
    """Read transformers' fields; without them it must have the sizes of LARGE."""
    known = fields is not None and "hidden_size" in fields
    config = wav2vec2.read_config(fields) if known else Wav2Vec2Config()
    return describe("wav2vec2", config, shapes)


_CONFIGS: dict[Kind, type] = {
    "tavr": DiTConfig,
    "wan": DiTConfig,
    "wan-vae": WanVAEConfig,
    "umt5": UMT5Config,
    "wav2vec2": Wav2Vec2Config,
}
