"""Drawn mouths that open by known curves, measured and scored; ~60 s on 2 cores."""

import json

import cv2
import numpy as np
import pytest
from drawn_clips import (
    FRAMES,
    SIZE,
    draw_clip,
    opening,
    record,
    show_as_generated,
    speech,
)
from random_weights import save_random

from avatar_jax import command, evaluate
from avatar_jax.data import records, shards
from avatar_jax.evaluation import clip_cases, clip_scores, mouth
from avatar_jax.evaluation.metrics import sync
from avatar_jax.media import decode, encode, faces
from avatar_jax.types import InputError

CLIPS = 4  # held out


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tier, schema = records.tier_directory(folder, records.MEDIA), records.media_schema()
    held = [record(f"test{n}", "me", n) for n in range(CLIPS)]
    train = [record("other", "somebody else", 50)]
    train += [record(f"train{n}", "me", 90 + n) for n in range(2)]
    for split, made in (("test", held), ("train", train)):
        records.write_tier(tier, split, schema, made)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_random(tmp_path_factory.mktemp("weights"))


@pytest.mark.parametrize("light, sway", [(1.0, 0.0), (0.6, 0.0), (1.0, 3.0)])
def test_the_measure_follows_the_drawn_opening(light, sway):
    curves = [opening(seed) for seed in range(5)]
    seen = []
    for curve in curves:
        frames, boxes = draw_clip(curve, light=light, sway=sway)
        frames = decode.decode_bytes(encode.encode_bytes(frames))
        seen.append(mouth.measure_opening(frames, faces.mouth_boxes(boxes)))
    own = sync.case_correlations(np.stack(seen), np.stack(curves))
    other = sync.shuffled_correlations(
        np.stack(seen)[:, 7:-8], np.stack(curves)[:, 7:-8]
    )
    assert own.min() > 0.9
    assert abs(other.mean()) < 0.2


def test_light_that_changes_slowly_is_no_opening():
    curve = np.tile(opening(3), 8)
    frames, boxes = draw_clip(curve)
    dimmed = frames * np.linspace(1, 0.85, len(frames))[:, None, None, None]
    seen = mouth.measure_opening(dimmed.astype(np.uint8), faces.mouth_boxes(boxes))
    assert sync.mouth_correlation(seen, curve) > 0.8


def test_speech_is_found_between_the_silences():
    heard = mouth.find_spoken(speech(opening(1), 1), FRAMES)
    inner = np.zeros(FRAMES, bool)
    inner[7:-8] = True
    assert (heard & inner).sum() > 0.9 * inner.sum()
    assert (heard & ~inner).sum() <= 2


@pytest.mark.parametrize("shift", [0, 1])
def test_the_right_words_score_as_the_ceiling_and_others_near_zero(
    dataset, tmp_path, shift
):
    cases = clip_cases.read_cases(dataset, tmp_path, size=SIZE)
    show_as_generated(cases, shift)
    numbers = clip_scores.score_cases(cases)
    ceiling = numbers["mouth_correlation_codec_ceiling"]
    assert ceiling > 0.9
    if shift:
        assert abs(numbers["mouth_correlation"]) < 0.3
    else:
        assert numbers["mouth_correlation"] == ceiling
        assert abs(numbers["mouth_correlation_shuffled"]) < 0.2
        assert numbers["psnr_generated"] == numbers["psnr_codec"]
    assert numbers["psnr_codec"] > numbers["psnr_static"]
    # Silence is shut in every clip: it alone makes other words agree.
    chance = numbers["mouth_correlation_true_shuffled"]
    assert numbers["mouth_correlation_true_shuffled_whole_clip"] > chance
    assert numbers["untracked_true"] == CLIPS  # the cascade knows no drawn face


def test_stills_are_of_the_same_persons_train_clips(dataset, tmp_path):
    cases = clip_cases.read_cases(dataset, tmp_path, size=SIZE, limit=3)
    train = records.read_tier(records.tier_directory(dataset, records.MEDIA), "train")
    mine = {r["key"]: decode.decode_bytes(r["video"]) for r in train}
    assert [case.key for case in cases] == ["test0", "test1", "test2"]
    for case in cases:
        whose = [k for k, v in mine.items() if (v == case.still).all((1, 2, 3)).any()]
        assert whose and set(whose) <= {"train0", "train1"}


def test_a_corrupt_record_is_named_and_spares_the_others(dataset, tmp_path, caplog):
    copy = tmp_path / "data"
    old, tier = (records.tier_directory(d, records.MEDIA) for d in (dataset, copy))
    for split in ("test", "train"):
        with shards.TierWriter(
            tier, split, records.media_schema(), shard_bytes=1
        ) as writer:
            for example in records.read_tier(old, split):  # one shard each
                writer.write(example)
        path = sorted(tier.glob(f"*-{split}.*"))[1]
        data = bytearray(path.read_bytes())
        data[120:128] = bytes(8)  # behind the headers of file and chunk
        path.write_bytes(data)
    cases = clip_cases.read_cases(copy, tmp_path, size=SIZE)
    assert [case.key for case in cases] == ["test0", "test2", "test3"]
    lines = [r.message for r in caplog.records if "skipped (1 so far)" in r.message]
    assert len(lines) == 2


def test_the_command_leaves_videos_figures_and_pictures(
    dataset, weights, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(command, "use_compilation_cache", lambda: None)
    argv = ["clips", "--records", str(dataset), "--weights", str(weights)]
    argv += ["--out", str(tmp_path / "out"), "--steps", "1", "--cases", "2"]
    assert command.run(evaluate.main, argv) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics.keys() >= {"clips", "untracked_generated", *clip_scores.MEANING}
    assert "mouth_correlation " in capsys.readouterr().out
    assert abs(metrics["mouth_correlation"]) < 0.7  # noise knows no words
    assert cv2.imread(str(tmp_path / "out" / "frames.png")).shape[1] > 500
    assert cv2.imread(str(tmp_path / "out" / "mouths.png")) is not None
    made = decode.read_video(tmp_path / "out" / "cases" / "case_01" / "generated.mp4")
    assert made.frames.shape == (FRAMES, SIZE, SIZE, 3) and made.audio is not None


@pytest.mark.parametrize(
    "change, words",
    [({"limit": 1}, "2 held-out clips or more"), ({"size": 96}, "--size 96")],
)
def test_records_that_do_not_fit_are_refused(dataset, tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        clip_cases.read_cases(dataset, tmp_path, **{"size": SIZE, **change})
