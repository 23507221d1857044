"""From files and rendered people to the three tiers of records. ~40 s on 2 cores."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax import prepare
from avatar_jax.data import records
from avatar_jax.data.talking_heads import clips, people
from avatar_jax.media import decode, encode, faces
from avatar_jax.models import codec, judges, speech
from avatar_jax.models import faces as models_faces
from avatar_jax.preparation import latents as latents_tier
from avatar_jax.preparation import tiers

FRAMES, SIZE = 30, 96


def find_person():
    """Film the first person whom the cascade, made for photographs, finds easily."""
    for index in range(20):
        person = people.sample_person(0, index)
        clip = clips.make_clip(person, scene=0, utterance=0, num_frames=FRAMES, size=96)
        if faces.track_face(clip.frames)[1].mean() > 0.8:
            return clip
    pytest.fail("expected the cascade to find one of 20 drawn people")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make six usable clips and four that are not."""
    folder, clip = tmp_path_factory.mktemp("clips"), find_person()
    canvas = np.full((FRAMES, 140, 180, 3), 120, np.uint8)
    canvas[:, 20:116, 40:136] = clip.frames
    (folder / "me").mkdir()
    for number in range(6):
        path = folder / "me" / f"{number}.mp4"
        encode.write_video(path, canvas[: 26 + number % 2], clip.audio)
    (folder / "me" / "0.txt").write_text("Somebody says hello.\n")
    encode.write_video(folder / "faceless.mp4", canvas * 0 + 90, clip.audio)
    encode.write_video(folder / "silent.mp4", canvas)
    encode.write_video(folder / "short.mp4", canvas[:9], clip.audio)
    (folder / "broken.mp4").write_bytes(b"no video at all" * 99)
    (folder / "notes.pdf").write_bytes(b"not a clip")
    return folder


