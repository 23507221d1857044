"""Text encoders: what every encoder offers, and one that needs no weights."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from avatar_jax.types import InputError

CIRCLE = 8191  # prime: points that bytes and their places are spread over
BYTE_STRIDE, PLACE_STRIDE = 3347, 1277


@runtime_checkable
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
    """One row per word: half says which UTF-8 bytes it has, half which word it is.

    Each (byte, place in the word) has its own direction of sines and cosines; a word is
    their sum, so that "skin" and "skin," are neighbours. In the padding it is zero.
    Raises InputError for a prompt of more than `length` words.
    """

    length: int = 64
    width: int = 64

    def __post_init__(self):
        if self.width % 4:
            raise InputError(f"Bytes expects a width of 4n, came {self.width}; use 64.")

    def __call__(self, prompts: list[str]) -> Float[np.ndarray, "B L D"]:
        rows = np.zeros((len(prompts), self.length, self.width), np.float32)
        rows[..., self.width // 2 :] = self._places()
        for row, prompt in zip(rows, prompts, strict=True):
            words = prompt.split()
            if len(words) > self.length:
                raise InputError(
                    f"the prompt has {len(words)} words, at most {self.length} fit: "
                    f"shorten {prompt[:40]!r}."
                )
            for i, word in enumerate(words):
                row[i, : self.width // 2] = self._spell(word)
        return rows

    def _spell(self, word: str) -> Float[np.ndarray, " half"]:
        """Sum the directions of a word's bytes, at unit scale whatever its length."""
        codes = np.frombuffer(word.encode(), np.uint8).astype(np.int64)
        points = (codes * BYTE_STRIDE + np.arange(codes.size) * PLACE_STRIDE) % CIRCLE
        k = np.arange(1, self.width // 4 + 1)
        angle = 2 * np.pi * points[:, None] * k / CIRCLE
        waves = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
        return waves.sum(axis=0) * np.sqrt(2 / codes.size)

    def _places(self) -> Float[np.ndarray, "L half"]:
        k = np.arange(1, self.width // 4 + 1)
        angle = np.pi * np.arange(self.length)[:, None] * k / self.length
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
