"""Articulation and habits -> twelve motion codes per frame.

The codes are what the renderer draws, exactly. Left and right are the image's. Openings
and blinks are in [0, 1], the others in about [-1, 1]; `POSE_UNIT` turns pose into
radians.
"""

import numpy as np
import scipy.ndimage
from jaxtyping import Float

from avatar_jax.data.talking_heads.articulation import HOP_SECONDS, Articulation
from avatar_jax.data.talking_heads.people import Habits, Person
from avatar_jax.data.talking_heads.phonemes import SILENCE, Sentence
from avatar_jax.types import FRAMES_PER_SECOND

MOTION_NAMES = (
    "mouth_open",
    "mouth_width",
    "smile",
    "smile_asymmetry",
    "blink_left",
    "blink_right",
    "brow",
    "gaze_x",
    "gaze_y",
    "yaw",
    "pitch",
    "roll",
)
# Radians per unit of the pose codes: positive yaw turns the nose to the right of the
# image, positive pitch down, positive roll clockwise.
POSE_UNIT = {"yaw": np.pi / 4, "pitch": np.pi / 6, "roll": np.pi / 6}
HOPS_PER_FRAME = round(1 / (HOP_SECONDS * FRAMES_PER_SECOND))

_MOTION_STREAM = 41

Track = Float[np.ndarray, " n"]


def move(
    person: Person,
    sentence: Sentence,
    articulation: Articulation,
    utterance: int,
    num_frames: int,
) -> Float[np.ndarray, "frames codes"]:
    """Act out an utterance with the person's habits; float32 rows, one per frame."""
    habits = person.habits
    rngs = [
        np.random.default_rng((person.seed, person.index, utterance, _MOTION_STREAM, k))
        for k in range(5)
    ]
    seconds = (np.arange(num_frames) + 0.5) / FRAMES_PER_SECOND
    silent = (sentence.codes[sentence.sample(seconds)] == SILENCE).astype(np.float32)
    beats = sentence.starts[:-1][sentence.stressed > 0]
    smile, asymmetry = _smile(habits, seconds, silent, rngs[0])
    blink = _blink(habits, seconds, rngs[1])
    gaze_x, gaze_y = _gaze(habits, seconds, silent, rngs[2])
    yaw, pitch, roll = _turn_head(habits, seconds, beats, gaze_x, rngs[3])
    brow = _raise_brows(habits, seconds, beats, rngs[4])
    codes = [
        _open_mouth(habits, articulation, num_frames),
        _per_frame(articulation.width, num_frames) * habits.width_gain,
        smile,
        asymmetry,
        blink,
        np.concatenate([blink[:1], blink[:-1]]),  # the second eye lags by a frame
        brow,
        gaze_x,
        gaze_y,
        yaw,
        pitch,
        roll,
    ]
    return np.stack(codes, axis=1).astype(np.float32)


def _open_mouth(habits: Habits, articulation: Articulation, num_frames: int) -> Track:
    """Follow the jaw with the person's gain and time constants, then shut the lips."""
    rise = 1 - np.exp(-HOP_SECONDS / habits.opening_time)
    fall = 1 - np.exp(-HOP_SECONDS / habits.closing_time)
    state, opened = 0.0, []
    for target in articulation.opening.tolist():
        state += (rise if target > state else fall) * (target - state)
        opened.append(state)
    lips = np.array(opened) * habits.mouth_gain * (1 - articulation.closure)
    return np.clip(_per_frame(lips, num_frames), 0, 1)


def _per_frame(
    track: Float[np.ndarray, " hops"], num_frames: int
) -> Float[np.ndarray, " frames"]:
    """Average the 10 ms rows of each frame."""
    rows = track[: num_frames * HOPS_PER_FRAME]
    return rows.reshape(num_frames, HOPS_PER_FRAME).mean(axis=1)


def _smile(
    habits: Habits, seconds: Track, silent: Track, rng: np.random.Generator
) -> tuple[Track, Track]:
    """Smile about the person's own level, more in pauses; lopsided in proportion."""
    level = habits.smile * (0.7 + 0.5 * _wander(len(seconds), 1.2, rng))
    smile = np.clip(level + 0.25 * _ease(silent, 4.0), -0.4, 1)
    return smile, habits.smile_asymmetry * (0.25 + np.abs(smile)) * 0.8


