"""Where a dataset cannot give the reference that was asked for (~10 s, 2 cores)."""

import pytest
from coded_records import SCENES, damage, make, take, write_dataset
from test_references import (
    ALL,
    LENGTHS,
    PERSON,
    SEGMENTS,
    joined,
    sources_of,
)

from avatar_jax.data import records


@pytest.fixture
def folder(tmp_path):
    return write_dataset(tmp_path / "pairs", lengths=LENGTHS)


def test_exact_codes_are_named_once_where_a_reference_shows_them(
    folder, tmp_path, caplog
):
    take(make(folder), 2)  # without references
    seen = write_dataset(tmp_path / "seen", lengths=LENGTHS, motion_read=True)
    take(make(seen, **ALL), 2)
    assert "show exact" not in caplog.text
    take(make(folder, **ALL), 2)
    assert caplog.text.count("references show exact") == 1


def test_a_clip_whose_mates_are_all_corrupt_is_its_own_reference(folder, caplog):
    tier = records.tier_directory(folder, records.FEATURES)
    own = [n for n, person in enumerate(PERSON) if person == PERSON[0]]
    for clip in own[1:]:
        damage(tier, clip)
    clips, reference = joined(take(make(folder, **ALL), 40))
    assert not set(clips) & set(own[1:])
    of = dict(zip(clips, sources_of(reference).tolist(), strict=True))
    assert of[0] == [0] * SEGMENTS
    assert caplog.text.count("single clip is usable") == 1
    assert f"({len(own) - 1} so far)" in caplog.text


def test_where_other_scenes_are_corrupt_the_same_scene_is_shown(folder, caplog):
    tier = records.tier_directory(folder, records.FEATURES)
    elsewhere = [
        n for n, person in enumerate(PERSON) if person == PERSON[0] and n not in (0, 1)
    ]
    for clip in elsewhere:
        damage(tier, clip)
    assert SCENES[0] == SCENES[1] not in [SCENES[n] for n in elsewhere]
    clips, reference = joined(take(make(folder, **ALL), 40))
    of = dict(zip(clips, sources_of(reference).tolist(), strict=True))
    assert (of[0], of[1]) == ([1] * SEGMENTS, [0] * SEGMENTS)


def test_people_of_a_single_scene_are_named_once(folder, tmp_path, caplog):
    several = write_dataset(tmp_path / "s", lengths=LENGTHS[:8], scenes=SCENES[:8])
    take(make(several, **ALL), 10)
    assert "single scene" not in caplog.text
    take(make(folder, **ALL), 20)
    assert caplog.text.count("single scene is usable") == 1
    assert caplog.text.count("single clip is usable") == 1