@pytest.fixture(scope="module")
def dataset(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "deep" / "records"
    arguments = ["clips", "--input", str(folder), "--out", str(out), "--holdout", "2"]
    prepare.main([*arguments, "--size", "96", "--rights", "my own", "--workers", "2"])
    return out


def read(dataset, split):
    codec_name = codec.DCTCodec().name
    return [
        records.read_tier(records.tier_directory(dataset, tier, name), split)
        for tier, name in (
            (records.MEDIA, None),
            (records.FEATURES, None),
            (records.LATENTS, codec_name),
        )
    ]


def test_usable_clips_are_split_and_the_tiers_agree(dataset):
    keys = {}
    for split, count in (("test", 2), ("validation", 1), ("train", 3)):
        media, features, latents = read(dataset, split)
        keys[split] = [record["key"] for record in media]
        assert keys[split] == [record["key"] for record in features]
        assert keys[split] == [record["key"] for record in latents]
        assert len(keys[split]) == count
    assert sorted(sum(keys.values(), [])) == [f"me/{i}.mp4" for i in range(6)]


def test_records_hold_a_centred_face_and_what_was_said_of_it(dataset):
    media, features, latents = read(dataset, "train")
    for record in media:
        frames = decode.decode_bytes(record["video"])
        assert frames.shape == (record["num_frames"], SIZE, SIZE, 3)
        assert len(record["audio"]) == len(frames) * 640
        centre = record["face_boxes"].reshape(-1, 2, 2).mean((0, 1)) / SIZE
        np.testing.assert_allclose(centre, 0.5, atol=0.15)
        assert json.loads(record["rights"]) == {"statement": "my own"}
        assert json.loads(record["scores"])["face_found"] > 0.8
        assert record["person"] == "me"
        named = record["key"] == "me/0.mp4"
        wanted = "Somebody says hello." if named else "A person is talking."
        assert record["caption"] == wanted


def test_features_and_latents_are_those_of_the_stored_record(dataset):
    coder = codec.DCTCodec()
    for record, feature, latent in zip(*read(dataset, "test"), strict=True):
        count = int(record["num_frames"])
        rows = speech.LogMel()(tiers.read_wave(record), count)
        np.testing.assert_allclose(feature["speech"], rows, atol=5e-3)
        frames = decode.decode_bytes(record["video"])[: count - (count - 1) % 4]
        wanted = coder.encode(jnp.asarray(frames[None], jnp.float32) / 127.5 - 1)[0]
        np.testing.assert_allclose(latent["latents"], wanted, atol=0.02)
        assert latent["mouth_mask"].shape == latent["latents"].shape[:3]
        assert 0.5 < latent["mouth_mask"].max() <= 1
    text = records.read_null_text(dataset)
    assert text.shape == feature["text"].shape


def test_tiers_hold_what_a_reference_needs(dataset):
    coder, side = codec.DCTCodec(), SIZE // 8
    for record, feature, latent in zip(*read(dataset, "train"), strict=True):
        assert feature["person"] == record["person"] == "me"
        assert feature["scene"] == record["scene"]
        assert not {"motion", "motion_read"} & set(feature)  # not known of real clips
        assert feature["identity"].shape == (models_faces.IDENTITY_WIDTH,)
        np.testing.assert_allclose(np.linalg.norm(feature["identity"]), 1, rtol=1e-4)
        config = latents_tier.LatentsConfig()
        crop_side = config.face_size // 8
        crops = (config.face_crops, crop_side, crop_side, 64)
        assert latent["faces"].shape == crops and latent["faces"].any()
        check_still(coder, record, latent)
        assert latent["face_mask"].shape == latent["latents"].shape[:3]
        # What reference rows show holds the mouth and far from all of the picture.
        assert (latent["face_mask"] >= latent["mouth_mask"] - 1e-3).all()
        assert 0.1 < latent["face_mask"].mean() < 0.7
        assert latent["still_mask"].shape == (side, side)


def check_still(coder, record, latent):
    """The person is grey, what is outside looks as in the first frame."""
    box = faces.person_box(record["face_boxes"][:1], SIZE, SIZE)
    mask = latent["still_mask"][..., None]
    share = latents_tier.cover_cells(box[None], height=SIZE, width=SIZE, stride=8)[0]
    np.testing.assert_allclose(latent["still_mask"], share, atol=1e-3)
    assert 0.2 < (latent["still_mask"] == 1).mean() < 0.9
    both = np.stack([latent["still"], latent["latents"][:1]]).astype(np.float32)
    still, first = (np.asarray(v[0]) for v in jax.jit(coder.decode)(both))
    mask = np.repeat(np.repeat(mask, 8, 0), 8, 1)
    np.testing.assert_allclose(np.where(mask == 1, still, 0), 0, atol=0.03)
    assert np.abs(np.where(mask == 0, still - first, 0)).max() < 0.02
    assert np.abs(np.where(mask == 1, first, 0)).mean() > 0.05


def test_skipped_clips_are_named_and_counted(folder, tmp_path, capsys):
    (tmp_path / "held.txt").write_text("me/3\nme/4.mp4\nbroken\n")
    out = ["--out", str(tmp_path / "records"), "--workers", "1", "--size", "64"]
    held = ["--holdout-list", str(tmp_path / "held.txt")]
    prepare.main(["clips", "--input", str(folder), *out, *held])
    said = capsys.readouterr().out
    assert "2 test, 1 validation, 3 train; skipped: 4" in said
    for name, reason in (
        ("faceless.mp4", "face in only 0%"),
        ("silent.mp4", "no audio track"),
        ("short.mp4", "not between 1 and 60 s"),
        ("broken.mp4", "readable media file"),
    ):
        assert any(name in line and reason in line for line in said.splitlines())
    keys = [record["key"] for record in read(tmp_path / "records", "test")[0]]
    assert keys == ["me/3.mp4", "me/4.mp4"]


def test_bad_input_is_one_line_and_leaves_nothing(folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    for name in "ab":
        (tmp_path / "bad" / f"{name}.mp4").write_bytes(b"no video at all" * 99)
    (tmp_path / "held.txt").write_text("me/77.mp4\n")
    out, good = ["--out", str(tmp_path / "records")], ["--input", str(folder)]
    for arguments, reason in (
        (["--input", str(tmp_path / "none"), *out], "folder of clips"),
        (["--input", str(tmp_path / "empty"), *out], "no file ending in"),
        (["--input", str(tmp_path / "bad"), *out, "--workers", "1"], "2 were skipped"),
        ([*good, *out, "--holdout", "9"], "2 clips or more besides the 9 held out"),
        ([*good, *out, "--holdout", "-1"], "--holdout of 0 or more"),
        ([*good, *out, "--holdout-list", str(tmp_path / "held.txt")], "me/77.mp4"),
        ([*good, "--out", str(tmp_path / "empty")], "exists"),
    ):
        assert prepare.command.run(prepare.main, ["clips", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and reason in error
        left = sorted(path.name for path in tmp_path.iterdir())
        assert left == ["bad", "empty", "held.txt"]


def test_mouth_share_of_cells_follows_the_box():
    boxes = np.zeros((7, 4), np.float32)
    boxes[0] = [8, 16, 24, 32]  # two by two whole cells
    boxes[1:5] = [4, 0, 8, 16]  # half of a column, two rows
    boxes[1:3] = 0  # in two of four frames only
    share = latents_tier.cover_cells(boxes, height=40, width=32, stride=8)
    assert share.shape == (2, 5, 4)  # frames 5 and 6 are left out
    wanted = np.zeros((2, 5, 4))
    wanted[0, 2:4, 1:3] = 1
    wanted[1, 0:2, 0] = 0.25
    np.testing.assert_allclose(share, wanted)


def test_lengthened_videos_keep_their_latents():
    video = np.random.default_rng(0).integers(0, 255, (10, 16, 24, 3), np.uint8)
    longer = latents_tier._lengthen(video)
    assert len(longer) == 17 and (longer[:9] == video[:9]).all()
    encode_video = jax.jit(codec.DCTCodec().encode)
    short, long = (
        encode_video(v[None].astype(np.float32)) for v in (video[:9], longer)
    )
    np.testing.assert_allclose(short[0], long[0, :3], atol=1e-2)


def test_rendered_people_keep_their_splits_and_motion_codes(tmp_path):
    out = tmp_path / "people"
    arguments = "--people 10 --clips-per-person 3 --seconds 1 --workers 1".split()
    prepare.main(["procedural", "--out", str(out), *arguments])
    for split, count in (("train", 24), ("validation", 3), ("test", 3)):
        media, features, latents = read(out, split)
        assert len(media) == len(features) == len(latents) == count
        heard = {record["audio"].tobytes() for record in media}
        assert len(heard) == count
    record, feature = media[0], features[0]
    person = people.sample_person(0, 9)
    made = clips.make_clip(person, scene=0, utterance=27, num_frames=25, size=64)
    assert record["caption"] == made.caption and record["key"] == feature["key"]
    np.testing.assert_array_equal(feature["motion"], made.motion.astype(np.float32))
    for record, feature in zip(media, features, strict=True):
        frames = decode.decode_bytes(record["video"])
        codes = judges.load(judges.asset("motion", "training")).read(frames)
        np.testing.assert_allclose(feature["motion_read"], codes, atol=1e-4)
    record = media[0]
    np.testing.assert_allclose(record["mouth_boxes"], made.mouth_boxes)
    error = decode.decode_bytes(record["video"]).astype(float) - made.frames
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 34
    heard = tiers.read_wave(record)
    np.testing.assert_allclose(heard, np.clip(made.audio, -1, 1), atol=1e-4)
    # Clips 0 and 1 share their scene.
    people_of = [record["person"] for record in features]
    scenes = [record["scene"] for record in features]
    assert len(set(people_of)) == 1
    assert scenes[0] == scenes[1] != scenes[2]
    tier = records.tier_directory(out, records.FEATURES)
    rows = np.concatenate([r["motion"] for r in records.read_tier(tier, "train")])
    mean, std = records.read_motion_scale(out)
    rows = (rows - mean) / std
    np.testing.assert_allclose(rows.mean(0), 0, atol=0.3)
    np.testing.assert_allclose(rows.std(0), 1, atol=0.3)
