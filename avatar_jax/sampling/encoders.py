"""The codec and the encoders that a card names."""

from avatar_jax.models import codec, judges, speech, text
from avatar_jax.types import InputError


def make_codec(name: str) -> codec.LatentCodec:
    """Make the codec of latents."""
    channels = name.removeprefix("dct")
    if channels == name or not channels.isdigit():
        raise InputError(f"codec {name!r} is not known; expected dct<channels>.")
    return codec.DCTCodec(channels=int(channels))


def make_speech(name: str) -> speech.SpeechEncoder:
    """Make the encoder of speech."""
    if name != "log_mel":
        raise InputError(f"speech encoder {name!r} is not known; expected log_mel.")
    return speech.LogMel()


def make_text(name: str, *, length: int, width: int) -> text.TextEncoder:
    """Make the encoder of prompts: `length` rows of `width` values."""
    if name != "bytes":
        raise InputError(f"text encoder {name!r} is not known; expected bytes.")
    return text.Bytes(length=length, width=width)


def load_judge(kind: judges.Kind, name: str) -> judges.Judge | None:
    """Load what reads codes or looks off a person's video; "" is none."""
    if not name:
        return None
    if name != "procedural":
        raise InputError(f"{kind} encoder {name!r} is not known; expected procedural.")
    return judges.load(judges.asset(kind, "training"))
