"""From files to what TAVR's protocol samples from: a batch of one.

The person in the scene is always blanked, so that looks come from the reference alone,
of which one window of one clip is read. Speech drives the video through its rows at
25 Hz, with the silence that TAVR puts behind it.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from avatar_jax.media import decode, detectors, faces, fitting
from avatar_jax.models import speech_features
from avatar_jax.sampling import pictures, request, tavr, tavr_pictures, video
from avatar_jax.sampling.pretrained import Pretrained
from avatar_jax.types import FRAMES_PER_LATENT, SAMPLES_PER_FRAME, InputError, Reference


class _Clip(NamedTuple):
    """The person's clip: how it is cropped, and which latents of it are read."""

    path: Path
    crop: tuple[int, int, int, int] | None  # left, top, right, bottom; None: whole
    frames: int  # 25 fps, that count
    window: slice  # latents

    def read(self) -> UInt8[np.ndarray, "frames Y X 3"]:
        """Decode it to the end of the window."""
        kept = itertools.islice(
            decode.iter_frames(self.path), FRAMES_PER_LATENT * self.window.stop
        )
        return np.stack([_cut(frame, self.crop) for frame in kept])


def prepare(
    asked: request.Request, pretrained: Pretrained
) -> tuple[video.Prepared, video.Plan, Float[np.ndarray, " samples"]]:
    """Read the files and encode them: a batch of one, its plan, the speech to play.

    Raises:
      InputError: a file that is missing, unreadable, without sound, without a face or
        too short; several references.
    """
    if len(asked.reference) > 1:
        raise InputError(
            f"expected one reference video, which is what TAVR reads, came "
            f"{len(asked.reference)}; give the best one."
        )
    card = pretrained.card
    finder = _face_detector(asked.face_detector)
    wave = request.read_speech(asked.audio, seconds=asked.seconds)
    rows, plan = _drive(pretrained, wave)
    bucket = _choose_bucket(asked, card.shape)
    clip = _choose_clip(asked, pretrained, plan, bucket, finder)
    frames = clip.read()
    still = _read_still(asked.still, frames, clip, finder)
    scene = tavr_pictures.prepare_scene(
        still,
        bucket=bucket,
        people=detectors.PeopleOfFaces(finder),
        codec=pretrained.codec,
    )
    negative = asked.negative_prompt or card.negative_prompt
    text = pretrained.text([asked.prompt, "", negative])
    prepared = video.Prepared(
        still=scene.still,
        speech=rows,
        text=jnp.asarray(text[:1]),
        null_text=jnp.asarray(text[1:2]),
        negative_text=jnp.asarray(text[2:]),
        reference=_encode_reference(pretrained, clip, frames, bucket, finder),
        still_valid=jnp.asarray(scene.valid),
    )
    return prepared, plan, wave


def _drive(
    pretrained: Pretrained, wave: Float[np.ndarray, " samples"]
) -> tuple[Float[np.ndarray, "1 rows Da"], video.Plan]:
    """Return the rows of driving speech, and the plan of a video as long."""
    driving = pretrained.speech
    if not isinstance(driving, speech_features.DrivingSpeech):
        raise InputError(
            "expected the speech encoder wav2vec2, which TAVR's protocol asks for, "
            f"came {pretrained.card.speech}; set speech in the config."
        )
    track = driving.track(wave)
    plan = tavr.make_plan(track.frames, pretrained.card.chunk_latents)
    shown = min(track.frames, request.count_speech_frames(wave))
    plan = dataclasses.replace(plan, shown_frames=shown)
    return tavr.hold_last(track.rows[None], plan), plan


def _choose_bucket(asked: request.Request, size: fitting.Size) -> fitting.Size:
    """Choose between the model's size and the same upright, as the scene lies."""
    first = next(decode.iter_frames(asked.still or asked.reference[0]))
    return fitting.choose_bucket(first.shape[:2], (size, size[::-1]))


def _face_detector(path: Path | None) -> detectors.FaceDetector:
    return detectors.Cascade() if path is None else detectors.load_yunet(path)


def _choose_clip(
    asked: request.Request,
    pretrained: Pretrained,
    plan: video.Plan,
    bucket: fitting.Size,
    finder: detectors.FaceDetector,
) -> _Clip:
    """Choose crop and window of the reference."""
    card, (path,) = pretrained.card, asked.reference
    crop = None
    if asked.crop == "face":
        crop = tavr_pictures.choose_crop(
            decode.iter_frames(path),
            bucket=bucket,
            detector=detectors.FollowedFace(finder),
        )
    longest = tavr_pictures.count_read(plan.num_frames, cropped=crop is not None)
    frames = sum(1 for _ in itertools.islice(decode.iter_frames(path), longest))
    window = tavr_pictures.choose_window(
        frames,
        num_frames=plan.num_frames,
        num_chunks=plan.num_chunks,
        latents=card.reference_latents,
        cropped=crop is not None,
    )
    return _Clip(path, crop, frames, window)


def _read_still(
    path: Path | None,
    frames: UInt8[np.ndarray, "frames Y X 3"],
    clip: _Clip,
    finder: detectors.FaceDetector,
) -> UInt8[np.ndarray, "Y X 3"]:
    """Read the scene; without one, take the best frame of the window."""
    if path is not None:
        return next(decode.iter_frames(path))
    shown = frames[FRAMES_PER_LATENT * clip.window.start :]
    boxes, found = faces.track_face(shown, detect=detectors.Squares(finder))
    return (
        shown[pictures.choose_still(shown, boxes, found)] if found.any() else shown[0]
    )


def _encode_reference(
    pretrained: Pretrained,
    clip: _Clip,
    frames: UInt8[np.ndarray, "frames Y X 3"],
    bucket: fitting.Size,
    finder: detectors.FaceDetector,
) -> Reference:
    speech = None
    if pretrained.card.config.reference_audio_width:
        wave = decode.read_soundtrack(clip.path)
        if wave is not None:
            wave = wave[: clip.frames * SAMPLES_PER_FRAME]
            speech = pretrained.reference_speech(wave, len(frames))
    return tavr_pictures.prepare_reference(
        frames,
        window=clip.window,
        bucket=bucket,
        detector=detectors.FollowedFace(finder),
        codec=pretrained.codec,
        speech=speech,
    )


def _cut(
    frame: UInt8[np.ndarray, "Y X 3"], crop: tuple[int, int, int, int] | None
) -> UInt8[np.ndarray, "Y2 X2 3"]:
    if crop is None:
        return frame
    left, top, right, bottom = crop
    return frame[top:bottom, left:right]
