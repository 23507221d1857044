"""The codec and the encoders that a card names.

The small ones need no weights. Those of published models are read from a folder of
converted weights (`python -m avatar_jax.convert`), one folder for each:

  wan-vae    the codec "wan21"
  umt5       the text encoder "umt5", with its tokenizer.json or spiece.model
  wav2vec2   the speech encoder "wav2vec2"
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from avatar_jax import checkpoint
from avatar_jax.models import (
    codec,
    judges,
    speech,
    speech_features,
    text,
    tokenizer,
    umt5,
    vae,
    wav2vec2,
)
from avatar_jax.models.vae_config import WanVAEConfig
from avatar_jax.types import InputError


def make_codec(name: str, folder: Path) -> codec.LatentCodec:
    """Make the codec of latents.

    Raises:
      InputError: no codec of that name, or its weights are not in the folder.
    """
    if name == "wan21":
        cfg, params = _read(WanVAEConfig, folder / "wan-vae", "wan-vae")
        return vae.WanCodec(jax.device_put(params), cfg)
    channels = name.removeprefix("dct")
    if channels == name or not channels.isdigit():
        raise InputError(
            f"codec {name!r} is not known; expected dct<channels> or wan21."
        )
    return codec.DCTCodec(channels=int(channels))


def make_speech(name: str, folder: Path) -> speech.SpeechEncoder:
    """Make the encoder of driving speech.

    Raises:
      InputError: no encoder of that name, or its weights are not in the folder.
    """
    if name == "wav2vec2":
        cfg, params = _read(wav2vec2.Wav2Vec2Config, folder / "wav2vec2", "wav2vec2")
        layers = tuple(i * cfg.layers // 3 for i in range(4))  # TAVR: 0, 8, 16, 24
        return speech_features.DrivingSpeech(
            speech_features.Wav2Vec2Encoder(cfg, jax.device_put(params)), layers
        )
    if name != "log_mel":
        raise InputError(
            f"speech encoder {name!r} is not known; expected log_mel or wav2vec2."
        )
    return speech.LogMel()


def make_reference_speech(
    driving: speech.SpeechEncoder, null: Float[np.ndarray, " Dr"] | None
) -> speech.SpeechEncoder:
    """Make the encoder of the reference's own speech.

    Args:
      driving: that of driving speech, whose network serves both.
      null: the model's row for frames without speech.
    """
    if isinstance(driving, speech_features.DrivingSpeech):
        return speech_features.ReferenceSpeech(driving.encoder, null)
    return driving


def make_text(name: str, folder: Path, *, length: int, width: int) -> text.TextEncoder:
    """Make the encoder of prompts: `length` rows of `width` values.

    Choice: umT5 runs on the host, 11 GB that accelerators need for other things; a
    request encodes three prompts.

    Raises:
      InputError: no encoder of that name, or its weights are not in the folder.
    """
    if name == "umt5":
        cfg, params = _read(umt5.UMT5Config, folder / "umt5", "umt5")
        words = tokenizer.load(folder / "umt5")
        return umt5.UMT5Encoder(cfg, jax.device_put(params, _host()), words, length)
    if name != "bytes":
        raise InputError(f"text encoder {name!r} is not known; expected bytes or umt5.")
    return text.Bytes(length=length, width=width)


def load_judge(kind: judges.Kind, name: str) -> judges.Judge | None:
    """Load what reads codes or looks off a person's video; "" is none."""
    if not name:
        return None
    if name != "procedural":
        raise InputError(f"{kind} encoder {name!r} is not known; expected procedural.")
    return judges.load(judges.asset(kind, "training"))


def build(kind: type, fields: dict, path: str | Path) -> Any:
    """Build a frozen dataclass from metadata, or say which field is in the way.

    Raises:
      InputError: a field is missing, or not known.
    """
    known = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(fields) - set(known))
    absent = [
        name
        for name, field in known.items()
        if name not in fields and field.default is dataclasses.MISSING
    ]
    if unknown or absent:
        problem = f"unknown {unknown[0]}" if unknown else f"no {absent[0]}"
        raise InputError(
            f"the metadata of {path} has {problem} in {kind.__name__}; give weights "
            "that `python -m avatar_jax.train` or `convert` of this version wrote."
        )
    # JSON knows no tuples, and a config must be hashable.
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return kind(**fields)


def _read(kind: type, folder: Path, network: str) -> tuple[Any, dict]:
    if not checkpoint.is_converted(folder):
        raise InputError(
            f"expected converted weights in {folder}, came none; make them with "
            f"`python -m avatar_jax.convert {network} FILE {folder}`, or say with "
            "--encoders where they are."
        )
    params, metadata = checkpoint.load_weights(folder)
    return build(kind, metadata.get("config", {}), folder), params


@functools.cache
def _host() -> jax.Device:
    """Return the host's processor; the first device where JAX does not offer it."""
    try:
        return jax.devices("cpu")[0]
    except RuntimeError:
        return jax.devices()[0]
