"""A person's own video as the network reads it: chosen windows and what goes along.

`windows` chooses what is shown of each clip; every window is a reference segment of its
own. What is left of the weights' budget of latents is padding: rows that nobody sees.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped, UInt8

from avatar_jax.data import references
from avatar_jax.media import faces, loudness
from avatar_jax.sampling import pictures, windows
from avatar_jax.sampling.pretrained import Pretrained
from avatar_jax.types import FRAMES_PER_LATENT, Reference


@dataclasses.dataclass(frozen=True)
class PersonClip:
    """A clip of one person at 25 fps, square, of the model's size."""

    frames: UInt8[np.ndarray, "frames size size 3"]
    boxes: Float[np.ndarray, "frames 4"]  # of the face, pixels
    found: Bool[np.ndarray, " frames"]  # else the box is interpolated
    wave: Float[np.ndarray, " samples"] | None = None  # 16 kHz from frame 0 on


@dataclasses.dataclass(frozen=True)
class _Segment:
    """One window of a clip: whole groups of four frames, and their speech."""

    frames: UInt8[np.ndarray, "frames size size 3"]
    boxes: Float[np.ndarray, "frames 4"]
    found: Bool[np.ndarray, " frames"]
    speech: Float[np.ndarray, "frames Dr"] | None  # None: silent clip, or not read


def portrait_clip(
    frames: UInt8[np.ndarray, "frames size size 3"],
    wave: Float[np.ndarray, " samples"] | None = None,
) -> PersonClip:
    """Return a clip of standard portraits: the face is believed to be in its place."""
    boxes, found = pictures.portrait_boxes(len(frames), frames.shape[1])
    return PersonClip(frames, boxes, found, wave)


