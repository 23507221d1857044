"""Multi-condition classifier-free guidance on velocities (TAVR's three passes).

  (1) v = f + (a - 1) (f - f_without_audio) + (g - 1) (f - f_negative)
            + (m - 1) (f - f_without_motion)

f is the fully conditioned velocity, `without_audio` drops driving and reference audio
together, `negative` replaces the prompt, `without_motion` drops the motion codes,
driving and reference together. A scale of 1 skips its pass.
"""

import dataclasses
from typing import Any

import jax

Tree = Any


@dataclasses.dataclass(frozen=True)
class Scales:
    """Guidance scales of eq. 1; 1 is off. TAVR: audio 1.8, text 5.0."""

    audio: float = 1.0
    text: float = 1.0
    motion: float = 1.0

    def __post_init__(self) -> None:
        for name, scale in dataclasses.asdict(self).items():
            if scale < 1:
                raise ValueError(f"{name} guidance is {scale}; use 1 (off) or more.")


def guide(
    full: Tree,
    *,
    without_audio: Tree | None = None,
    negative: Tree | None = None,
    without_motion: Tree | None = None,
    scales: Scales,
) -> Tree:
    """Combine the passes by eq. 1; a pass whose scale is 1 may be absent."""
    guided = full
    passes = (
        (without_audio, scales.audio),
        (negative, scales.text),
        (without_motion, scales.motion),
    )
    for other, scale in passes:
        if scale == 1:
            continue
        if other is None:
            raise ValueError(f"Guidance {scale} needs its second pass; none was given.")
        guided = jax.tree.map(
            lambda g, f, o, s=scale: g + (s - 1) * (f - o), guided, full, other
        )
    return guided
