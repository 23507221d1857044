"""From a random network to cases, figures and a report; ~30 s on 2 cores."""

import json
import re

import numpy as np
import pytest
from random_weights import save_random

from avatar_jax import command, evaluate
from avatar_jax.evaluation import demo_cases, demo_scores, judge_frames
from avatar_jax.evaluation.metrics import sync
from avatar_jax.media import decode
from avatar_jax.models import judges
from avatar_jax.sampling import pretrained

CASES = 2
KEYS = {
    "cases",
    "sync_correlation",
    "sync_correlation_shuffled",
    "sync_correlation_wrong_speech",
    "sync_correlation_codec_ceiling",
    "psnr_codec",
    "sharpness_ratio",
    "motion_ratio",
    "seconds_run",
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_random(tmp_path_factory.mktemp("weights"), chunk_latents=13)


@pytest.fixture(scope="module")
def scored(weights, tmp_path_factory):
    """The folder that `evaluate demo` leaves."""
    out = tmp_path_factory.mktemp("scored")
    argv = ["demo", "--weights", str(weights), "--out", str(out), "--steps", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "use_compilation_cache", lambda: None)
        assert command.run(evaluate.main, [*argv, "--cases", str(CASES)]) == 0
    return out


def test_every_figure_is_there_with_its_interval(scored):
    metrics = json.loads((scored / "metrics.json").read_text())
    assert metrics.keys() >= KEYS
    assert metrics["cases"] == CASES
    low, high = metrics["sync_correlation_ci95"]
    assert low <= metrics["sync_correlation"] <= high
    assert metrics["psnr_codec"] > 25


def test_the_codec_ceiling_is_high_and_noise_is_not_in_sync(scored):
    metrics = json.loads((scored / "metrics.json").read_text())
    assert metrics["sync_correlation_codec_ceiling"] > 0.85
    assert abs(metrics["sync_correlation"]) < 0.5


def test_each_case_leaves_what_a_user_would_have(scored):
    for number in range(CASES):
        folder = scored / "cases" / f"case_{number:02d}"
        names = {path.name for path in folder.iterdir()}
        assert names == {
            *("reference.mp4", "still.png", "speech.wav", "truth.mp4"),
            *("codec.mp4", "generated.mp4", "wrong_speech.mp4"),
        }
        truth = decode.read_video(folder / "truth.mp4")
        made = decode.read_video(folder / "generated.mp4")
        assert made.frames.shape == truth.frames.shape


def test_the_report_stands_alone(scored):
    page = (scored / "report.html").read_text()
    assert page.count("data:video/mp4;base64,") == 1
    assert page.count("<svg") == CASES
    assert not re.search(r'(src|href)="?http', page)


def test_a_truth_shown_as_generated_scores_as_the_ceiling(scored, tmp_path):
    cases = demo_cases.make_cases(tmp_path, 3, num_frames=93, size=64)
    codec = pretrained.codec.DCTCodec()
    demo_scores.write_codec_cases(cases, codec)
    for number, case in enumerate(cases):
        shown = (case.folder / "codec.mp4").read_bytes()
        (case.folder / "generated.mp4").write_bytes(shown)
        other = cases[(number + 1) % 3].folder / "codec.mp4"
        (case.folder / "wrong_speech.mp4").write_bytes(other.read_bytes())
    judge = judges.load(judges.asset("motion", "evaluation"))
    scores = demo_scores.score_cases(cases, judge)
    numbers = scores.summary()
    ceiling = numbers["sync_correlation_codec_ceiling"]
    assert numbers["sync_correlation"] == ceiling > 0.85
    assert abs(numbers["sync_correlation_wrong_speech"]) < 0.4
    assert numbers["sharpness_ratio"] == numbers["motion_ratio"] == 1
    assert scores.lag == 0


def test_cases_are_test_people_whose_reference_is_of_another_scene(tmp_path):
    case = demo_cases.make_case(tmp_path / "c", 9, num_frames=25, size=64)
    assert judge_frames.people.split_of(9) == "test"
    assert (case.still == case.truth[0]).all()
    assert case.request().audio == tmp_path / "c" / "speech.wav"
    assert case.request(blank_person=True).blank_person
    reference = decode.read_video(tmp_path / "c" / "reference.mp4").frames
    assert len(reference) == demo_cases.REFERENCE_FRAMES
    corner = np.s_[:, :4, :4]  # of the room
    light = np.abs(
        reference[corner].mean((0, 1, 2)) - case.truth[corner].mean((0, 1, 2))
    )
    assert light.max() > 10


def test_too_few_cases_are_refused(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "use_compilation_cache", lambda: None)
    argv = ["demo", "--weights", str(weights), "--out", str(tmp_path / "o")]
    assert command.run(evaluate.main, [*argv, "--cases", "1"]) == 2
    assert "--cases of 2 or more" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    assert "python -m avatar_jax.evaluate train-judge" in capsys.readouterr().out


def test_unrelated_truths_do_not_correlate_after_the_lead_in(tmp_path):
    cases = demo_cases.make_cases(tmp_path, 12, num_frames=93, size=64)
    truth = np.stack([case.mouth_open for case in cases])[:, demo_scores.LEAD_IN :]
    assert abs(sync.shuffled_correlations(truth, truth).mean()) < 0.06
