"""Held-out people with a speech they never gave before, as files a user would have.

The reference is filmed in one scene; still, truth and speech are of another. Whatever
scenes share is the person.
"""

import dataclasses
import wave
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from avatar_jax.data.talking_heads import clips, people
from avatar_jax.data.talking_heads.motion import MOTION_NAMES
from avatar_jax.evaluation.judge_frames import people_of
from avatar_jax.media import encode
from avatar_jax.sampling import request
from avatar_jax.types import SAMPLE_RATE

SEED = 0  # population; its test people are in no training set
REFERENCE_FRAMES = 100
# Sentences from here on are said in no training clip, and by one case each.
_FIRST_UTTERANCE = 1_000_000
_REFERENCE_SCENE, _TARGET_SCENE, _FIRST_OTHER_SCENE = 0, 1, 2
_OTHERS_UTTERANCE, _MOST_OTHERS = 10_000_000, 100  # per person


@dataclasses.dataclass(frozen=True)
class Case:
    """One person in one scene: what the system is given, and the truth."""

    folder: Path
    person: int
    caption: str
    still: UInt8[np.ndarray, "Y X 3"]
    speech: Float[np.ndarray, " samples"]
    truth: UInt8[np.ndarray, "frames Y X 3"]
    motion: Float[np.ndarray, "frames codes"]  # of the truth, exact

    @property
    def mouth_open(self) -> Float[np.ndarray, " frames"]:
        """The opening of the mouth alone."""
        return self.motion[:, MOTION_NAMES.index("mouth_open")]

    def request(self, *, blank_person: bool = False) -> request.Request:
        """Return this person's request, with the person in the still or without."""
        return request.Request(
            reference=(self.folder / "reference.mp4",),
            still=self.folder / "still.png",
            audio=self.folder / "speech.wav",
            crop="none",
            blank_person=blank_person,
        )


def make_cases(
    folder: Path, count: int, *, num_frames: int, size: int, split: str = "test"
) -> list[Case]:
    """Render `count` people of a split; write each one's files into its own folder."""
    indices = people_of(split, count)
    return [
        make_case(folder / f"case_{n:02d}", index, num_frames=num_frames, size=size)
        for n, index in enumerate(indices)
    ]


def make_case(folder: Path, index: int, *, num_frames: int, size: int) -> Case:
    """Render one person: reference.mp4, still.png, speech.wav and truth.mp4.

    The still is the first frame of the truth, as image-to-video models are driven.
    """
    person = people.sample_person(SEED, index)
    reference = clips.make_clip(
        person,
        scene=_REFERENCE_SCENE,
        utterance=_FIRST_UTTERANCE + 2 * index,
        num_frames=REFERENCE_FRAMES,
        size=size,
    )
    truth = clips.make_clip(
        person,
        scene=_TARGET_SCENE,
        utterance=_FIRST_UTTERANCE + 2 * index + 1,
        num_frames=num_frames,
        size=size,
    )
    folder.mkdir(parents=True, exist_ok=True)
    case = Case(
        folder=folder,
        person=index,
        caption=truth.caption,
        still=truth.frames[0],
        speech=truth.audio,
        truth=truth.frames,
        motion=truth.motion,
    )
    encode.write_video(folder / "reference.mp4", reference.frames, reference.audio)
    encode.write_video(folder / "truth.mp4", truth.frames, truth.audio)
    cv2.imwrite(str(folder / "still.png"), case.still[..., ::-1])
    write_speech(folder / "speech.wav", truth.audio)
    return case


def film_others(
    index: int, count: int, *, num_frames: int, size: int
) -> list[UInt8[np.ndarray, "frames Y X 3"]]:
    """Film further clips of a person, in scenes and with sentences of no case."""
    person = people.sample_person(SEED, index)
    filmed = [
        clips.make_clip(
            person,
            scene=_FIRST_OTHER_SCENE + number,
            utterance=_OTHERS_UTTERANCE + _MOST_OTHERS * index + number,
            num_frames=num_frames,
            size=size,
        )
        for number in range(count)
    ]
    return [clip.frames for clip in filmed]


def write_speech(path: Path, speech: Float[np.ndarray, " samples"]) -> None:
    """Write 16 kHz mono speech in [-1, 1] as a 16-bit wav file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.round(np.clip(speech, -1, 1) * 32767).astype("<i2"))
