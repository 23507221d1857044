"""Text encoders: what every encoder offers, and one that needs no weights."""

import dataclasses
from typing import Protocol

import numpy as np
from jaxtyping import Float, UInt8

from avatar_jax.types import InputError


class TextEncoder(Protocol):
    """A frozen encoder of prompts; padding is part of the embedding and is attended."""

    @property
    def width(self) -> int:
        """Give the width D of a row."""

    @property
    def length(self) -> int:
        """Give the rows L of every prompt."""

    def __call__(self, prompts: list[str]) -> Float[np.ndarray, "B L D"]:
        """Encode prompts; "" is the empty prompt that stands for a dropped one."""


@dataclasses.dataclass(frozen=True)
class Bytes:
    """UTF-8 bytes as sines and cosines: half of a row says which byte, half where.

    A byte's half is zero in the padding. Too long a prompt is an error.
    """

    length: int = 64
    width: int = 64

    def __post_init__(self):
        if self.width % 4:
            raise InputError(f"Bytes expects a width of 4n, came {self.width}; use 64.")

    def __call__(self, prompts: list[str]) -> Float[np.ndarray, "B L D"]:
        codes = np.stack([self._pad(prompt) for prompt in prompts])
        k = np.arange(1, self.width // 4 + 1)
        # Harmonics of a circle of 256 points: each byte has its own direction.
        angle = 2 * np.pi * codes[..., None] * k / 256
        letter = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
        letter *= codes[..., None] > 0
        angle = np.pi * np.arange(self.length)[:, None] * k / self.length
        place = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
        place = np.broadcast_to(place, letter.shape)
        return np.concatenate([letter, place], axis=-1).astype(np.float32)

    def _pad(self, prompt: str) -> UInt8[np.ndarray, " L"]:
        """Return the prompt's bytes, zeros after its end."""
        data = prompt.encode().replace(b"\0", b" ")
        if len(data) > self.length:
            raise InputError(
                f"the prompt has {len(data)} bytes, at most {self.length} fit: "
                f"shorten {prompt[:40]!r}."
            )
        return np.frombuffer(data.ljust(self.length, b"\0"), np.uint8)
