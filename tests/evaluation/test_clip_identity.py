"""Drawn people of two colours, told apart and known from a reference; ~60 s."""

import dataclasses
import json

import numpy as np
import pytest
from drawn_clips import FRAMES, SIZE, record, show_as_generated
from random_weights import save_random

from avatar_jax import command, evaluate
from avatar_jax.data import records
from avatar_jax.evaluation import clip_cases, clip_identity
from avatar_jax.media import decode
from avatar_jax.sampling import pretrained, request


@pytest.fixture(scope="module")
def two_people(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    tier, schema = records.tier_directory(folder, records.MEDIA), records.media_schema()
    for split, start in (("test", 0), ("train", 70)):
        people = [("me", 0), ("you", 1), ("you", 2), ("me", 3), ("you", 4)]
        made = [record(f"{split}{n}", who, start + n) for who, n in people]
        records.write_tier(tier, split, schema, made)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return save_random(folder, parts={"reference": True}, reference_latents=6)


def test_references_are_swapped_to_all_others_and_scenes_stay(two_people, tmp_path):
    cases = clip_cases.read_cases(two_people, tmp_path, size=SIZE)
    swapped = clip_cases.swap_references(cases)
    assert all(
        s.reference.person != c.person for c, s in zip(cases, swapped, strict=True)
    )
    assert [s.scene for s in swapped] == [c.scene for c in cases]
    # One after the other: no clip is lent twice before all were lent once.
    assert len({s.reference.key for s in swapped}) >= 4
    mine = [case for case in cases if case.person == "me"]
    assert clip_cases.swap_references(mine) == []


@pytest.mark.parametrize("shift", [0, 1])
def test_the_person_shown_is_found_whoever_was_asked_for(two_people, tmp_path, shift):
    cases = clip_cases.read_cases(two_people, tmp_path, size=SIZE)
    show_as_generated(cases, shift)  # "me" and "you" are not in turn
    swapped = clip_cases.swap_references(cases)
    for case in cases:
        shown = (case.folder / "generated.mp4").read_bytes()
        (case.folder / "swapped.mp4").write_bytes(shown)
    gallery = clip_identity.read_gallery(two_people)
    rows = clip_identity.find_people(cases, swapped, gallery)
    seen = [cases[(n + shift) % len(cases)].person for n in range(len(cases))]
    right = [case.person == who for case, who in zip(cases, seen, strict=True)]
    np.testing.assert_array_equal(rows["identity_top1"], right)
    np.testing.assert_array_equal(rows["identity_swapped"], ~np.array(right))
    assert rows["identity_ceiling"].all()


def test_a_reference_is_not_compared_with_itself(two_people):
    gallery = clip_identity.read_gallery(two_people)
    assert gallery.people == ("me", "you")
    own = gallery.clips["me"]
    row = gallery.describe(without="train0")[0]
    np.testing.assert_allclose(row, own["train3"])
    alone = clip_identity.Gallery({"me": {"train0": own["train0"]}})
    np.testing.assert_allclose(alone.describe(without="train0")[0], own["train0"])


def test_one_person_alone_is_not_sought(tmp_path):
    tier = records.tier_directory(tmp_path, records.MEDIA)
    train = [record(f"train{n}", "me", 90 + n) for n in range(2)]
    records.write_tier(tier, "train", records.media_schema(), train)
    assert clip_identity.read_gallery(tmp_path) is None


@pytest.fixture
def cases(two_people, tmp_path):
    return clip_cases.read_cases(two_people, tmp_path, size=SIZE, limit=2)


def make(cases, weights, *, blank_person):
    loaded = pretrained.load(weights)
    settings = pretrained.choose_settings(loaded.card, num_steps=1)
    how = {"settings": settings, "seed": 0, "blank_person": blank_person}
    clip_cases.generate_cases(cases, loaded, **how)
    return [clip_cases.read_video(case, "generated") for case in cases]


@pytest.mark.parametrize("blank_person", [True, False])
def test_a_blanked_person_is_known_from_the_reference_alone(
    cases, weights, blank_person
):
    own = make(cases, weights, blank_person=blank_person)
    repainted = [replace_face(case) for case in cases]
    same = np.array_equal(make(repainted, weights, blank_person=blank_person), own)
    assert same == blank_person
    swapped = clip_cases.swap_references(cases)
    assert (make(swapped, weights, blank_person=blank_person)[0] != own[0]).any()


@pytest.mark.parametrize("blank_person", [True, False])
def test_a_reference_has_its_own_speech_and_boxes(
    cases, weights, monkeypatch, blank_person
):
    given, encode = [], request.encode

    def recorded(*args, person, **told):
        given.extend(person)
        return encode(*args, person=person, **told)

    monkeypatch.setattr(request, "encode", recorded)
    make(cases, weights, blank_person=blank_person)
    for clip, case in zip(given, cases, strict=True):
        np.testing.assert_array_equal(clip.wave, case.reference.wave)
        np.testing.assert_array_equal(clip.boxes, case.reference.boxes)


def replace_face(case):
    """Paint over the face of the scene; the reference stays."""
    frames = case.scene.frames.copy()
    x0, y0, x1, y1 = case.still_box.round().astype(int)
    frames[:, y0:y1, x0:x1] = 10
    scene = dataclasses.replace(case.scene, frames=frames)
    return dataclasses.replace(case, scene=scene)


def test_the_command_blanks_the_person_and_swaps_references(
    two_people, weights, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(command, "use_compilation_cache", lambda: None)
    argv = ["clips", "--records", str(two_people), "--weights", str(weights)]
    argv += ["--out", str(tmp_path / "out"), "--steps", "1", "--cases", "2"]
    assert command.run(evaluate.main, [*argv, "--blank-person"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for name in clip_identity.MEANING:
        low, high = metrics[f"{name}_ci95"]
        assert 0 <= low <= metrics[name] + 1e-9
        assert metrics[name] <= high + 1e-9
    assert metrics["identity_chance"] == 0.5
    assert metrics["people"].keys() == {"me", "you"}
    assert metrics["people"]["me"]["identity_ceiling"] == 1
    assert "mean over people" in capsys.readouterr().out
    made = decode.read_video(tmp_path / "out" / "cases" / "case_01" / "swapped.mp4")
    assert made.frames.shape == (FRAMES, SIZE, SIZE, 3)


def test_weights_without_reference_refuse_a_blanked_person(
    two_people, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(command, "use_compilation_cache", lambda: None)
    weights = save_random(tmp_path)
    argv = ["clips", "--records", str(two_people), "--weights", str(weights)]
    argv += ["--out", str(tmp_path / "out"), "--blank-person"]
    assert command.run(evaluate.main, argv) == 2
    error = capsys.readouterr().err
    assert "leave --blank-person out" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
