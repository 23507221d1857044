"""Write the procedural talking people as records, with their true motion codes."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from avatar_jax.data import records
from avatar_jax.data.talking_heads import examples, people
from avatar_jax.preparation import pool
from avatar_jax.types import FRAMES_PER_SECOND, InputError

_TOGETHER = 8  # clips per message between processes


@dataclass(frozen=True)
class ProceduralConfig:
    """How many people, clips of each and seconds of each clip, at which size (pixels).

    The clips are those of `talking_heads/builder.py`: clips 2k and 2k + 1 of a person
    share scene k, and no two clips of the dataset say the same.
    """

    people: int = 1600
    clips_per_person: int = 4
    seconds: float = 4.0
    size: int = 64
    seed: int = 0
    workers: int = 2

    def __post_init__(self):
        if min(self.people, self.clips_per_person) < 1 or self.seconds < 1:
            raise InputError(
                "expected at least 1 person, 1 clip and 1 second, but came "
                f"{self.people}, {self.clips_per_person} and {self.seconds}"
            )

    @property
    def num_frames(self) -> int:
        return round(self.seconds * FRAMES_PER_SECOND)


def write_media(directory: Path, config: ProceduralConfig) -> dict[str, np.ndarray]:
    """Write the clips_media tier of all splits; return the motion codes by key.

    A split is that of its people, `people.split_of`; one without people is left out.
    """
    numbers: dict[str, list[tuple[int, int]]] = {}
    for person in range(config.people):
        both = [(person, clip) for clip in range(config.clips_per_person)]
        numbers.setdefault(people.split_of(person), []).extend(both)
    motion: dict[str, np.ndarray] = {}
    with pool.open_pool(config.workers, _start_worker) as run:
        for split, wanted in numbers.items():
            records.write_tier(
                records.tier_directory(directory, records.MEDIA),
                split,
                records.media_schema(),
                _make_all(run, config, split, wanted, motion),
            )
    return motion


def make_record(
    config: ProceduralConfig, number: tuple[int, int]
) -> tuple[dict[str, Any], np.ndarray]:
    """Film clip (person, clip); return its media record and its motion codes."""
    index, clip = number
    example = examples.make_example(
        people.sample_person(config.seed, index),
        clip,
        seed=config.seed,
        clips_per_person=config.clips_per_person,
        num_frames=config.num_frames,
        size=config.size,
    )
    record = {name: example[name] for name in records.media_schema()}
    return record, example["motion"]


def _make_all(run, config, split, wanted, motion) -> Iterator[dict[str, Any]]:
    """Give the records of a split and remember their motion codes."""
    made = run(partial(_make_several, config), _chunks(wanted))
    with tqdm(total=len(wanted), desc=split, unit="clip", disable=None) as bar:
        for several in made:
            for record, codes in several:
                motion[record["key"]] = codes
                bar.update()
                yield record


def _make_several(config: ProceduralConfig, numbers: list[tuple[int, int]]):
    return [make_record(config, number) for number in numbers]


def _chunks(items: list) -> list[list]:
    return [items[i : i + _TOGETHER] for i in range(0, len(items), _TOGETHER)]


def _start_worker() -> None:
    """Draw on the processor: several processes cannot share an accelerator."""
    jax.config.update("jax_platforms", "cpu")
