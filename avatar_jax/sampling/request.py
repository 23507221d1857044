"""From files to what a video is made of: pictures, speech and prompt as arrays."""

import dataclasses
import functools
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from avatar_jax.media import decode, detectors, loudness
from avatar_jax.sampling import person as people
from avatar_jax.sampling import pictures, video
from avatar_jax.sampling.pretrained import Pretrained
from avatar_jax.types import (
    FRAMES_PER_LATENT,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    InputError,
)

REFERENCE_FRAMES = 250  # read at most 10 s of each of the person's videos


@dataclasses.dataclass(frozen=True)
class Request:
    """What the user asks for, as files and words.

    Attributes:
      reference: videos of one person; a single path will do.
      still: scene picture (or video: its first frame); None: the best frame of the
        first reference.
      blank_person: of the still; the person is then known from the reference alone.
      seconds: of the speech; None: all of it.
      face_detector: weights of YuNet; None: OpenCV's cascade finds the faces.
    """

    reference: Path | tuple[Path, ...]
    audio: Path
    still: Path | None = None
    prompt: str = ""
    negative_prompt: str = ""
    crop: pictures.Crop = "face"
    blank_person: bool = False
    seconds: float | None = None
    face_detector: Path | None = None

    def __post_init__(self) -> None:
        if isinstance(self.reference, Path):
            object.__setattr__(self, "reference", (self.reference,))
        if not self.reference:
            raise InputError("expected a reference video of the person, came none.")


def prepare(
    request: Request, pretrained: Pretrained
) -> tuple[video.Prepared, video.Plan, Float[np.ndarray, " samples"]]:
    """Read the files and encode them: a batch of one, its plan, the speech to play.

    Raises:
      InputError: a file that is missing, unreadable, without sound, without a face or
        with several, too short, or of a shape that the model does not take.
    """
    if request.blank_person and not pretrained.card.reference_latents:
        raise InputError(
            "expected weights that take a reference, came some that know the person "
            "from the still alone; do not blank the person in it."
        )
    with futures.ThreadPoolExecutor(1) as pool:
        reading = pool.submit(_read_pictures, request, pretrained)
        wave = read_speech(request.audio, seconds=request.seconds)
        still, still_valid, clips = reading.result()
    plan = video.Plan(count_speech_frames(wave), pretrained.card.chunk_latents)
    prepared = encode(
        pretrained,
        still=still,
        still_valid=still_valid,
        person=clips,
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
    still_valid: Bool[np.ndarray, "h w"] | None = None,
    person: Sequence[people.PersonClip] = (),
    wave: Float[np.ndarray, " samples"],
    plan: video.Plan,
    prompt: str = "",
    negative_prompt: str = "",
) -> video.Prepared:
    """Encode pictures of the model's size, speech and prompts as a batch of one.

    Args:
      still_valid: patches of the still that show something; None: all.
      person: the person's own clips, read by models that take a reference.
    """
    text = pretrained.text([prompt, "", negative_prompt])
    speech = pretrained.speech(loudness.normalise(wave), plan.padded_frames)
    takes_reference = pretrained.card.reference_latents > 0
    if still_valid is None:
        cell = pretrained.patch_side
        still_valid = np.ones((still.shape[0] // cell, still.shape[1] // cell), bool)
    return video.Prepared(
        still=pretrained.codec.encode(pictures.to_video(still[None])),
        speech=speech[None],
        text=jnp.asarray(text[:1]),
        null_text=jnp.asarray(text[1:2]),
        negative_text=jnp.asarray(text[2:]),
        reference=people.encode_person(pretrained, person) if takes_reference else None,
        still_valid=jnp.asarray(still_valid)[None],
        # Weights that never learnt from codes do not look at their own either.
        motion_valid=jnp.full((1,), bool(pretrained.card.motion)),
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
    request: Request, pretrained: Pretrained
) -> tuple[
    UInt8[np.ndarray, "Y X 3"], Bool[np.ndarray, "h w"] | None, list[people.PersonClip]
]:
    """Return the still, its patches that show something (None: all), the person."""
    card = pretrained.card
    most = max(REFERENCE_FRAMES, FRAMES_PER_LATENT * card.reference_latents)
    detect = None
    if request.face_detector is not None:
        detect = detectors.Squares(detectors.load_yunet(request.face_detector))
    read = functools.partial(
        pictures.read_portrait, crop=request.crop, size=card.size, detect=detect
    )
    portraits = [read(path, most=most) for path in request.reference]
    scene = portraits[0]
    if request.still is not None:
        scene = read(request.still, most=1)
    still, valid = scene.frames[scene.best], None
    if request.blank_person:
        box, cell = scene.boxes[scene.best], pretrained.patch_side
        still, valid = pictures.blank_person(still, box, cell=cell)
    hears = card.reference_latents and card.config.reference_audio_width
    waves = [
        decode.read_soundtrack(path) if hears else None for path in request.reference
    ]
    clips = [
        people.PersonClip(portrait.frames, portrait.boxes, portrait.found, wave)
        for portrait, wave in zip(portraits, waves, strict=True)
    ]
    return still, valid, clips
