"""From records to batches: the one loader of all training stages.

    clips of a dataset, long enough for a bucket
      -> shuffled anew each epoch -> datasets mixed by weight -> records read
      -> window and dropout (transforms), a reference from other clips of the person
         (references) -> every process's share -> batches
      -> buckets mixed by weight, batch by batch

A batch is a function of (seed, step): example g of a bucket is the same whatever the
number of processes, process p of P takes p, p + P, ..., and all processes take the same
bucket at the same step. The iterator's state is one number per reading process.
"""

import dataclasses
import functools
from collections.abc import Sequence

import grain
import jax
import numpy as np
from absl import flags
from jaxtyping import Float16

from avatar_jax.data import references, sources, transforms
from avatar_jax.types import Clip, InputError


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """Which clips, in which shapes, with which conditions.

    Args:
      directories: datasets, each a folder of tiers.
      weights: share of each dataset; empty: by its number of clips.
      codec: name of the latents' folder.
      buckets: (num_latents, batch_size, weight) each; the batch is that of all
        processes together, the weight the share of steps.
      reference: of the person in other clips; the rates are those of
        `transforms.ConditionRates`.
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
    motion_dropout: float = 0.0
    reference_dropout: float = 0.0
    blank_still: float = 0.0
    context_noise: float = 0.0
    reference: references.ReferenceConfig = references.ReferenceConfig()
    patch: int = 2
    num_workers: int = 0
    prefetch: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        counts = self.reference.segments
        if len(counts) not in (1, len(self.buckets)) or min(counts) < 1:
            raise InputError(
                f"expected reference.segments of 1 or more for each of the "
                f"{len(self.buckets)} buckets, or one number for all, came {counts}."
            )
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
    clips = [
        sources.ClipSource(d, config.split, config.codec) for d in config.directories
    ]
    sources.check_widths(clips)
    share = slice(process_index, None, process_count)
    batches = [
        make_bucket(config, clips, number)[share].batch(
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


def make_bucket(
    config: PipelineConfig, clips: list[sources.ClipSource], number: int
) -> grain.MapDataset:
    """Return the endless examples of one bucket, the same for all processes."""
    # A person's only clip is its own reference, from latent 1 on.
    needed = max(config.buckets[number][0], config.reference.segment_latents + 1)
    found = [source.find(needed) for source in clips]
    sources.check_sizes(clips, found)
    weights = normalise(config.weights or [len(indices) for indices in found])
    share = normalise([weight for *_, weight in config.buckets])[number]
    examples_per_step = config.buckets[number][1] * share
    pairs = [
        grain.MapDataset.range(len(indices))
        .seed(_fold(config.seed, number, which))
        .shuffle()
        .repeat()
        .map_with_index(
            functools.partial(
                source.read_pair,
                indices=indices,
                config=config.reference,
                segments=config.reference.count_segments(number),
                examples_per_step=examples_per_step * weights[which],
                seed=(config.seed, number),
            )
        )
        for which, (source, indices) in enumerate(zip(clips, found, strict=True))
    ]
    make = functools.partial(
        make_example, config=config, null_text=clips[0].null_text, number=number
    )
    return grain.MapDataset.mix(pairs, weights).map_with_index(make)


def make_example(
    index: int,
    pair: sources.Pair,
    *,
    config: PipelineConfig,
    null_text: Float16[np.ndarray, "L Dt"],
    number: int,
) -> Clip:
    """Turn the records at a place of a bucket's stream into an example."""
    names = [field.name for field in dataclasses.fields(transforms.ConditionRates)]
    rates = transforms.ConditionRates(**{name: getattr(config, name) for name in names})
    rng = np.random.default_rng((config.seed, number, index))
    clip = transforms.make_clip(
        pair.target,
        null_text,
        rng,
        rates,
        num_latents=config.buckets[number][0],
        patch=config.patch,
    )
    if not pair.others:
        return clip
    reference = references.make_reference(
        pair.others, config.reference, rng, patch=config.patch
    )
    told = clip.conditions
    reference = references.tell(
        reference,
        shown=rng.random() >= config.reference_dropout,
        heard=bool(told.audio_valid),
        moving=bool(told.motion_valid),
    )
    return clip.replace(conditions=told.replace(reference=reference))


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


def normalise(weights: Sequence[float | int]) -> list[float]:
    """Scale weights to a sum of 1."""
    return [weight / sum(weights) for weight in weights]


def _fold(*numbers: int) -> int:
    """Return one seed made from several."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
