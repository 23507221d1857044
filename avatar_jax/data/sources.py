"""The clips of a dataset as training reads them: one, or one with its reference."""

import dataclasses
import logging
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from avatar_jax.data import records, references, transforms
from avatar_jax.types import InputError

LATENT_FIELDS = (
    "latents",
    "mouth_mask",
    "face_mask",
    "still",
    "still_mask",
    "faces",
)

Indices = Sequence[int] | Int[np.ndarray, " clips"]

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A clip to learn, and the clips of its reference, one for each segment."""

    target: transforms.Record
    others: tuple[transforms.Record, ...] = ()


class ClipSource:
    """Clips of one split of one dataset, from the tiers that training needs."""

    def __init__(self, directory: str | pathlib.Path, split: str, codec: str):
        latents = records.tier_directory(directory, records.LATENTS, codec)
        features = records.tier_directory(directory, records.FEATURES)
        self.directory = directory
        self._latents = records.read_tier(latents, split)
        self._features = records.read_tier(features, split)
        if len(self._latents) != len(self._features):
            raise InputError(
                f"{latents} has {len(self._latents)} clips of split {split!r}, "
                f"{features} has {len(self._features)}: prepare the dataset again."
            )
        self.null_text = records.read_null_text(directory)
        self.motion_scale = records.read_motion_scale(directory)
        self.sizes = self._latents.read_sizes()
        self.mates = references.Mates(self._features.read_people())
        self._skipped: set[int] = set()
        self._said: set[str] = set()

    def find(self, num_latents: int) -> Int[np.ndarray, " clips"]:
        """Return the indices of the clips that have at least so many latents."""
        found = np.flatnonzero(self.sizes[:, 0] >= num_latents)
        if not found.size:
            raise InputError(
                f"no clip of {self.directory} has {num_latents} latents, the longest "
                f"has {self.sizes[:, 0].max()}: use a shorter bucket."
            )
        return found

    def read_next(
        self, indices: Indices, position: int
    ) -> tuple[int, transforms.Record]:
        """Read clip `indices[position]`, or the next one there that can be read."""
        return self._read_from([indices], position)

    def _read_from(
        self, groups: Sequence[Indices], place: int
    ) -> tuple[int, transforms.Record]:
        """Read a clip of the first group that has one that can be read.

        Args:
          groups: of clips, best first.
          place: in a group, counted round; the next that can be read is taken.
        """
        for group in groups:
            found = self._find_next(group, place)
            if found is not None:
                return found
        raise InputError(
            f"no record of {self.directory} can be read; prepare it again."
        )

    def _find_next(
        self, indices: Indices, position: int
    ) -> tuple[int, transforms.Record] | None:
        for offset in range(len(indices)):
            index = int(indices[(position + offset) % len(indices)])
            try:
                return index, self.read(index)
            except records.CorruptRecord as error:
                self._skip(index, error)
        return None

    def read_pair(
        self,
        index: int,
        position: int,
        *,
        indices: Int[np.ndarray, " clips"],
        config: references.ReferenceConfig,
        segments: int,
        examples_per_step: float,
        seed: tuple[int, ...],
    ) -> Pair:
        """Read the clip at a place of a stream, and clips that show the same person.

        Where no clip of the scenes asked for can be read, another of the person is the
        reference; where there is none, the clip itself.

        Args:
          index: number of the example in its stream; with `seed` it fixes the choice.
          position: into `indices`.
          examples_per_step: of the stream, in the mean over training steps.
        """
        target, record = self.read_next(indices, position)
        if not segments:
            return Pair(record)
        rng = np.random.default_rng((*seed, index, 1))
        step = index / examples_per_step
        cross = references.is_cross_scene(step, config, rng.random())
        usable = self.sizes[:, 0] > config.segment_latents
        best, *rest = self.mates.find(target, cross_scene=cross, usable=usable)
        groups = [rng.permutation(best), *rest]
        others = [self._read_from(groups, place) for place in range(segments)]
        self._say_unlike_sampling(target, others, cross_scene=cross)
        return Pair(record, tuple(other for _, other in others))

    def read(self, index: int) -> transforms.Record:
        """Read one clip; raise CorruptRecord where a tier's record is unreadable."""
        latents, features = self._latents[index], self._features[index]
        if latents["key"] != features["key"]:
            raise InputError(
                f"record {index} of {self.directory} is {latents['key']!r} in one tier "
                f"and {features['key']!r} in the other: prepare the dataset again."
            )
        arrays = {name: latents[name] for name in LATENT_FIELDS}
        return transforms.Record(
            key=latents["key"],
            speech=features["speech"],
            text=features["text"],
            motion=self._normalise(features.get("motion")),
            motion_read=self._normalise(features.get("motion_read")),
            identity=features.get("identity"),
            **arrays,
        )

    def _normalise(
        self, codes: Float[np.ndarray, "frames Dm"] | None
    ) -> Float[np.ndarray, "frames Dm"] | None:
        if codes is None:
            return None
        if self.motion_scale is None:
            raise InputError(
                f"{self.directory} has motion codes, but no motion_scale.npy: "
                "prepare it again."
            )
        return (codes - self.motion_scale[:1]) / self.motion_scale[1:]

    def _say_unlike_sampling(
        self,
        target: int,
        others: Sequence[tuple[int, transforms.Record]],
        *,
        cross_scene: bool,
    ) -> None:
        """Say once each in what references are easier than those of a user."""
        if any(o.motion is not None and o.motion_read is None for _, o in others):
            self._say(
                "holds no motion codes read off its frames: references show exact "
                "ones, unlike at sampling. Prepare it again."
            )
        if any(index == target for index, _ in others):
            self._say(
                "has people of whom a single clip is usable and readable; it is its "
                "own reference: looks can be copied. Prepare two or more of each."
            )
        elif cross_scene and any(self.mates.share_scene(target, i) for i, _ in others):
            self._say(
                "has people of whom a single scene is usable and readable: their "
                "references show it, though others are asked for. Prepare several."
            )

    def _say(self, what: str) -> None:
        """Warn once of something that the dataset lacks."""
        if what not in self._said:
            self._said.add(what)
            _log.warning("%s %s", self.directory, what)

    def _skip(self, index: int, error: records.CorruptRecord) -> None:
        """Count a corrupt record, and name it the first time."""
        if index not in self._skipped:
            self._skipped.add(index)
            _log.warning("skipped (%d so far): %s", len(self._skipped), error)


def check_widths(sources: list[ClipSource]) -> None:
    """Raise InputError unless all datasets come from the same encoders."""
    widths = {}
    for source in sources:
        _, record = source.read_next(np.arange(len(source.sizes)), 0)
        widths[str(source.directory)] = {
            "latents": record.latents.shape[3:],
            "speech": record.speech.shape[1:],
            "text": (record.text.shape, source.null_text.shape),
            "motion": None if record.motion is None else record.motion.shape[1:],
        }
    first, *others = widths.values()
    if any(other != first for other in others):
        raise InputError(
            f"datasets of different encoders cannot be mixed: {widths}; "
            "prepare them with the same."
        )


def check_sizes(sources: list[ClipSource], found: list[Int[np.ndarray, " _"]]) -> None:
    """Raise InputError unless all clips of a bucket have one height and width."""
    sizes = np.concatenate(
        [s.sizes[f, 1:3] for s, f in zip(sources, found, strict=True)]
    )
    different = np.unique(sizes, axis=0)
    if len(different) > 1:
        raise InputError(
            f"clips of several sizes, in latents {different.tolist()}: "
            "prepare them at one size."
        )
