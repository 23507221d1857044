"""Drawn mouths that open by known curves, measured and scored; ~60 s on 2 cores."""

import dataclasses
import json

import cv2
import jax
import numpy as np
import pytest
from scipy import ndimage

from avatar_jax import checkpoint, command, evaluate
from avatar_jax.data import records, shards
from avatar_jax.evaluation import clip_cases, clip_identity, clip_scores, mouth
from avatar_jax.evaluation.metrics import sync
from avatar_jax.media import decode, encode, faces
from avatar_jax.models.codec import DCTCodec
from avatar_jax.models.dit import AvatarDiT
from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.models.speech import LogMel
from avatar_jax.preparation import tiers
from avatar_jax.sampling import pretrained
from avatar_jax.types import InputError

SIZE, FRAMES = 64, 51
CLIPS = 4  # held out
FACE = np.array([14.0, 17.0, 50.0, 53.0], np.float32)
SKIN = (205, 160, 125)  # RGB
SKINS = {"you": (140, 95, 70)}  # of those who have another


def opening(seed: int) -> np.ndarray:
    """Draw a curve in [0, 1] that is shut, moves, and is shut again."""
    noise = np.random.default_rng(seed).normal(size=FRAMES)
    curve = ndimage.gaussian_filter1d(noise, 1.5)
    curve = (curve - curve.min()) / np.ptp(curve)
    curve[:7] = curve[-8:] = 0
    return curve


