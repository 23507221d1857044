"""Clips and speech of a person, deterministic in (seed, person, scene, utterance)."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int, UInt8

from avatar_jax.data.talking_heads import (
    articulation,
    caption,
    motion,
    phonemes,
    render,
    voice,
)
from avatar_jax.data.talking_heads.people import Person
from avatar_jax.data.talking_heads.scene import sample_scene
from avatar_jax.types import FRAMES_PER_SECOND, SAMPLES_PER_FRAME, InputError


@dataclasses.dataclass(frozen=True, eq=False)
class TalkingClip:
    """A clip with its ground truth; 25 frames per second, 16 kHz, places in pixels."""

    frames: UInt8[np.ndarray, "frames Y X 3"]
    audio: Float[np.ndarray, " samples"]
    motion: Float[np.ndarray, "frames codes"]  # motion.MOTION_NAMES
    face_boxes: Float[np.ndarray, "frames 4"]  # x0 y0 x1 y1
    mouth_boxes: Float[np.ndarray, "frames 4"]
    keypoints: Float[np.ndarray, "frames keypoints 2"]  # geometry.KEYPOINT_NAMES
    phonemes: Int[np.ndarray, " frames"]  # into phonemes.NAMES
    masks: UInt8[np.ndarray, "frames Y X"]  # into render.MASK_NAMES
    caption: str
    identity: Float[np.ndarray, " I"]  # people.IDENTITY_NAMES


def make_speech(
    person: Person, utterance: int, num_frames: int
) -> tuple[
    Float[np.ndarray, " samples"],
    Int[np.ndarray, " frames"],
    Float[np.ndarray, "frames codes"],
]:
    """Say an utterance, drawing nothing: audio, phoneme per frame, motion codes."""
    if utterance < 0 or num_frames < 1:
        raise InputError(
            "expected an utterance of at least 0 and at least 1 frame, got "
            f"{utterance} and {num_frames}"
        )
    sentence = phonemes.speak(person, utterance, num_frames / FRAMES_PER_SECOND)
    tract = articulation.articulate(sentence, num_frames * motion.HOPS_PER_FRAME)
    wave = voice.synthesise(person, tract, utterance, num_frames * SAMPLES_PER_FRAME)
    codes = motion.move(person, sentence, tract, utterance, num_frames)
    times = (np.arange(num_frames) + 0.5) / FRAMES_PER_SECOND
    spoken = sentence.codes[sentence.sample(times)].astype(np.int32)
    return wave, spoken, codes


def make_clip(
    person: Person, *, scene: int, utterance: int, num_frames: int, size: int = 64
) -> TalkingClip:
    """Film an utterance in a scene; `size` is 64 to 512 pixels."""
    wave, spoken, codes = make_speech(person, utterance, num_frames)
    place = sample_scene(person, scene)
    drawn = render.render(person.looks, place, codes, size)
    return TalkingClip(
        frames=drawn.frames,
        audio=wave,
        motion=codes,
        face_boxes=drawn.face_boxes,
        mouth_boxes=drawn.mouth_boxes,
        keypoints=drawn.keypoints,
        phonemes=spoken,
        masks=drawn.masks,
        caption=caption.describe(person, place),
        identity=person.identity,
    )
