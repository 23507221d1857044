"""The schema of one clip, and how clips are written to and read from disk.

A dataset is a folder of tiers with one key order, each a folder of ArrayRecord shards
with TFDS metadata, so that `tfds.builder_from_directory(tier).as_data_source(split)`
reads it as well:

  clips_media/              video, audio, boxes, caption, rights, scores
  clips_features/           speech, text, motion codes (exact and read), face embedding;
                            beside them null_text.npy and motion_scale.npy
  clips_latents/<codec>/    latents, masks, the blanked still, face crops

Arrays are raw little-endian bytes: float16 where a network wrote them.
"""

import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import message
from jaxtyping import Float, Int, Shaped

from avatar_jax.data import shards
from avatar_jax.types import InputError

MEDIA, FEATURES, LATENTS = "clips_media", "clips_features", "clips_latents"

Example = Mapping[str, Any]


class CorruptRecord(Exception):
    """A record that cannot be read; the message names it."""


def tier_directory(
    dataset: str | pathlib.Path, tier: str, codec: str | None = None
) -> pathlib.Path:
    """Return a tier's folder inside a dataset; `codec` names that of the latents."""
    return pathlib.Path(dataset, tier, *([codec] if codec else []))


def media_schema() -> tfds.features.FeaturesDict:
    """Describe clips_media: 25 fps mp4 without sound, 16 kHz PCM16, boxes in pixels."""
    return _schema(
        person=tfds.features.Text(),
        scene=tfds.features.Text(),
        source=tfds.features.Text(),
        video=tfds.features.Tensor(shape=(), dtype=np.object_),
        audio=_array(None, dtype=np.int16),
        num_frames=np.int32,
        height=np.int32,
        width=np.int32,
        face_boxes=_array(None, 4, dtype=np.float32),  # xyxy
        mouth_boxes=_array(None, 4, dtype=np.float32),
        caption=tfds.features.Text(),
        rights=tfds.features.Text(),  # JSON
        scores=tfds.features.Text(),  # JSON
        schema_version=np.int32,
    )


def features_schema(
    *, motion_width: int, motion_read: bool = False, identity_width: int = 0
) -> tfds.features.FeaturesDict:
    """Describe clips_features; one row per frame; a width of 0: the field is absent.

    `motion_read` holds the codes that a network reads off the stored frames, in the
    units of `motion`. `identity` is the mean face embedding of the clip, a unit vector.
    """
    codes = _array(None, motion_width, dtype=np.float32)
    identity = {"identity": _array(identity_width, dtype=np.float32)}
    return _schema(
        person=tfds.features.Text(),
        scene=tfds.features.Text(),
        speech=_array(None, None, dtype=np.float16),
        text=_array(None, None, dtype=np.float16),
        **({"motion": codes} if motion_width else {}),
        **({"motion_read": codes} if motion_read else {}),
        **(identity if identity_width else {}),
    )


def latents_schema() -> tfds.features.FeaturesDict:
    """Describe clips_latents: all arrays float16, C latent channels.

    Masks hold the share of each cell that lies in the mouth's or the face's box; the
    face's is grown to what reference rows show. `still` is frame 0 with the person
    blanked, `still_mask` the share of each cell that is blank. `faces` are crops.
    """
    return _schema(
        latents=_array(None, None, None, None, dtype=np.float16),
        mouth_mask=_array(None, None, None, dtype=np.float16),
        face_mask=_array(None, None, None, dtype=np.float16),
        still=_array(1, None, None, None, dtype=np.float16),
        still_mask=_array(None, None, dtype=np.float16),
        faces=_array(None, None, None, None, dtype=np.float16),
    )


def _schema(**fields: Any) -> tfds.features.FeaturesDict:
    return tfds.features.FeaturesDict({"key": tfds.features.Text(), **fields})


def _array(*shape: int | None, dtype: type) -> tfds.features.Tensor:
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")


def write_tier(
    directory: str | pathlib.Path,
    split: str,
    schema: tfds.features.FeaturesDict,
    examples: Iterable[Example],
) -> int:
    """Write one split of one tier, replacing what it had; return the count."""
    with shards.TierWriter(directory, split, schema) as writer:
        for example in examples:
            writer.write(example)
    return len(writer)


class TierSource:
    """Random access to the records of one split of one tier."""

    def __init__(self, directory: str | pathlib.Path, split: str):
        self.directory, self.split = pathlib.Path(directory), split
        builder = shards.open_tier(self.directory)
        if split not in builder.info.splits:
            raise InputError(
                f"{directory} has no split {split!r}, only "
                f"{sorted(builder.info.splits)}; prepare it or choose another."
            )
        files = builder.info.splits[split].filepaths
        absent = [path for path in files if not path.exists()]
        if absent or not shards.sizes_path(self.directory, split).exists():
            raise InputError(
                f"{directory} lacks files of split {split!r}: copy it again or "
                "run `python -m avatar_jax.prepare`."
            )
        self._source = builder.as_data_source(split)
        self._texts = [
            name
            for name, feature in builder.info.features.items()
            if isinstance(feature, tfds.features.Text)
        ]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read a record; raise CorruptRecord where it cannot be parsed."""
        try:
            example = self._source[index]
        except (RuntimeError, ValueError, LookupError, message.DecodeError) as error:
            raise CorruptRecord(
                f"record {index} of {self.directory} ({self.split}): "
                f"{str(error).splitlines()[0]}"
            ) from error
        return {**example, **{name: example[name].decode() for name in self._texts}}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def read_sizes(self) -> Int[np.ndarray, "records axes"]:
        """Return `clip_size` of every record without reading any."""
        return np.load(shards.sizes_path(self.directory, self.split))

    def read_people(self) -> Shaped[np.ndarray, "records 2"]:
        """Return person and scene of every record, as strings, without reading any."""
        return np.load(shards.people_path(self.directory, self.split))


def read_tier(directory: str | pathlib.Path, split: str) -> TierSource:
    """Open one split of one tier for random access.

    Raises InputError where it is absent, incomplete or of another schema version.
    """
    return TierSource(directory, split)


def write_null_text(
    dataset: str | pathlib.Path, text: Float[np.ndarray, "L D"]
) -> None:
    """Store the empty prompt's embedding, by which a dropped prompt is replaced."""
    directory = tier_directory(dataset, FEATURES)
    directory.mkdir(parents=True, exist_ok=True)
    shards.save_array(directory / "null_text.npy", text.astype(np.float16))


def read_null_text(dataset: str | pathlib.Path) -> Float[np.ndarray, "L D"]:
    """Load the empty prompt's embedding."""
    path = tier_directory(dataset, FEATURES) / "null_text.npy"
    if not path.exists():
        raise InputError(f"{path} is missing: run `python -m avatar_jax.prepare`.")
    return np.load(path)


def write_motion_scale(
    dataset: str | pathlib.Path, scale: Float[np.ndarray, "2 Dm"]
) -> None:
    """Store mean and standard deviation of the motion codes over all clips."""
    path = tier_directory(dataset, FEATURES) / "motion_scale.npy"
    shards.save_array(path, scale.astype(np.float32))


def read_motion_scale(dataset: str | pathlib.Path) -> Float[np.ndarray, "2 Dm"] | None:
    """Load mean and deviation of the motion codes; None: there are no codes."""
    path = tier_directory(dataset, FEATURES) / "motion_scale.npy"
    return np.load(path) if path.exists() else None
