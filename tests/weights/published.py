"""Checkpoints as published, of tiny networks with random values, written to files."""

import json
import pickle
import zipfile

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.models.umt5 import UMT5Config
from avatar_jax.models.vae_config import WanVAEConfig
from avatar_jax.models.wav2vec2 import Wav2Vec2Config
from avatar_jax.weights import conversion, networks

HEADS = 2
WAN = DiTConfig(
    width=24,
    mlp_width=40,
    heads=HEADS,
    layers=3,
    channels=5,
    text_width=8,
    time_features=16,
    rotary_scale=1.0,
    remat=True,
    dtype="bfloat16",
)
TAVR = DiTConfig(
    width=24,
    mlp_width=40,
    heads=HEADS,
    layers=3,
    channels=5,
    text_width=8,
    time_features=16,
    audio_width=11,
    reference=True,
    reference_audio_width=9,
    adapter_rank=6,
    rotary_scale=1.5,
    remat=True,
    dtype="bfloat16",
)
WAV2VEC2 = Wav2Vec2Config(
    width=12,
    heads=2,
    mlp_width=20,
    layers=2,
    conv_widths=(6, 7),
    conv_kernels=(4, 3),
    conv_strides=(3, 2),
    positional_kernel=8,
    positional_groups=3,
)
CONFIGS = {
    "tavr": TAVR,
    "wan": WAN,
    "wan-vae": WanVAEConfig(width=2),
    "umt5": UMT5Config(
        vocabulary=37,
        width=12,
        heads=3,
        head_dim=5,
        mlp_width=20,
        layers=2,
        buckets=8,
    ),
    "wav2vec2": WAV2VEC2,
}
# What transformers' config.json says of it.
WAV2VEC2_FIELDS = {
    "hidden_size": 12,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "conv_dim": [6, 7],
    "conv_kernel": [4, 3],
    "conv_stride": [3, 2],
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 3,
}
KINDS = list(CONFIGS)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    BFLOAT16: "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
}


def options_of(kind, **changes):
    wishes = {} if kind not in ("tavr", "wan") else {"heads": HEADS}
    wishes |= {n: changes.pop(n) for n in list(changes) if n == "still_concat"}
    return conversion.Options(wishes=networks.Wishes(**wishes), **changes)


def make_tensors(kind, config=None, *, names=(), dtype=np.float32, seed=0):
    """Draw every tensor of a network's checkpoint."""
    network = networks.describe(kind, config or CONFIGS[kind], names)
    rng = np.random.default_rng(seed)
    return {
        entry.name: (0.3 * rng.standard_normal(entry.shape)).astype(dtype)
        for entry in network.entries
    }


def write_folder(folder, tensors, fields=None):
    """Write a folder of one file, and the config.json beside it."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    if fields is not None:
        (folder / "config.json").write_text(json.dumps(fields))
    return folder


def write_kind(folder, kind, **options):
    """Write a network as its authors do; return (path, tensors)."""
    tensors = make_tensors(kind, **options)
    fields = WAV2VEC2_FIELDS if kind == "wav2vec2" else None
    return write_folder(folder, tensors, fields), tensors


def write_archive(path, tensors, *, shared=(), **parts):
    """Write what torch.save makes of a state dict, with an own assembler of pickles.

    Args:
      shared: (name, storage, offset, shape, strides): views of a storage of that name.
      parts: see `write_zip`.
    """
    storages = {str(i): tensor for i, tensor in enumerate(tensors.values())}
    listed = [
        (name, str(i), 0, t.shape, np.array(t.strides) // t.itemsize)
        for i, (name, t) in enumerate(tensors.items())
    ]
    keys = {name: str(i) for i, name in enumerate(tensors)}
    listed += [(name, keys[of], *view) for name, of, *view in shared]
    lines = [
        say(name) + _tensor(key, storages[key], *view) for name, key, *view in listed
    ]
    write_zip(path, b"}(" + b"".join(lines) + b"u", storages, **parts)


def write_zip(path, code, storages=None, *, compression=zipfile.ZIP_STORED, order=b""):
    """Write an archive whose pickle is `code`."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("weights/data.pkl", b"\x80\x02" + code + b".")
        if order:
            archive.writestr("weights/byteorder", order)
        for key, tensor in (storages or {}).items():
            archive.writestr(f"weights/data/{key}", tensor.tobytes())


def say(value):
    """Return the opcodes that push a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def call(name):
    """Return the opcode that asks for module.name."""
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def _tensor(key, storage, offset, shape, strides):
    kind = call(f"torch.{_STORAGES[storage.dtype]}")
    where = b"(" + say("storage") + kind + say(key) + say("cpu")
    where += say(storage.size) + b"tQ"
    shape, strides = (say(tuple(int(n) for n in a)) for a in (shape, strides))
    rest = b"\x89" + call("collections.OrderedDict") + b")R"
    view = say(offset) + shape + strides
    return call("torch._utils._rebuild_tensor_v2") + b"(" + where + view + rest + b"tR"