def _blink(habits: Habits, seconds: Track, rng: np.random.Generator) -> Track:
    """Close the eyes at random times: shut in a third of a blink, then open."""
    blink = np.zeros_like(seconds)
    time = rng.exponential(1 / habits.blink_rate)
    while time < seconds[-1]:
        phase = (seconds - time) / habits.blink_length
        shape = np.minimum(phase / 0.35, (1 - phase) / 0.5)
        blink = np.maximum(blink, np.clip(shape * 1.1, 0, 1))
        time += habits.blink_length + 0.3 + rng.exponential(1 / habits.blink_rate)
    return blink


def _gaze(
    habits: Habits, seconds: Track, silent: Track, rng: np.random.Generator
) -> tuple[Track, Track]:
    """Jump from fixation to fixation around the person's resting point."""
    lengths = []
    while sum(lengths) <= seconds[-1]:
        lengths.append(habits.fixation * (0.4 + 1.2 * rng.random()))
    offsets = rng.standard_normal((len(lengths), 2)) * habits.gaze_spread
    place = np.searchsorted(np.cumsum(lengths), seconds, side="right")
    away = 1 + 0.8 * silent
    x = habits.gaze_x + offsets[place, 0] * away
    y = habits.gaze_y + 0.6 * offsets[place, 1] * away
    return np.clip(_ease(x, 0.5), -1, 1), np.clip(_ease(y, 0.5), -0.8, 0.8)


def _turn_head(
    habits: Habits,
    seconds: Track,
    beats: Float[np.ndarray, " beats"],
    gaze_x: Track,
    rng: np.random.Generator,
) -> tuple[Track, Track, Track]:
    """Sway, look aside now and then, nod on stressed syllables, tilt."""
    n = len(seconds)
    yaw = habits.sway * _wander(n, 0.8, rng) + 0.12 * _ease(gaze_x, 5.0)
    time = rng.exponential(1 / habits.turn_rate)
    while time < seconds[-1] + 1:
        side = 1 if rng.random() < 0.5 + 0.5 * habits.turn_side else -1
        size = habits.turn_size * (0.8 + 0.25 * rng.random())
        length = 1.0 + 0.8 * rng.random()
        yaw += side * size * _bump((seconds - time) / length)
        time += length + rng.exponential(1 / habits.turn_rate)
    pitch = 0.6 * habits.sway * _wander(n, 0.9, rng)
    for beat in beats[:: max(round(habits.nod_every), 1)]:
        pitch += habits.nod * _bump((seconds - beat - habits.nod_lag) / 0.4)
    roll = habits.head_tilt + 0.7 * habits.sway * _wander(n, 1.0, rng) + 0.1 * yaw
    return np.clip(yaw, -1, 1), np.clip(pitch, -0.8, 0.8), np.clip(roll, -0.8, 0.8)


def _raise_brows(
    habits: Habits,
    seconds: Track,
    beats: Float[np.ndarray, " beats"],
    rng: np.random.Generator,
) -> Track:
    brow = 0.12 * _wander(len(seconds), 1.0, rng)
    for beat, draw in zip(beats, rng.random(len(beats)), strict=True):
        if draw < habits.brow_probability:
            brow = np.maximum(
                brow, habits.brow_raise * _bump((seconds - beat + 0.08) / 0.5)
            )
    return np.clip(brow, -0.5, 1)


def _bump(phase: Track) -> Track:
    """Rise and fall smoothly over phase 0 to 1, with a flat top."""
    inside = np.clip(phase, 0, 1)
    return np.minimum(1, 1.6 * np.sin(np.pi * inside) ** 2)


def _wander(frames: int, seconds: float, rng: np.random.Generator) -> Track:
    """Draw a smooth track of about unit variance and the given correlation time."""
    sigma = seconds * FRAMES_PER_SECOND / 2
    margin = int(4 * sigma)
    white = rng.standard_normal(frames + 2 * margin)
    smooth = scipy.ndimage.gaussian_filter1d(white, sigma, mode="nearest")
    return smooth[margin : margin + frames] * np.sqrt(2 * sigma * np.sqrt(np.pi))


def _ease(track: Track, frames: float) -> Track:
    return scipy.ndimage.gaussian_filter1d(track, frames, mode="nearest")
