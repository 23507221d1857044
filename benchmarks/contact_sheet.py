"""Draw people of the procedural dataset: `python -m benchmarks.contact_sheet`.

Ten people, each twice: speaking in one scene, and in another scene with the marked side
of the head turned to the viewer. Every picture is a frame of a clip of the dataset.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from avatar_jax import command
from avatar_jax.data.talking_heads import clips, motion, people
from avatar_jax.data.talking_heads.people import Person

_PEOPLE = (1, 17, 3, 5, 11, 4, 7, 18, 2, 10)
_COLUMNS = 5
_FRAMES = 200  # of each clip, to choose from


def main(argv: list[str]) -> None:
    """Write the sheet as a PNG."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/people.png"))
    parser.add_argument("--size", type=int, default=192, help="pixels per picture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--people", type=int, nargs="+", default=list(_PEOPLE))
    options = parser.parse_args(argv)
    crowd = [people.sample_person(options.seed, index) for index in options.people]
    sheet = draw_sheet(crowd, options.size)
    partial = options.out.with_name(f".partial_{options.out.name}")
    cv2.imwrite(str(partial), sheet[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    partial.rename(options.out)
    print(f"{options.out}: {len(crowd)} people, {options.out.stat().st_size} bytes")


def draw_sheet(crowd: list[Person], size: int) -> UInt8[np.ndarray, "Y X 3"]:
    """Lay out two blocks of rows: speaking, then turned in another scene."""
    speaking = [_shoot(person, 0, _score_speech, size) for person in crowd]
    turned = [_shoot(person, 1, _score_turn, size) for person in crowd]
    rows = []
    for pictures in (speaking, turned):
        missing = -len(pictures) % _COLUMNS
        pictures = pictures + [np.full((size, size, 3), 255, np.uint8)] * missing
        for start in range(0, len(pictures), _COLUMNS):
            rows.append(np.concatenate(pictures[start : start + _COLUMNS], axis=1))
    return np.concatenate(rows, axis=0)


def _shoot(person: Person, scene: int, score, size: int) -> UInt8[np.ndarray, "Y X 3"]:
    clip = clips.make_clip(
        person, scene=scene, utterance=scene, num_frames=_FRAMES, size=size
    )
    return clip.frames[np.argmax(score(person, clip.motion))]


def _score_speech(
    person: Person, codes: Float[np.ndarray, "frames codes"]
) -> Float[np.ndarray, " frames"]:
    """Prefer open eyes, little turn, and an opening that differs between people."""
    wanted = (0.9, 0.05, 0.55, 0.3)[person.index % 4]
    return -(
        np.abs(_code(codes, "mouth_open") - wanted)
        + _code(codes, "blink_left")
        + np.abs(_code(codes, "yaw"))
    )


def _score_turn(
    person: Person, codes: Float[np.ndarray, "frames codes"]
) -> Float[np.ndarray, " frames"]:
    """Prefer the marked side, open eyes and a somewhat open mouth."""
    return (
        -person.looks.mark_side * _code(codes, "yaw")
        - _code(codes, "blink_left")
        - 0.3 * np.abs(_code(codes, "mouth_open") - 0.4)
    )


def _code(
    codes: Float[np.ndarray, "frames codes"], name: str
) -> Float[np.ndarray, " frames"]:
    return codes[:, motion.MOTION_NAMES.index(name)]


if __name__ == "__main__":
    sys.exit(command.run(main))
