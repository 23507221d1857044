"""Who the procedural people are, and what a scene changes (~8 s on 2 cores)."""

import numpy as np
import pytest

from avatar_jax.data.talking_heads import clips, people, scene
from avatar_jax.types import InputError


def test_a_clip_depends_on_seed_person_scene_and_utterance_alone():
    def make(seed=1, index=2, place=3, utterance=4):
        person = people.sample_person(seed, index)
        return clips.make_clip(person, scene=place, utterance=utterance, num_frames=3)

    clip = make()
    np.random.seed(0)  # global state must not matter
    again = make()
    np.testing.assert_array_equal(clip.frames, again.frames)
    np.testing.assert_array_equal(clip.audio, again.audio)
    for other in (make(seed=0), make(index=3), make(place=4), make(utterance=5)):
        assert (clip.frames != other.frames).any()


def test_people_never_change_split_and_each_split_has_some():
    splits = [people.split_of(index) for index in range(100)]
    assert {split: splits.count(split) for split in set(splits)} == {
        "train": 80,
        "validation": 10,
        "test": 10,
    }


def test_the_identity_code_is_the_person_and_not_the_scene():
    person, other = people.sample_person(0, 5), people.sample_person(0, 6)
    first = clips.make_clip(person, scene=0, utterance=0, num_frames=2)
    second = clips.make_clip(person, scene=1, utterance=1, num_frames=2)
    np.testing.assert_array_equal(first.identity, second.identity)
    assert len(first.identity) == len(people.IDENTITY_NAMES)
    assert np.abs(first.identity).max() <= 1
    assert np.abs(person.identity - other.identity).mean() > 0.3


def test_a_scene_keeps_its_background_and_another_scene_does_not():
    person = people.sample_person(0, 5)
    corners = [
        clips.make_clip(person, scene=place, utterance=words, num_frames=2).frames[
            :, :6, :6
        ]
        for place, words in ((0, 0), (0, 7), (1, 0))
    ]
    np.testing.assert_array_equal(corners[0][0], corners[1][0])
    assert np.abs(corners[0].astype(int) - corners[2]).mean() > 3
    assert scene.sample_scene(person, 0).garment_colour == (
        scene.sample_scene(person, 0).garment_colour
    )


def test_voice_cannot_be_read_from_the_looks():
    crowd = [people.sample_person(0, index) for index in range(400)]
    looks = np.stack([p.identity for p in crowd])
    pitch = np.array([p.voice.pitch for p in crowd])
    correlations = np.corrcoef(looks.T, pitch)[-1, :-1]
    # 72 factors, 400 people: the largest of them is about 3 / sqrt(400) by chance.
    assert np.abs(correlations).max() < 0.2


def test_factors_reach_all_styles():
    crowd = [people.sample_person(3, index) for index in range(200)]
    assert len({p.hair_style for p in crowd}) == 9
    assert 0.2 < np.mean([p.looks.glasses for p in crowd]) < 0.5
    assert all(p.looks.mole > 0 or p.looks.earring > 0 for p in crowd)


@pytest.mark.parametrize("seed, index", [(-1, 0), (0, -1)])
def test_negative_seeds_are_refused(seed, index):
    with pytest.raises(InputError, match="at least 0"):
        people.sample_person(seed, index)


def test_captions_say_what_is_seen():
    clip = clips.make_clip(
        people.sample_person(0, 3), scene=0, utterance=0, num_frames=1
    )
    assert "short teal hair" in clip.caption and "glasses" in clip.caption
