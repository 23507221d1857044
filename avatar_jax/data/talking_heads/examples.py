"""One clip of a procedural person as a record, with the truth only a renderer has."""

import json
import zlib
from typing import Any

import numpy as np

from avatar_jax.data import shards
from avatar_jax.data.talking_heads import clips
from avatar_jax.data.talking_heads.people import Person
from avatar_jax.media import encode

_FULL_SCALE = 32_767  # of PCM16
_RIGHTS = json.dumps({"license": "Apache-2.0", "persons": "none, procedural"})


def make_example(
    person: Person,
    number: int,
    *,
    seed: int,
    clips_per_person: int,
    num_frames: int,
    size: int,
) -> dict[str, Any]:
    """Film clip `number` of a person; no two clips of a dataset say the same.

    Returns the fields of `records.media_schema` and motion `frames codes`, keypoints,
    phonemes, identity, and masks (zlib of uint8 `frames Y X`). Clips 2k and 2k + 1 of a
    person share scene k.
    """
    scene, utterance = number // 2, person.index * clips_per_person + number
    clip = clips.make_clip(
        person, scene=scene, utterance=utterance, num_frames=num_frames, size=size
    )
    name = f"{seed}_{person.index:07d}"
    return {
        "key": f"{name}_{number:04d}",
        "person": name,
        "scene": f"{name}_{scene:04d}",
        "source": "talking_heads",
        "caption": clip.caption,
        "rights": _RIGHTS,
        "scores": json.dumps({}),
        "schema_version": shards.SCHEMA_VERSION,
        "video": encode.encode_bytes(clip.frames),
        "audio": np.round(clip.audio * _FULL_SCALE).astype(np.int16),
        "num_frames": num_frames,
        "height": size,
        "width": size,
        "face_boxes": clip.face_boxes,
        "mouth_boxes": clip.mouth_boxes,
        "motion": clip.motion,
        "keypoints": clip.keypoints,
        "phonemes": clip.phonemes,
        "identity": clip.identity,
        "masks": zlib.compress(clip.masks.tobytes()),
    }
