"""From files to what a video is made of: pictures, speech and prompt as arrays."""

import dataclasses
from concurrent import futures
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from avatar_jax.media import decode, loudness
from avatar_jax.sampling import pictures, video
from avatar_jax.sampling.pretrained import Pretrained
from avatar_jax.types import (
    FRAMES_PER_LATENT,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    InputError,
    Reference,
)

REFERENCE_FRAMES = 250  # read at most 10 s of the person's video
SEGMENT_LATENTS = 12  # longest reference segment


@dataclasses.dataclass(frozen=True)
class Request:
    """What the user asks for, as files and words.

    Attributes:
      still: scene picture (or video: its first frame); None: the best reference frame.
      seconds: of the speech; None: all of it.
    """

    reference: Path
    audio: Path
    still: Path | None = None
    prompt: str = ""
    negative_prompt: str = ""
    crop: pictures.Crop = "face"
    seconds: float | None = None


def prepare(
    request: Request, pretrained: Pretrained
) -> tuple[video.Prepared, video.Plan, Float[np.ndarray, " samples"]]:
    """Read the files and encode them: a batch of one, its plan, the speech to play.

    Raises:
      InputError: a file that is missing, unreadable, without sound, without a face,
        too short, or of a shape that the model does not take.
    """
    card = pretrained.card
    with futures.ThreadPoolExecutor(1) as pool:
        needed = FRAMES_PER_LATENT * card.reference_latents
        reading = pool.submit(_read_pictures, request, card.size, needed)
        wave = read_speech(request.audio, seconds=request.seconds)
        still, clip = reading.result()
    plan = video.Plan(count_speech_frames(wave), card.chunk_latents)
    prepared = encode(
        pretrained,
        still=still,
        clip=clip,
        wave=wave,
        plan=plan,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
    )
    return prepared, plan, wave


def encode(
    pretrained: Pretrained,
    *,
    still: UInt8[np.ndarray, "Y X 3"],
    clip: UInt8[np.ndarray, "frames Y X 3"],
    wave: Float[np.ndarray, " samples"],
    plan: video.Plan,
    prompt: str = "",
    negative_prompt: str = "",
) -> video.Prepared:
    """Encode pictures of the model's size, speech and prompts as a batch of one.

    Args:
      clip: the person's own video at 25 fps, read by models that take a reference.
    """
    text = pretrained.text([prompt, "", negative_prompt])
    speech = pretrained.speech(loudness.normalise(wave), plan.padded_frames)
    takes_reference = pretrained.card.reference_latents > 0
    return video.Prepared(
        still=pretrained.codec.encode(_to_video(still[None])),
        speech=speech[None],
        text=jnp.asarray(text[:1]),
        null_text=jnp.asarray(text[1:2]),
        negative_text=jnp.asarray(text[2:]),
        reference=encode_reference(pretrained, clip) if takes_reference else None,
    )


def read_speech(
    path: Path, *, seconds: float | None = None
) -> Float[np.ndarray, " samples"]:
    """Read 16 kHz mono speech, at most `seconds` of it."""
    wave = decode.read_audio(path)
    return wave if seconds is None else wave[: round(seconds * SAMPLE_RATE)]


def count_speech_frames(wave: Float[np.ndarray, " samples"]) -> int:
    """Count the 25 fps frames that last as long as the speech, at least one."""
    return max(1, round(len(wave) / SAMPLES_PER_FRAME))


def _read_pictures(
    request: Request, size: int, needed: int
) -> tuple[UInt8[np.ndarray, "Y X 3"], UInt8[np.ndarray, "frames Y X 3"]]:
    """Return the still and the person's video, both as the model sees them."""
    clip, best = pictures.read_portrait(
        request.reference,
        most=max(REFERENCE_FRAMES, needed),
        crop=request.crop,
        size=size,
    )
    if request.still is None:
        return clip[best], clip
    still, _ = pictures.read_portrait(
        request.still, most=1, crop=request.crop, size=size
    )
    return still[0], clip


def encode_reference(
    pretrained: Pretrained, clip: UInt8[np.ndarray, "frames Y X 3"]
) -> Reference:
    """Encode the first latents of the person's video in segments, all rows valid."""
    card, patch = pretrained.card, pretrained.card.config.patch
    needed = card.reference_latents * FRAMES_PER_LATENT
    if len(clip) < needed:
        raise InputError(
            f"expected a reference of {needed} frames or more at 25 fps, came "
            f"{len(clip)}; give a longer video."
        )
    step = SEGMENT_LATENTS * FRAMES_PER_LATENT
    segments = [
        pretrained.codec.encode_clips(
            _to_video(clip[start : min(start + step, needed)])
        )
        for start in range(0, needed, step)
    ]
    latents = jnp.concatenate(segments, axis=1)
    _, frames, rows, columns, _ = latents.shape
    return Reference(
        latents=latents,
        valid=jnp.ones((1, frames, rows // patch, columns // patch), bool),
        segment_ids=jnp.arange(frames)[None] // SEGMENT_LATENTS,
    )


def _to_video(
    frames: UInt8[np.ndarray, "frames Y X 3"],
) -> Float[Array, "1 frames Y X 3"]:
    return jnp.asarray(frames, jnp.float32)[None] / 127.5 - 1
