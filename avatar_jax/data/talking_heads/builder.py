"""The procedural talking heads as a tensorflow-datasets builder; needs no TensorFlow.

    builder = TalkingHeads(config=TalkingHeadsConfig(name="small", people=20))
    builder.download_and_prepare()
    builder.as_data_source("train")[0]

A record holds the fields of clips_media and the ground truth that only a renderer has.
Clips 2k and 2k + 1 of a person share scene k, so that same-scene and cross-scene pairs
of one person both exist; no person is in two splits.
"""

import dataclasses
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from jaxtyping import UInt8

from avatar_jax.data import records, shards
from avatar_jax.data.talking_heads import (
    examples,
    geometry,
    motion,
    people,
    render,
)
from avatar_jax.data.talking_heads.people import Split
from avatar_jax.types import InputError

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_FEWEST_PEOPLE = 10  # one of each ten is in the validation and one in the test split


@dataclasses.dataclass(kw_only=True)
class TalkingHeadsConfig(tfds.core.BuilderConfig):
    """How many people, how many clips of each, how long, how large."""

    people: int = 100
    clips_per_person: int = 4
    num_frames: int = 97
    size: int = 64  # pixels, 64 to 512
    seed: int = 0

    def __post_init__(self) -> None:
        if (
            self.people < _FEWEST_PEOPLE
            or min(self.clips_per_person, self.num_frames) < 1
        ):
            raise InputError(
                f"expected at least {_FEWEST_PEOPLE} people, 1 clip each and 1 frame, "
                f"got {self.people}, {self.clips_per_person} and {self.num_frames}"
            )


class TalkingHeads(tfds.core.GeneratorBasedBuilder):
    """People who do not exist, with exact identity, motion, speech and scene."""

    # TFDS 4.9.10 infers this with a package that it does not require.
    code_path = epath.Path(__file__)
    VERSION = tfds.core.Version(f"{shards.SCHEMA_VERSION}.0.0")
    BUILDER_CONFIGS = [
        TalkingHeadsConfig(name="default", description="100 people, 4 clips of 4 s"),
        TalkingHeadsConfig(
            name="long",
            description="20 people, 2 clips of 60 s",
            people=20,
            clips_per_person=2,
            num_frames=1501,
        ),
    ]

    def __init__(self, **kwargs: Any):
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        truth = tfds.features.FeaturesDict(
            {
                "motion": _array(None, len(motion.MOTION_NAMES)),
                "keypoints": _array(None, len(geometry.KEYPOINT_NAMES), 2),
                "phonemes": _array(None, dtype=np.int32),
                "identity": _array(len(people.IDENTITY_NAMES)),
                # zlib of uint8 [num_frames, height, width], see unpack_masks
                "masks": tfds.features.Tensor(shape=(), dtype=np.object_),
            }
        )
        return self.dataset_info_from_configs(
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {**dict(records.media_schema()), **dict(truth)}
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: Split) -> Iterator[tuple[str, dict[str, Any]]]:
        config = self.builder_config
        for index in range(config.people):
            if people.split_of(index) != split:
                continue
            person = people.sample_person(config.seed, index)
            for number in range(config.clips_per_person):
                example = examples.make_example(
                    person,
                    number,
                    seed=config.seed,
                    clips_per_person=config.clips_per_person,
                    num_frames=config.num_frames,
                    size=config.size,
                )
                yield example["key"], example


def unpack_masks(example: dict[str, Any]) -> UInt8[np.ndarray, "frames Y X"]:
    """Inflate the masks of a record; values index `render.MASK_NAMES`."""
    flat = np.frombuffer(zlib.decompress(example["masks"]), np.uint8)
    masks = flat.reshape(-1, int(example["height"]), int(example["width"]))
    assert masks.max() < len(render.MASK_NAMES)
    return masks


def _array(*shape: int | None, dtype: type = np.float32) -> tfds.features.Tensor:
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")
