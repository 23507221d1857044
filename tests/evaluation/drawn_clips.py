"""Clips of drawn faces whose mouths open by known curves, as records and as videos."""

import cv2
import numpy as np
from scipy import ndimage

from avatar_jax.evaluation import clip_cases
from avatar_jax.media import faces
from avatar_jax.models.codec import DCTCodec
from avatar_jax.preparation import tiers

SIZE, FRAMES = 64, 51
FACE = np.array([14.0, 17.0, 50.0, 53.0], np.float32)
SKIN = (205, 160, 125)  # RGB
SKINS = {"you": (140, 95, 70)}  # of those who have another


def opening(seed: int) -> np.ndarray:
    """Draw a curve in [0, 1] that is shut, moves, and is shut again."""
    noise = np.random.default_rng(seed).normal(size=FRAMES)
    curve = ndimage.gaussian_filter1d(noise, 1.5)
    curve = (curve - curve.min()) / np.ptp(curve)
    curve[:7] = curve[-8:] = 0
    return curve


def draw_clip(
    curve: np.ndarray,
    *,
    light: float = 1.0,
    sway: float = 0.0,
    skin: tuple[int, int, int] = SKIN,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a face whose lips part by a curve; return frames and its face boxes."""
    frames, boxes = [], []
    for number, value in enumerate(curve):
        shift = sway * np.sin(number / 5)
        frame = np.full((4 * SIZE, 4 * SIZE, 3), (90, 140, 160), np.uint8)
        centre = round(4 * (32 + shift)), round(4 * 46.5)
        cv2.ellipse(frame, (centre[0], 140), (76, 100), 0, 0, 360, skin, -1)
        height = round(14 + 12 * value)
        cv2.ellipse(frame, centre, (30, height), 0, 0, 360, (190, 95, 95), -1)
        inner = round(1 + 14 * value)
        cv2.ellipse(frame, centre, (24, inner), 0, 0, 360, (60, 25, 25), -1)
        small = cv2.resize(frame, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        frames.append(np.clip(small * light, 0, 255).astype(np.uint8))
        boxes.append(FACE + np.array([shift, 0, shift, 0], np.float32))
    return np.stack(frames), np.stack(boxes).astype(np.float32)


def speech(curve: np.ndarray, seed: int) -> np.ndarray:
    """Make noise that is loud while the curve moves."""
    loud = np.repeat(np.arange(FRAMES), 640)
    noise = np.random.default_rng(seed).normal(size=loud.size)
    heard = np.where((loud >= 7) & (loud < FRAMES - 8), 0.2, 1e-4)
    return (noise * heard * (0.5 + curve[loud])).astype(np.float32)


def record(name: str, person: str, seed: int) -> dict:
    curve = opening(seed)
    frames, boxes = draw_clip(curve, skin=SKINS.get(person, SKIN))
    mouths = faces.mouth_boxes(boxes)
    names = {"key": name, "person": person, "caption": "A person is talking."}
    names |= {"scene": name, "source": "drawn"}
    wave = speech(curve, seed)
    return tiers.make_media(
        frames, wave, boxes, mouths, names=names, rights={}, scores={}
    )


def show_as_generated(cases, shift):
    """Show the truth of case n + shift, through the codec, as made for case n."""
    clip_cases.write_codec_cases(cases, DCTCodec())
    for number, case in enumerate(cases):
        shown = cases[(number + shift) % len(cases)].folder / "codec.mp4"
        (case.folder / "generated.mp4").write_bytes(shown.read_bytes())