def encode_person(pretrained: Pretrained, clips: Sequence[PersonClip]) -> Reference:
    """Encode `Card.reference_latents` latents of a person: a batch of one.

    Every part that the model has is given, and marked invalid where clips are silent or
    the card names no encoder; parts that it does not have are None.

    Raises:
      InputError: fewer than `windows.LEAST_FRAMES` frames with a face.
    """
    card = pretrained.card
    segments = _cut_segments(pretrained, clips)
    videos = [pictures.to_video(segment.frames) for segment in segments]
    latents = jnp.concatenate([pretrained.codec.encode_clips(v) for v in videos], 1)
    lengths = [len(segment.frames) // FRAMES_PER_LATENT for segment in segments]
    count = card.reference_latents
    ids = np.repeat(np.arange(len(segments)), lengths)
    cell = pretrained.patch_side
    valid = np.concatenate([_show_patches(segment, cell) for segment in segments])
    reference = Reference(
        latents=_lengthen(latents[0], count),
        valid=_lengthen(valid, count),
        segment_ids=_lengthen(ids, count, fill=len(segments)),
    )
    return _add_sound_and_looks(pretrained, reference, segments)


def choose_windows(
    clips: Sequence[PersonClip], *, latents: int, longest: int
) -> list[list[slice]]:
    """Choose what of each clip is shown (`windows.choose_windows`)."""
    tracks = [
        windows.Track(clip.found, pictures.mouth_brightness(clip.frames, clip.boxes))
        for clip in clips
    ]
    return windows.choose_windows(tracks, latents=latents, longest=longest)


def _cut_segments(
    pretrained: Pretrained, clips: Sequence[PersonClip]
) -> list[_Segment]:
    card = pretrained.card
    chosen = choose_windows(
        clips, latents=card.reference_latents, longest=card.segment_latents
    )
    segments = []
    for clip, cuts in zip(clips, chosen, strict=True):
        speech = None
        if cuts and clip.wave is not None and card.config.reference_audio_width:
            wave = loudness.normalise(clip.wave)
            speech = pretrained.reference_speech(wave, len(clip.frames))
        for cut in cuts:
            own = None if speech is None else speech[cut]
            parts = clip.frames[cut], clip.boxes[cut], clip.found[cut]
            segments.append(_Segment(*parts, own))
    return segments


def _add_sound_and_looks(
    pretrained: Pretrained, reference: Reference, segments: list[_Segment]
) -> Reference:
    """Add speech, motion codes, identity and face crops, where the model has them."""
    card, cfg = pretrained.card, pretrained.card.config
    rows = FRAMES_PER_LATENT * card.reference_latents
    if cfg.reference_audio_width:
        speech = [segment.speech for segment in segments]
        known = all(own is not None for own in speech)
        codes = np.concatenate(speech) if known else None
        audio, valid = _rows(codes, rows, cfg.reference_audio_width)
        reference = reference.replace(audio=audio, audio_valid=valid)
    frames, boxes, found = (
        np.concatenate([getattr(segment, name) for segment in segments])
        for name in ("frames", "boxes", "found")
    )
    if cfg.motion_width:
        codes = None
        if pretrained.motion is not None:
            codes = pretrained.motion.read(frames) - np.array(card.motion_mean)
            codes = codes / np.array(card.motion_std)
        motion, valid = _rows(codes, rows, cfg.motion_width)
        reference = reference.replace(motion=motion, motion_valid=valid)
    if cfg.identity_width:
        identity = _embed(pretrained, frames[found])
        reference = reference.replace(identity=identity)
    if card.face_crops:
        crops = _encode_faces(pretrained, frames[found], boxes[found])
        valid = jnp.ones(crops.shape[:2], bool)
        reference = reference.replace(faces=crops, faces_valid=valid)
    return reference


def _rows(
    codes: Float[np.ndarray, "frames D"] | None, count: int, width: int
) -> tuple[Float[Array, "1 count width"], Bool[Array, " 1"]]:
    """Return frame-rate rows of one length, and whether they say anything."""
    known = codes is not None
    codes = np.zeros((count, width), np.float32) if codes is None else codes
    return _lengthen(codes.astype(np.float32), count), jnp.array([known])


def _embed(
    pretrained: Pretrained, frames: UInt8[np.ndarray, "frames size size 3"]
) -> Float[Array, "1 I"]:
    """Average the frames' face embeddings to a unit vector; zeros without encoder."""
    if pretrained.identity is None:
        return jnp.zeros((1, pretrained.card.config.identity_width))
    mean = references.mean_direction(pretrained.identity.embed(frames))
    return jnp.asarray(mean, jnp.float32)[None]


def _encode_faces(
    pretrained: Pretrained,
    frames: UInt8[np.ndarray, "frames size size 3"],
    boxes: Float[np.ndarray, "frames 4"],
) -> Float[Array, "1 crops Hf Wf C"]:
    """Cut and encode face crops; a crop is held for the four frames of a latent."""
    card = pretrained.card
    crops = faces.face_crops(
        frames, boxes, card.face_crops, size=card.face_size, scale=faces.CROP_FACES
    )
    held = np.repeat(crops, FRAMES_PER_LATENT, axis=0)
    return pretrained.codec.encode_clips(pictures.to_video(held))


def _show_patches(segment: _Segment, cell: int) -> Bool[np.ndarray, "latents h w"]:
    """Say which patches of `cell` pixels show the face in any frame of a latent."""
    size = segment.frames.shape[1]
    edges = np.arange(0, size, cell)
    x0, y0, x1, y1 = faces.token_boxes(segment.boxes).T[..., None]
    across = (x0 < edges + cell) & (x1 > edges)
    down = (y0 < edges + cell) & (y1 > edges)
    touched = down[:, :, None] & across[:, None, :]
    groups = touched.reshape(-1, FRAMES_PER_LATENT, *touched.shape[1:]).any(axis=1)
    seen = segment.found.reshape(-1, FRAMES_PER_LATENT).any(axis=1)
    return groups & seen[:, None, None]


def _lengthen(
    rows: Shaped[Array, "rows ..."] | Shaped[np.ndarray, "rows ..."],
    count: int,
    *,
    fill: int = 0,
) -> Shaped[Array, "1 count ..."]:
    """Pad the rows of one sample to `count` and give them a batch axis."""
    padding = ((0, count - len(rows)), *[(0, 0)] * (rows.ndim - 1))
    return jnp.pad(jnp.asarray(rows), padding, constant_values=fill)[None]
