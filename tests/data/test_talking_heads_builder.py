"""The builder's records read back as the clips they are (~12 s on 2 cores)."""

import numpy as np
import pytest

from avatar_jax.data.talking_heads import builder, clips, people
from avatar_jax.media import decode
from avatar_jax.types import InputError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    config = builder.TalkingHeadsConfig(
        name="tiny", people=10, clips_per_person=3, num_frames=6, seed=4
    )
    made = builder.TalkingHeads(config=config, data_dir=tmp_path_factory.mktemp("data"))
    made.download_and_prepare()
    return made


def test_splits_share_no_person(dataset):
    people_of = {
        split: {example["person"] for example in dataset.as_data_source(split)}
        for split in builder.SPLITS
    }
    assert [len(people_of[split]) for split in builder.SPLITS] == [8, 1, 1]
    assert len(set.union(*people_of.values())) == 10


def test_records_read_back_as_the_clips_they_are(dataset):
    examples = {e["key"].decode(): e for e in dataset.as_data_source("test")}
    example = examples["4_0000009_0002"]
    clip = clips.make_clip(
        people.sample_person(4, 9), scene=1, utterance=29, num_frames=6
    )
    np.testing.assert_array_equal(builder.unpack_masks(example), clip.masks)
    for name in ("motion", "keypoints", "phonemes", "identity", "face_boxes"):
        np.testing.assert_array_equal(example[name], getattr(clip, name))
    np.testing.assert_allclose(example["audio"] / 32767, clip.audio, atol=1e-4)
    decoded = decode.decode_bytes(example["video"])
    assert np.abs(decoded.astype(int) - clip.frames).mean() < 6
    assert example["caption"].decode() == clip.caption


def test_a_person_has_pairs_of_the_same_and_of_different_scenes(dataset):
    examples = list(dataset.as_data_source("validation"))
    scenes = sorted(example["scene"].decode()[-4:] for example in examples)
    assert scenes == ["0000", "0000", "0001"]


def test_too_few_people_for_three_splits_are_refused():
    with pytest.raises(InputError, match="at least 10 people"):
        builder.TalkingHeadsConfig(name="few", people=9)