def draw_clip(
    curve: np.ndarray,
    *,
    light: float = 1.0,
    sway: float = 0.0,
    skin: tuple[int, int, int] = SKIN,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a face whose lips part by a curve; return frames and its face boxes."""
    frames, boxes = [], []
    for number, value in enumerate(curve):
        shift = sway * np.sin(number / 5)
        frame = np.full((4 * SIZE, 4 * SIZE, 3), (90, 140, 160), np.uint8)
        centre = round(4 * (32 + shift)), round(4 * 46.5)
        cv2.ellipse(frame, (centre[0], 140), (76, 100), 0, 0, 360, skin, -1)
        height = round(14 + 12 * value)
        cv2.ellipse(frame, centre, (30, height), 0, 0, 360, (190, 95, 95), -1)
        inner = round(1 + 14 * value)
        cv2.ellipse(frame, centre, (24, inner), 0, 0, 360, (60, 25, 25), -1)
        small = cv2.resize(frame, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        frames.append(np.clip(small * light, 0, 255).astype(np.uint8))
        boxes.append(FACE + np.array([shift, 0, shift, 0], np.float32))
    return np.stack(frames), np.stack(boxes).astype(np.float32)


def speech(curve: np.ndarray, seed: int) -> np.ndarray:
    """Make noise that is loud while the curve moves."""
    loud = np.repeat(np.arange(FRAMES), 640)
    noise = np.random.default_rng(seed).normal(size=loud.size)
    heard = np.where((loud >= 7) & (loud < FRAMES - 8), 0.2, 1e-4)
    return (noise * heard * (0.5 + curve[loud])).astype(np.float32)


def record(name: str, person: str, seed: int) -> dict:
    curve = opening(seed)
    frames, boxes = draw_clip(curve, skin=SKINS.get(person, SKIN))
    mouths = faces.mouth_boxes(boxes)
    names = {"key": name, "person": person, "caption": "A person is talking."}
    names |= {"scene": name, "source": "drawn"}
    wave = speech(curve, seed)
    return tiers.make_media(
        frames, wave, boxes, mouths, names=names, rights={}, scores={}
    )


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
    return save_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def personal_weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("personal")
    return save_weights(folder, reference_latents=6, reference=True)


def save_weights(folder, *, reference_latents=0, **parts):
    config = DiTConfig(
        width=8,
        mlp_width=12,
        heads=1,
        layers=1,
        channels=64,
        text_width=64,
        audio_width=LogMel().width,
        **parts,
    )
    card = pretrained.Card(
        config=config,
        size=SIZE,
        chunk_latents=7,
        text_length=5,
        reference_latents=reference_latents,
    )
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: draw.normal(scale=0.1, size=s.shape).astype(np.float16),
        pretrained.expected_shapes(AvatarDiT(config), card),
    )
    path = folder / "w.safetensors"
    checkpoint.save_weights(path, params, card.to_metadata())
    return path


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


def show_as_generated(cases, shift):
    """Show the truth of case n + shift, through the codec, as made for case n."""
    clip_cases.write_codec_cases(cases, DCTCodec())
    for number, case in enumerate(cases):
        shown = cases[(number + shift) % len(cases)].folder / "codec.mp4"
        (case.folder / "generated.mp4").write_bytes(shown.read_bytes())


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


def test_one_person_alone_is_not_sought(dataset, tmp_path):
    tier = records.tier_directory(tmp_path, records.MEDIA)
    train = [record(f"train{n}", "me", 90 + n) for n in range(2)]
    records.write_tier(tier, "train", records.media_schema(), train)
    assert clip_identity.read_gallery(tmp_path) is None


def test_a_blanked_person_is_known_from_the_reference_alone(
    two_people, personal_weights, tmp_path
):
    cases = clip_cases.read_cases(two_people, tmp_path, size=SIZE, limit=2)
    loaded = pretrained.load(personal_weights)
    settings = pretrained.choose_settings(loaded.card, num_steps=1)
    how = {"settings": settings, "seed": 0, "blank_person": True}

    def made(cases):
        clip_cases.generate_cases(cases, loaded, **how)
        return [clip_cases.read_video(case, "generated") for case in cases]

    own = made(cases)
    repainted = [replace_face(case) for case in cases]
    np.testing.assert_array_equal(made(repainted), own)
    assert (made(clip_cases.swap_references(cases))[0] != own[0]).any()


def replace_face(case):
    """Paint over the face of the scene; the reference stays."""
    frames = case.scene.frames.copy()
    x0, y0, x1, y1 = case.still_box.round().astype(int)
    frames[:, y0:y1, x0:x1] = 10
    scene = dataclasses.replace(case.scene, frames=frames)
    return dataclasses.replace(case, scene=scene)


def test_the_command_blanks_the_person_and_swaps_references(
    two_people, personal_weights, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(command, "use_compilation_cache", lambda: None)
    argv = ["clips", "--records", str(two_people), "--weights", str(personal_weights)]
    argv += ["--out", str(tmp_path / "out"), "--steps", "1", "--cases", "2"]
    assert command.run(evaluate.main, [*argv, "--blank-person"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for name in clip_identity.MEANING:
        assert 0 <= metrics[name] <= 1 and len(metrics[f"{name}_ci95"]) == 2
    assert metrics["identity_chance"] == 0.5
    assert metrics["people"].keys() == {"me", "you"}
    assert metrics["people"]["me"]["identity_ceiling"] == 1
    assert "mean over people" in capsys.readouterr().out
    made = decode.read_video(tmp_path / "out" / "cases" / "case_01" / "swapped.mp4")
    assert made.frames.shape == (FRAMES, SIZE, SIZE, 3)


def test_weights_without_reference_refuse_a_blanked_person(
    dataset, weights, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(command, "use_compilation_cache", lambda: None)
    argv = ["clips", "--records", str(dataset), "--weights", str(weights)]
    argv += ["--out", str(tmp_path / "out"), "--blank-person"]
    assert command.run(evaluate.main, argv) == 2
    error = capsys.readouterr().err
    assert "leave --blank-person out" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, words",
    [({"limit": 1}, "2 held-out clips or more"), ({"size": 96}, "--size 96")],
)
def test_records_that_do_not_fit_are_refused(dataset, tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        clip_cases.read_cases(dataset, tmp_path, **{"size": SIZE, **change})
