"""Who is found, whose manner, and that references are passed on; ~70 s on 2 cores."""

import dataclasses
import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import save_random

from avatar_jax import command, evaluate
from avatar_jax.data.talking_heads.motion import MOTION_NAMES
from avatar_jax.evaluation import (
    demo_cases,
    demo_scores,
    personality_scores,
    training_cases,
)
from avatar_jax.evaluation.metrics import identity, style
from avatar_jax.media import decode
from avatar_jax.models import faces, judges
from avatar_jax.sampling import pictures, pretrained, video
from avatar_jax.types import Reference

PEOPLE = 3  # of the small gallery
PERSONAL = {
    "identity_top1_of_20",
    "identity_reference_swapped",
    "identity_reference_absent",
    "identity_ceiling",
    "style_nearest_over_chance",
    "style_nearest_swapped_over_chance",
    "style_nearest_absent_over_chance",
    "style_ceiling_over_chance",
    "style_distance",
    "style_distance_absent",
    "style_distance_ceiling",
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A random network that reads a reference and blanks the still."""
    return save_random(
        tmp_path_factory.mktemp("weights"),
        parts={"reference": True, "motion_width": len(MOTION_NAMES)},
        reference_latents=6,
        segment_latents=3,
        blank_still=True,
    )


@pytest.fixture(scope="module")
def small():
    """A gallery of a few people, and an identity judge that nobody has trained."""
    empty = jnp.zeros((1, judges.VIEW, judges.VIEW, 3))
    params = faces.FaceEmbedder().init(jax.random.key(0), empty)["params"]
    by = personality_scores.Judges(
        motion=judges.load(judges.asset("motion", "evaluation")),
        identity=judges.Judge("identity", params, {}, "random"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "use_compilation_cache", lambda: None)
        patch.setattr(personality_scores, "load_judges", lambda: by)
        for name, value in {
            "AMONG": PEOPLE,
            "CLIPS": 1,
            "_WHITENING_PEOPLE": 2,
            "_WHITENING_CLIPS": 2,
        }.items():
            patch.setattr(personality_scores, name, value)
        yield


@pytest.fixture(scope="module")
def scored(weights, small, tmp_path_factory):
    """The folder that `evaluate demo` leaves."""
    out = tmp_path_factory.mktemp("scored")
    argv = ["demo", "--weights", str(weights), "--out", str(out), "--steps", "1"]
    assert command.run(evaluate.main, [*argv, "--cases", "2"]) == 0
    return out


def test_the_nearest_person_has_rank_one():
    distances = np.array([[0.1, 0.5, 0.3], [0.2, 0.9, 0.3]])
    ranks = identity.rank(distances, np.array([0, 1]), among=3)
    assert ranks.tolist() == [1, 3]


def test_equal_distances_count_against_the_person():
    ranks = identity.rank(np.zeros((1, 4)), np.array([2]), among=4)
    assert ranks.tolist() == [4]


def test_in_a_larger_gallery_twenty_neighbours_are_asked():
    far = np.ones((2, 50))
    far[:, 30] = 0  # nearer than anybody, but no neighbour of 5
    far[0, 5], far[1, 25] = 0.5, 0.5
    assert identity.rank(far, np.array([5, 25]), among=20).tolist() == [1, 2]
    with pytest.raises(ValueError, match="50"):
        identity.rank(far, np.array([5, 25]), among=51)


def test_chance_finds_one_in_twenty():
    draw = np.random.default_rng(0)
    ranks = identity.rank(draw.random((4000, 20)), draw.integers(0, 20, 4000), among=20)
    assert (ranks == 1).mean() == pytest.approx(1 / 20, abs=0.01)


def test_statistics_of_a_clip_that_is_known():
    codes = np.zeros((50, len(MOTION_NAMES)))
    codes[:, MOTION_NAMES.index("smile")] = 0.25
    codes[::2, MOTION_NAMES.index("mouth_open")] = 1.0
    told = style.describe(codes, MOTION_NAMES)
    assert told[0] == 0.5 and told[1] == 0.25  # means of mouth and smile
    assert told[7] == pytest.approx(np.log(0.52))  # spread of the mouth
    assert told[14] == pytest.approx(np.log(1.005))  # its change per frame
    assert told[17] == 1.0  # its upper end
    assert style.describe(np.stack([codes] * 3), MOTION_NAMES).shape == (3, 18)


def test_whitening_measures_in_spreads_of_one_person():
    draw = np.random.default_rng(1)
    spread = np.array([[2.0, 0.0], [1.0, 0.1]])  # correlated, of unlike size
    people = draw.normal(size=(400, 1, 2)) * 30
    clips = people + draw.normal(size=(400, 5, 2)) @ spread
    whitening = style.fit_whitening(clips, shrinkage=0.0)
    first, second = clips[:, 0], clips[:, 1]
    own = np.diagonal(whitening.distances(first, second))
    assert (own**2).mean() == pytest.approx(2, rel=0.1)
    moved = first + np.array([[2.0, 0.0]])  # along one row of `spread`: one unit
    one = np.diagonal(whitening.distances(moved, first))
    assert one == pytest.approx(np.full(400, 2**-0.5), rel=0.1)


def test_one_clip_of_each_person_cannot_be_whitened():
    with pytest.raises(ValueError, match="2 clips"):
        style.fit_whitening(np.zeros((4, 1, 3)))


def test_references_and_speeches_are_passed_on_within_a_batch():
    rows = jnp.arange(3)
    reference = Reference(
        latents=rows, valid=jnp.ones((3, 2, 1, 1), bool), segment_ids=rows
    )
    prepared = video.Prepared(
        still=rows, speech=rows, text=rows, null_text=rows, reference=reference
    )
    other = demo_scores.give(prepared, demo_scores.Given(speech=1))
    assert other.speech.tolist() == [1, 2, 0]
    assert other.reference.latents.tolist() == other.still.tolist() == [0, 1, 2]
    swapped = demo_scores.give(prepared, demo_scores.Given(reference=1))
    assert swapped.speech.tolist() == swapped.still.tolist() == [0, 1, 2]
    assert swapped.reference.latents.tolist() == [1, 2, 0]
    absent = demo_scores.give(prepared, demo_scores.Given(reference=None))
    assert not absent.reference.valid.any()


def test_people_of_the_gallery_find_themselves_and_nobody_else(small):
    gallery = personality_scores.make_gallery(
        "validation",
        2,
        personality_scores.load_judges(),
        codec=pretrained.codec.DCTCodec(),
        num_frames=49,
        size=64,
    )
    assert gallery.people == (8, 18, 28)
    own = personality_scores.find(gallery.known, gallery, gallery.people)
    assert own.identity_first.tolist() == [1, 1, 1]
    assert own.style_over_chance.tolist() == [PEOPLE] * 3
    assert np.abs(own.style_distance).max() < 1e-6
    other = personality_scores.find(gallery.known, gallery, (18, 28, 8))
    assert not other.identity_first.any() and (other.style_rank > 1).all()


def test_weights_with_a_reference_get_the_figures_of_personality(scored):
    metrics = json.loads((scored / "metrics.json").read_text())
    assert metrics.keys() >= PERSONAL | {f"{name}_ci95" for name in PERSONAL}
    page = (scored / "report.html").read_text()
    assert all(f"<td>{name}</td>" in page for name in PERSONAL)
    columns = decode.read_video(scored / "side_by_side.mp4").frames.shape[2]
    assert columns == 4 * 192  # the reference is one of them


def test_the_still_of_a_case_says_nothing_of_the_person(weights, tmp_path):
    """The figures of looks and manner rest on it."""
    loaded = pretrained.load(weights)
    case = demo_cases.make_case(tmp_path, 9, num_frames=25, size=64)
    before, _ = demo_scores.prepare_cases([case], loaded)
    path = case.folder / "still.png"
    shown = pictures.read_portrait(path, most=1, crop="face", size=64)
    x0, y0, x1, y1 = shown.boxes[0].round().astype(int)
    painted = case.still.copy()
    painted[y0:y1, x0:x1] = 255 - painted[y0:y1, x0:x1]
    cv2.imwrite(str(path), painted[..., ::-1])
    after, _ = demo_scores.prepare_cases([case], loaded)
    np.testing.assert_array_equal(before.still, after.still)
    np.testing.assert_array_equal(before.still_valid, after.still_valid)
    assert not before.still_valid.all()


def test_the_reference_changes_what_is_generated(scored):
    folder = scored / "cases" / "case_00"
    made = {
        name: decode.read_video(folder / f"{name}.mp4").frames.astype(int)
        for name in ("generated", "swapped", "absent")
    }
    for name in ("swapped", "absent"):
        assert np.abs(made["generated"] - made[name]).max() > 0


def test_training_scores_the_same_people_each_time(weights, small):
    loaded = pretrained.load(weights)
    evaluator = training_cases.CaseEvaluator(loaded.card, num_people=2, num_steps=1)
    first, videos = evaluator(1, {"model": loaded.params})
    again, _ = evaluator(2, {"model": loaded.params})
    assert first == again and not videos
    assert first.keys() == {
        "cases/sync",
        "cases/identity_rank",
        "cases/identity_top1",
        "cases/style_distance",
    }
    assert 1 <= first["cases/identity_rank"] <= PEOPLE


def test_training_cases_need_a_reference_and_a_size(weights):
    card = pretrained.load(weights).card
    for change in ({"size": 0}, {"reference_latents": 0}):
        with pytest.raises(ValueError, match="takes a reference"):
            training_cases.CaseEvaluator(dataclasses.replace(card, **change))
