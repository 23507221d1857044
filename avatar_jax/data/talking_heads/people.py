"""Who a person is: looks (static identity), habits (dynamic identity) and voice.

A person is one point of a unit cube. Each column is a factor of `LOOKS`, `HABITS` or
`VOICE`; the identity code is the first two blocks scaled to [-1, 1], so it is complete
and exact. Looks, habits and voice come from independent random streams of
(seed, index): nothing about the voice can be read from the face.
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float

from avatar_jax.data.talking_heads import looks as palettes
from avatar_jax.data.talking_heads.looks import Colour, Looks
from avatar_jax.types import InputError

Split = Literal["train", "validation", "test"]

_LOOKS_STREAM, _HABITS_STREAM, _VOICE_STREAM = 11, 12, 13


@dataclasses.dataclass(frozen=True)
class Habits:
    """Dynamic identity: how this person moves, whatever is said."""

    mouth_gain: float  # opening of a fully open vowel
    width_gain: float
    opening_time: float  # seconds, time constant of the opening mouth
    closing_time: float
    speaking_rate: float
    pause_rate: float  # share of word ends with a pause
    pause_length: float  # seconds
    blink_rate: float  # per second
    blink_length: float  # seconds
    brow_raise: float  # height on a stressed syllable
    brow_probability: float
    nod: float  # amplitude
    nod_every: float  # stressed syllables per nod
    nod_lag: float  # seconds after the vowel begins
    gaze_x: float  # where the eyes rest
    gaze_y: float
    gaze_spread: float
    fixation: float  # seconds
    smile: float
    smile_asymmetry: float
    turn_rate: float  # turns of the head per second
    turn_side: float  # -1 .. 1, preference
    turn_size: float
    sway: float
    head_tilt: float


@dataclasses.dataclass(frozen=True)
class Voice:
    """How this person sounds."""

    pitch: float  # Hz
    formants: float  # scale of all formants
    tilt: float  # dB per octave
    breath: float
    intonation: float
    jitter: float


@dataclasses.dataclass(frozen=True, eq=False)
class Person:
    """One speaker; `identity` is the exact code of looks and habits in [-1, 1]."""

    seed: int
    index: int
    looks: Looks
    habits: Habits
    voice: Voice
    hair_style: str
    hair_name: str
    identity: Float[np.ndarray, " I"]


# Factors: name -> (low, high); a whole number n as (0, n) picks one of n when floored.
LOOKS = {
    "head_width": (0.74, 0.88),
    "head_height": (0.95, 1.06),
    "jaw_taper": (0.02, 0.24),
    "ear_size": (0.85, 1.3),
    "skin": (0.0, 1.0),
    "skin_warmth": (-0.03, 0.03),
    "blush": (0.05, 0.45),
    "freckles": (-0.8, 0.5),
    "freckle_phase": (0.0, 1.0),
    "hair_style": (0, len(palettes.HAIR_STYLES)),
    "hair_colour": (0, len(palettes.HAIR_COLOURS)),
    "hair_volume": (-0.025, 0.04),
    "hair_line": (-0.07, 0.05),
    "hair_streak": (0.04, 0.16),
    "eye_spacing": (0.30, 0.39),
    "eye_height": (-0.13, -0.01),
    "eye_width": (0.165, 0.215),
    "eye_opening": (0.085, 0.135),
    "eye_slant": (-0.16, 0.16),
    "iris": (0, len(palettes.IRISES)),
    "iris_radius": (0.075, 0.1),
    "brow_height": (0.19, 0.27),
    "brow_thickness": (0.022, 0.052),
    "brow_arch": (0.0, 0.07),
    "brow_tilt": (-0.14, 0.08),
    "nose_length": (0.24, 0.36),
    "nose_width": (0.09, 0.16),
    "nose_depth": (0.1, 0.24),
    "mouth_height": (0.40, 0.46),
    "mouth_width": (0.30, 0.41),
    "upper_lip": (0.035, 0.085),
    "lower_lip": (0.05, 0.11),
    "lip_redness": (0.15, 0.75),
    "tooth_width": (0.085, 0.12),
    "tooth_gap": (-0.05, 0.07),
    "special_tooth": (0, 7),
    "special_tooth_colour": (0, len(palettes.SPECIAL_TEETH)),
    "beard": (-1.6, 1.0),
    "glasses": (-0.65, 0.35),
    "glasses_size": (0.9, 1.15),
    "glasses_roundness": (0.0, 1.0),
    "glasses_colour": (0, len(palettes.GLASSES_COLOURS)),
    "mark": (0, 3),
    "mark_side": (-1.0, 1.0),
    "mole_height": (0.2, 0.45),
    "mark_size": (0.075, 0.11),
    "earring_colour": (0, len(palettes.EARRING_COLOURS)),
}
HABITS = {
    "mouth_gain": (0.62, 1.0),
    "width_gain": (0.4, 1.0),
    "opening_time": (0.008, 0.04),
    "closing_time": (0.008, 0.06),
    "speaking_rate": (0.85, 1.2),
    "pause_rate": (0.12, 0.4),
    "pause_length": (0.25, 0.7),
    "blink_rate": (0.12, 0.6),
    "blink_length": (0.12, 0.36),
    "brow_raise": (0.1, 1.0),
    "brow_probability": (0.1, 1.0),
    "nod": (0.02, 0.4),
    "nod_every": (1.0, 3.0),
    "nod_lag": (-0.08, 0.2),
    "gaze_x": (-0.45, 0.45),
    "gaze_y": (-0.25, 0.3),
    "gaze_spread": (0.08, 0.5),
    "fixation": (0.4, 1.8),
    "smile": (-0.15, 0.75),
    "smile_asymmetry": (-0.7, 0.7),
    "turn_rate": (0.1, 0.4),
    "turn_side": (-0.8, 0.8),
    "turn_size": (0.5, 0.95),
    "sway": (0.04, 0.2),
    "head_tilt": (-0.2, 0.2),
}
VOICE = {
    "pitch": (90.0, 250.0),
    "formants": (0.88, 1.16),
    "tilt": (-9.0, -5.0),
    "breath": (0.01, 0.06),
    "intonation": (0.08, 0.28),
    "jitter": (0.002, 0.02),
}
IDENTITY_NAMES = tuple(LOOKS) + tuple(HABITS)


def sample_person(seed: int, index: int) -> Person:
    """Sample person `index` of the population `seed`, the same one every time."""
    if seed < 0 or index < 0:
        raise InputError(
            f"expected a seed and a person index of at least 0, got {seed} and {index}"
        )
    looks_unit = np.random.default_rng((seed, index, _LOOKS_STREAM)).random(len(LOOKS))
    habit_unit = np.random.default_rng((seed, index, _HABITS_STREAM)).random(
        len(HABITS)
    )
    voice_unit = np.random.default_rng((seed, index, _VOICE_STREAM)).random(len(VOICE))
    values = _scale(LOOKS, looks_unit)
    return Person(
        seed=seed,
        index=index,
        looks=_make_looks(values),
        habits=Habits(**_scale(HABITS, habit_unit)),
        voice=Voice(**_scale(VOICE, voice_unit)),
        hair_style=tuple(palettes.HAIR_STYLES)[int(values["hair_style"])],
        hair_name=tuple(palettes.HAIR_COLOURS)[int(values["hair_colour"])],
        identity=(2 * np.concatenate([looks_unit, habit_unit]) - 1).astype(np.float32),
    )


def split_of(index: int) -> Split:
    """Name the split of a person: of each ten, one validation and one test."""
    return {8: "validation", 9: "test"}.get(index % 10, "train")


def _scale(
    factors: dict[str, tuple[float, float]], unit: Float[np.ndarray, " n"]
) -> dict[str, float]:
    return {
        name: low + (high - low) * float(u)
        for (name, (low, high)), u in zip(factors.items(), unit, strict=True)
    }


def _make_looks(values: dict[str, float]) -> Looks:
    plain = {f.name for f in dataclasses.fields(Looks)} & set(values)
    fields: dict = {name: values[name] for name in plain}
    style = tuple(palettes.HAIR_STYLES.values())[int(values["hair_style"])]
    mark = int(values["mark"])
    covered = style.side > 0.15 or values["beard"] > 0.1  # where a mole would be
    fields.update(
        skin=_skin(values["skin"], values["skin_warmth"]),
        freckles=max(values["freckles"], 0.0),
        hair=style.replace(
            shell=style.shell + values["hair_volume"] * (style.cover == 1),
            front=style.front + values["hair_line"],
        ),
        hair_colour=tuple(palettes.HAIR_COLOURS.values())[int(values["hair_colour"])],
        iris=palettes.IRISES[int(values["iris"])],
        tooth_gap=max(values["tooth_gap"], 0.0),
        special_tooth=float(int(values["special_tooth"]) - 3),
        special_tooth_colour=palettes.SPECIAL_TEETH[
            int(values["special_tooth_colour"])
        ],
        beard=max(values["beard"], 0.0) * (style.length < 1),
        moustache=float(values["beard"] > 0.35) * (style.length < 1),
        glasses=float(values["glasses"] > 0),
        glasses_colour=palettes.GLASSES_COLOURS[int(values["glasses_colour"])],
        mark_side=1.0 if values["mark_side"] > 0 else -1.0,
        mole=values["mark_size"] * (mark != 1 and not covered),
        earring=values["mark_size"] * (mark != 0 or covered),
        earring_colour=palettes.EARRING_COLOURS[int(values["earring_colour"])],
    )
    return Looks(**fields)


def _skin(tone: float, warmth: float) -> Colour:
    place = np.linspace(0, 1, len(palettes.SKINS))
    r, g, b = (np.interp(tone, place, [s[c] for s in palettes.SKINS]) for c in range(3))
    return (float(r + warmth), float(g), float(b - warmth))
