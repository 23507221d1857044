"""From records to batches: the one loader of all training stages.

    clips of a dataset, long enough for a bucket
      -> shuffled anew each epoch -> datasets mixed by weight -> records read
      -> window and dropout (transforms) -> every process's share -> batches
      -> buckets mixed by weight, batch by batch

A batch is a function of (seed, step): example g of a bucket is the same whatever the
number of processes, process p of P takes p, p + P, ..., and all processes take the same
bucket at the same step. The iterator's state is one number per reading process.
"""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Sequence

import grain
import jax
import numpy as np
from absl import flags
from jaxtyping import Float16, Int

from avatar_jax.data import records, transforms
from avatar_jax.types import Clip, InputError

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """Which clips, in which shapes, with which conditions.

    Args:
      directories: datasets, each a folder of tiers.
      weights: share of each dataset; empty: by its number of clips.
      codec: name of the latents' folder.
      buckets: (num_latents, batch_size, weight) each; the batch is that of all
        processes together, the weight the share of steps.
      patch: latent rows and columns per patch of the network.
      num_workers: reading processes; 0: threads of this one.
      prefetch: batches read ahead, per worker.
    """

    directories: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    split: str = "train"
    codec: str = "dct64"
    buckets: tuple[tuple[int, int, float], ...] = ((7, 16, 1.0),)
    text_dropout: float = 0.1
    audio_dropout: float = 0.1
    still_dropout: float = 0.25
    prefix_probability: float = 0.5
    patch: int = 2
    num_workers: int = 0
    prefetch: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for bucket in self.buckets:
            if len(bucket) != 3 or min(bucket) <= 0 or bucket[0] <= transforms.PREFIX:
                raise InputError(
                    f"expected buckets of (latents above {transforms.PREFIX}, clips, "
                    f"share), came {bucket}."
                )


def make_dataset(
    config: PipelineConfig, *, process_index: int, process_count: int
) -> grain.IterDataset:
    """Return an endless dataset of `Clip` batches of this process.

    Its iterators offer `get_state` and `set_state` and go into
    `grain.checkpoint.CheckpointSave`. Raises InputError where records are missing, of
    another schema version, too short for a bucket or of several sizes.
    """
    check(config, process_count)
    sources = [ClipSource(d, config.split, config.codec) for d in config.directories]
    check_widths(sources)
    share = slice(process_index, None, process_count)
    batches = [
        make_bucket(config, sources, number)[share].batch(
            batch_size // process_count, batch_fn=stack
        )
        for number, (_, batch_size, _) in enumerate(config.buckets)
    ]
    weights = [weight for *_, weight in config.buckets]
    mixed = grain.MapDataset.mix(batches, normalise(weights))
    workers = grain.MultiprocessingOptions(config.num_workers, config.prefetch)
    if config.num_workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads its flags before it starts workers
    # One reading thread: parsing holds the interpreter, more would only slow it.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=config.prefetch)
    return mixed.to_iter_dataset(options).mp_prefetch(workers)


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
        self.sizes = self._latents.read_sizes()
        self._skipped: set[int] = set()

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
        self, indices: Int[np.ndarray, " clips"], position: int
    ) -> transforms.Record:
        """Read clip `indices[position]`, or the next one there that can be read."""
        for offset in range(len(indices)):
            index = int(indices[(position + offset) % len(indices)])
            try:
                return self.read(index)
            except records.CorruptRecord as error:
                self._skip(index, error)
        raise InputError(
            f"no record of {self.directory} can be read; prepare it again."
        )

    def read(self, index: int) -> transforms.Record:
        """Read one clip; raise CorruptRecord where a tier's record is unreadable."""
        latents, features = self._latents[index], self._features[index]
        if latents["key"] != features["key"]:
            raise InputError(
                f"record {index} of {self.directory} is {latents['key']!r} in one tier "
                f"and {features['key']!r} in the other: prepare the dataset again."
            )
        return transforms.Record(
            key=latents["key"],
            latents=latents["latents"],
            mouth_mask=latents["mouth_mask"],
            speech=features["speech"],
            text=features["text"],
            motion=features.get("motion"),
        )

    def _skip(self, index: int, error: records.CorruptRecord) -> None:
        """Count a corrupt record, and name it the first time."""
        if index not in self._skipped:
            self._skipped.add(index)
            _log.warning("skipped (%d so far): %s", len(self._skipped), error)


def make_bucket(
    config: PipelineConfig, sources: list[ClipSource], number: int
) -> grain.MapDataset:
    """Return the endless examples of one bucket, the same for all processes."""
    num_latents, *_ = config.buckets[number]
    found = [source.find(num_latents) for source in sources]
    check_sizes(sources, found)
    clips = [
        grain.MapDataset.range(len(indices))
        .seed(_fold(config.seed, number, which))
        .shuffle()
        .repeat()
        .map(functools.partial(source.read_next, indices))
        for which, (source, indices) in enumerate(zip(sources, found, strict=True))
    ]
    weights = config.weights or [len(indices) for indices in found]
    make = functools.partial(
        make_example, config=config, null_text=sources[0].null_text, number=number
    )
    return grain.MapDataset.mix(clips, normalise(weights)).map_with_index(make)


def make_example(
    index: int,
    record: transforms.Record,
    *,
    config: PipelineConfig,
    null_text: Float16[np.ndarray, "L Dt"],
    number: int,
) -> Clip:
    """Turn the record at a place of a bucket's stream into an example."""
    names = [field.name for field in dataclasses.fields(transforms.ConditionRates)]
    return transforms.make_clip(
        record,
        null_text,
        transforms.draw((config.seed, number, index)),
        transforms.ConditionRates(**{name: getattr(config, name) for name in names}),
        num_latents=config.buckets[number][0],
        patch=config.patch,
    )


def stack(clips: list[Clip]) -> Clip:
    """Stack examples along a new first axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *clips)


def check(config: PipelineConfig, process_count: int) -> None:
    """Raise InputError for settings that no dataset can satisfy."""
    if not config.directories:
        raise InputError("no dataset given: set `directories` to prepared folders.")
    if config.weights and len(config.weights) != len(config.directories):
        raise InputError(
            f"{len(config.directories)} directories came with {len(config.weights)} "
            "weights: give one each, or none."
        )
    for num_latents, batch_size, _ in config.buckets:
        if batch_size % process_count:
            raise InputError(
                f"batch_size={batch_size} of the bucket of {num_latents} latents is "
                f"not divisible by {process_count} processes; use a multiple."
            )


def check_widths(sources: list[ClipSource]) -> None:
    """Raise InputError unless all datasets come from the same encoders."""
    widths = {}
    for source in sources:
        record = source.read_next(np.arange(len(source.sizes)), 0)
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


def normalise(weights: Sequence[float | int]) -> list[float]:
    """Scale weights to a sum of 1."""
    return [weight / sum(weights) for weight in weights]


def _fold(*numbers: int) -> int:
    """Return one seed made from several."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
