"""Records whose values say which clip, and which place in it, they are."""

import re

import numpy as np

from avatar_jax.data import pipeline, records

H, W, C, DA, L, DT, DM, DI, CROPS, SIDE = 4, 6, 8, 3, 5, 7, 2, 9, 3, 2
LENGTHS = (9, 4, 7, 12, 8, 7, 10, 9, 7, 11, 3)  # latents
# Three people in two scenes of two clips each, then one in one scene, one in one clip.
SCENES = [(f"p{i}", f"p{i}s{j}") for i in range(3) for j in (0, 0, 1, 1)]
SCENES += [("p3", "p3s0")] * 3 + [("p4", "p4s0")]
SCALE = np.array([[5.0, -3.0], [2.0, 4.0]], np.float32)  # mean, std of motion codes
FACE = (1, 3)  # the cell of a face; its patch is (0, 1)


def coded(clip, places, *shape):
    """Arrays whose values are 100 clip + place."""
    values = 100 * clip + np.arange(places, dtype=np.float16)
    return np.broadcast_to(
        values.reshape(-1, *(1 for _ in shape)), (places, *shape)
    ).astype(np.float16)


def blank_cells(height=H):
    """A patch that is all blank, and beside it one that is blank in part."""
    blank = np.zeros((height, W), np.float16)
    blank[2:4, 2:5] = 1
    return blank


def latents_of(n, length, height=H):
    mask = np.zeros((length, height, W), np.float16)
    mask[:, *FACE] = 0.5
    return {
        "key": f"clip{n}",
        "latents": coded(n, length, height, W, C),
        "mouth_mask": coded(n, length, height, W),
        "face_mask": mask,
        "still": np.full((1, height, W, C), -n, np.float16),
        "still_mask": blank_cells(height),
        "faces": np.full((CROPS, SIDE, SIDE, C), n, np.float16),
    }


def features_of(n, length, person, scene, *, motion_read=False):
    frames = 4 * (length - 1) + 1
    codes = SCALE[1] * coded(n, frames, DM).astype(np.float32)
    identity = np.zeros(DI, np.float32)
    identity[n % DI] = 1
    return {
        "key": f"clip{n}",
        "person": person,
        "scene": scene,
        "speech": coded(n, frames, DA),
        "text": np.full((L, DT), n + 1, np.float16),
        "motion": SCALE[0] + codes,
        **({"motion_read": SCALE[0] - codes} if motion_read else {}),
        "identity": identity,
    }


def write_dataset(
    folder,
    split="train",
    lengths=LENGTHS,
    height=H,
    first=0,
    scenes=SCENES,
    motion_read=False,
):
    """Latent i of clip n is 100 n + i everywhere; audio and motion row j 100 n + j.

    Motion as a network read it, where it is stored, is the negative of that.
    """
    clips = list(enumerate(lengths, first))
    tier = records.tier_directory(folder, records.LATENTS, "dct64")
    latents = (latents_of(n, length, height) for n, length in clips)
    records.write_tier(tier, split, records.latents_schema(), latents)
    schema = records.features_schema(
        motion_width=DM, motion_read=motion_read, identity_width=DI
    )
    tier = records.tier_directory(folder, records.FEATURES)
    features = (
        features_of(n, f, *scenes[n % len(scenes)], motion_read=motion_read)
        for n, f in clips
    )
    records.write_tier(tier, split, schema, features)
    records.write_null_text(folder, np.zeros((L, DT), np.float32))
    records.write_motion_scale(folder, SCALE)
    return str(folder)


def make(folder, *, process_index=0, process_count=1, **fields):
    fields = {"directories": (folder,), "buckets": ((5, 4, 1.0),), **fields}
    config = pipeline.PipelineConfig(**fields)
    return pipeline.make_dataset(
        config, process_index=process_index, process_count=process_count
    )


def take(dataset, number):
    iterator = iter(dataset)
    return [next(iterator) for _ in range(number)]


def clip_of(batch):
    return (batch.target.latents[:, 0, 0, 0, 0] // 100).astype(int).tolist()


def damage(tier, index):
    """Overwrite bytes in the middle of a record of a tier of one shard.

    A chunk's header ends with its type ("r"), its number of records (7 bytes) and its
    decoded size (8 bytes); github.com/google/riegeli, doc/riegeli_records_file_format.
    """
    (path,) = tier.glob("*array_record*")
    data = bytearray(path.read_bytes())
    chunks = list(re.finditer(re.escape(b"r" + (1).to_bytes(7, "little")), data))
    start = chunks[index].end() + 8
    data[start + 4 : start + 14] = bytes(10)
    path.write_bytes(data)
