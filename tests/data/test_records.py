"""Records: TFDS reads them, nothing half-written, corruption named (~3 s, 2 cores)."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from coded_records import damage

from avatar_jax.data import records, shards
from avatar_jax.types import InputError


def features(number, *, start=0, motion_width=2):
    """Feature records whose speech says which record they are."""
    for i in range(start, start + number):
        yield {
            "key": f"clip{i}",
            "person": f"person{i // 2}",
            "scene": f"scene{i}",
            "speech": np.full((5 + i, 3), i, np.float16),
            "text": np.zeros((4, 6), np.float16),
            "motion": np.zeros((5 + i, motion_width), np.float32),
        }


def media():
    return {
        "key": "clip0",
        "person": "7",
        "scene": "garden",
        "source": "a.mp4",
        "video": b"\x00\xffmp4",
        "audio": np.arange(-3, 4, dtype=np.int16),
        "num_frames": 9,
        "height": 16,
        "width": 24,
        "face_boxes": np.ones((9, 4), np.float32),
        "mouth_boxes": np.ones((9, 4), np.float32),
        "caption": "a café",
        "rights": json.dumps({"licence": "CC0"}),
        "scores": "{}",
        "schema_version": shards.SCHEMA_VERSION,
    }


SCHEMA = records.features_schema(motion_width=2)


@pytest.fixture
def tier(tmp_path):
    return records.tier_directory(tmp_path, records.FEATURES)


def test_tfds_reads_what_was_written(tier):
    assert records.write_tier(tier, "train", SCHEMA, features(3)) == 3
    records.write_tier(tier, "test", SCHEMA, features(2, start=3))
    builder = tfds.builder_from_directory(tier)
    assert sorted(builder.info.splits) == ["test", "train"]
    example = builder.as_data_source("test")[1]
    assert example["key"] == b"clip4"
    np.testing.assert_array_equal(example["speech"], np.full((9, 3), 4, np.float16))


def test_every_field_of_a_media_record_comes_back(tmp_path):
    tier = records.tier_directory(tmp_path, records.MEDIA)
    records.write_tier(tier, "train", records.media_schema(), [media()])
    example = records.read_tier(tier, "train")[0]
    for name, value in media().items():
        np.testing.assert_array_equal(example[name], value)
    np.testing.assert_array_equal(
        records.read_tier(tier, "train").read_sizes(), [[9, 16, 24]]
    )


def test_latents_of_two_codecs_live_side_by_side(tmp_path):
    for codec, channels in (("dct48", 48), ("dct64", 64)):
        tier = records.tier_directory(tmp_path, records.LATENTS, codec)
        latents = np.ones((2, 3, 5, channels), np.float16)
        masks = {"mouth_mask": latents[..., 0], "face_mask": latents[..., 0]}
        still = {"still": latents[:1], "still_mask": latents[0, ..., 0]}
        example = {"key": "a", "latents": latents, **masks, **still, "faces": latents}
        records.write_tier(tier, "train", records.latents_schema(), [example])
        source = records.read_tier(tier, "train")
        assert source[0]["latents"].shape == (2, 3, 5, channels)
        assert source.read_sizes().tolist() == [[2, 3, 5, channels]]
        assert tfds.builder_from_directory(tier).info.name == records.LATENTS


def test_many_shards_keep_the_order_and_a_rewrite_replaces_them(tier):
    with shards.TierWriter(tier, "train", SCHEMA, shard_bytes=300) as writer:
        for example in features(7):
            writer.write(example)
    assert len(list(tier.glob("*array_record*"))) > 2
    keys = [example["key"] for example in records.read_tier(tier, "train")]
    assert keys == [f"clip{i}" for i in range(7)]
    sizes = records.read_tier(tier, "train").read_sizes()
    assert sizes.tolist() == [[5 + i, 3] for i in range(7)]
    records.write_tier(tier, "train", SCHEMA, features(2))
    assert len(list(tier.glob("*array_record*"))) == 1
    assert len(records.read_tier(tier, "train")) == 2


def test_a_failed_write_leaves_nothing_and_spares_the_old_split(tier):
    records.write_tier(tier, "train", SCHEMA, features(3))
    before = sorted(path.name for path in tier.iterdir())

    def broken():
        yield from features(2)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        records.write_tier(tier, "train", SCHEMA, broken())
    assert sorted(path.name for path in tier.iterdir()) == before
    assert len(records.read_tier(tier, "train")) == 3


def test_a_corrupt_record_is_named_and_spares_the_others(tier):
    records.write_tier(tier, "train", SCHEMA, features(5))
    damage(tier, 2)
    source = records.read_tier(tier, "train")
    with pytest.raises(records.CorruptRecord, match="record 2 of .*clips_features"):
        source[2]
    assert [source[i]["key"] for i in (0, 1, 3, 4)] == [
        "clip0",
        "clip1",
        "clip3",
        "clip4",
    ]


def test_an_older_schema_says_what_to_run(tier):
    records.write_tier(tier, "train", SCHEMA, features(1))
    info = tier / "dataset_info.json"
    info.write_text(
        info.read_text().replace(f'"{shards.SCHEMA_VERSION}.0.0"', '"0.3.0"')
    )
    with pytest.raises(InputError, match="version 0.3.0.*python -m avatar_jax.prepare"):
        records.read_tier(tier, "train")


def test_absent_tiers_splits_and_files_are_input_errors(tier):
    with pytest.raises(InputError, match="holds no records"):
        records.read_tier(tier, "train")
    records.write_tier(tier, "train", SCHEMA, features(1))
    with pytest.raises(InputError, match="no split 'test', only .'train'."):
        records.read_tier(tier, "test")
    next(tier.glob("*array_record*")).unlink()
    with pytest.raises(InputError, match="lacks files"):
        records.read_tier(tier, "train")


def test_records_without_motion_and_with_unknown_fields(tier):
    schema = records.features_schema(motion_width=0)
    records.write_tier(tier, "train", schema, features(1, motion_width=0))
    assert "motion" not in records.read_tier(tier, "train")[0]
    with pytest.raises(InputError, match="unknown: .'motion'."):
        records.write_tier(tier, "train", schema, features(1))
    with pytest.raises(InputError, match="other fields"):
        records.write_tier(tier, "test", SCHEMA, features(1))


def test_people_and_scenes_are_known_without_reading_a_record(tier):
    records.write_tier(tier, "train", SCHEMA, features(3))
    for shard in tier.glob("*array_record*"):
        shard.write_bytes(shard.read_bytes()[:0])
    people = np.load(shards.people_path(tier, "train"))
    wanted = [["person0", "scene0"], ["person0", "scene1"], ["person1", "scene2"]]
    assert people.tolist() == wanted


def test_an_identity_is_there_where_the_schema_has_one(tier):
    schema = records.features_schema(motion_width=2, identity_width=3)
    (example,) = features(1)
    unit = np.array([0.6, 0.0, 0.8], np.float32)
    records.write_tier(tier, "train", schema, [{**example, "identity": unit}])
    np.testing.assert_array_equal(records.read_tier(tier, "train")[0]["identity"], unit)


def test_motion_scale_comes_back_and_may_be_absent(tmp_path):
    records.write_null_text(tmp_path, np.zeros((1, 1)))
    assert records.read_motion_scale(tmp_path) is None
    scale = np.array([[1.5, -2.0], [0.25, 3.0]])
    records.write_motion_scale(tmp_path, scale)
    np.testing.assert_array_equal(records.read_motion_scale(tmp_path), scale)


def test_null_text_comes_back(tmp_path):
    with pytest.raises(InputError, match="null_text.npy is missing"):
        records.read_null_text(tmp_path)
    text = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    records.write_null_text(tmp_path, text)
    np.testing.assert_allclose(records.read_null_text(tmp_path), text, atol=2e-3)
