"""`python -m avatar_jax.sample`, good and bad input; ~30 s on 2 cores."""

import dataclasses
import hashlib
import json
from pathlib import Path

import av
import jax
import numpy as np
import pytest

from avatar_jax import checkpoint, command, sample
from avatar_jax.data.talking_heads import clips, people
from avatar_jax.media import decode, encode
from avatar_jax.models import dit_config, speech
from avatar_jax.models.dit import AvatarDiT
from avatar_jax.sampling import pretrained
from avatar_jax.types import SAMPLES_PER_FRAME

SIZE, FRAMES = 16, 27


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """References good and bad, random weights, and some that read a reference."""
    folder = tmp_path_factory.mktemp("files")
    draw = np.random.default_rng(0)
    frames = draw.integers(0, 255, (FRAMES, SIZE, SIZE, 3)).astype(np.uint8)
    wave = draw.normal(scale=0.1, size=FRAMES * SAMPLES_PER_FRAME).astype(np.float32)
    encode.write_video(folder / "me.mp4", frames, wave)
    encode.write_video(folder / "silent.mp4", frames)
    encode.write_video(folder / "short.mp4", frames[:11])
    encode.write_video(folder / "grey.mp4", np.full((12, 48, 80, 3), 99, np.uint8))
    encode.write_video(folder / "two.mp4", film_two_people())
    config = dit_config.DiTConfig(
        width=8,
        mlp_width=12,
        heads=1,
        layers=1,
        channels=5,
        text_width=4,
        audio_width=speech.LogMel().width,
    )
    write_weights(folder / "w.safetensors", config)
    knowing = dataclasses.replace(
        config,
        reference=True,
        reference_audio_width=config.audio_width,
        motion_width=12,
        identity_width=64,
        faces=True,
    )
    write_weights(
        folder / "knowing.safetensors",
        knowing,
        reference_latents=6,
        segment_latents=3,
        face_crops=2,
        face_size=16,
        identity="procedural",
        motion="procedural",
        motion_mean=(0.0,) * 12,
        motion_std=(1.0,) * 12,
    )
    (folder / "consent.txt").write_text("I agree.\n")
    return folder


def film_two_people() -> np.ndarray:
    frames = np.full((12, 120, 240, 3), 120, np.uint8)
    for left, index in ((12, 2), (132, 3)):
        person = people.sample_person(0, index)
        clip = clips.make_clip(person, scene=0, utterance=0, num_frames=12, size=96)
        frames[:, 12:108, left : left + 96] = clip.frames
    return frames


def write_weights(path, config: dit_config.DiTConfig, **card_fields) -> None:
    card = pretrained.Card(
        config=config,
        size=SIZE,
        chunk_latents=4,
        codec="dct5",
        text_length=3,
        **card_fields,
    )
    draw = np.random.default_rng(1)
    params = jax.tree.map(
        lambda s: draw.normal(scale=0.2, size=s.shape).astype(np.float16),
        pretrained.expected_shapes(AvatarDiT(config), card),
    )
    checkpoint.save_weights(path, params, card.to_metadata())


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """Run the command on the good files with some flags changed or dropped (None)."""
    monkeypatch.setattr(command, "use_compilation_cache", lambda: None)
    out = tmp_path / "out"
    out.mkdir()

    def run(**changes) -> int:
        flags = {
            "reference": folder / "me.mp4",
            "audio": folder / "me.mp4",
            "consent": folder / "consent.txt",
            "weights": folder / "w.safetensors",
            "out": out / "a.mp4",
            "steps": 2,
            **changes,
        }
        argv = [
            part
            for name, value in flags.items()
            if value is not None
            for part in ("--" + name.replace("_", "-"), *_words(value))
        ]
        return command.run(sample.main, argv)

    run.out = out
    return run


def _words(value) -> list[str]:
    if value is True:
        return []
    return [str(word) for word in (value if isinstance(value, list) else [value])]


def test_files_in_one_playable_file_and_its_record_out(run, folder):
    assert run(seconds=0.9) == 0
    path, sidecar = run.out / "a.mp4", run.out / "a.json"
    assert sorted(run.out.iterdir()) == [sidecar, path]
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.audio[0].codec_context.name == "aac"
        assert container.streams.video[0].average_rate == 25
        assert container.metadata["generated"] == "true"
    assert abs(len(decode.read_video(path).frames) - 0.9 * 25) <= 1
    record = json.loads(sidecar.read_text())
    assert record["consent"]["statement"] == "I agree."
    assert record["seed"] == 42 and record["settings"]["num_steps"] == 2
    digest = hashlib.sha256((folder / "me.mp4").read_bytes()).hexdigest()
    assert [file["sha256"] for file in record["request"]["reference"]] == [digest]


def test_the_same_seed_gives_the_same_video(run):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(out=run.out / f"{name}.mp4", seconds=0.5, seed=seed) == 0
    a, b, c = (decode.read_video(run.out / f"{name}.mp4").frames for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_several_references_reach_a_network_that_reads_them(run, folder):
    asked = {"weights": folder / "knowing.safetensors", "seconds": 0.7}
    clips = [folder / "me.mp4", folder / "silent.mp4"]
    assert run(reference=clips, blank_person=True, **asked) == 0
    both = decode.read_video(run.out / "a.mp4").frames
    record = json.loads((run.out / "a.json").read_text())
    files = [Path(file["path"]) for file in record["request"]["reference"]]
    assert files == clips and record["request"]["blank_person"] is True
    assert run(out=run.out / "b.mp4", blank_person=True, **asked) == 0
    alone = decode.read_video(run.out / "b.mp4").frames
    assert both.shape == alone.shape and not np.array_equal(both, alone)


def test_references_may_be_named_one_by_one(run, folder, capsys):
    assert run(reference=["nowhere.mp4", "--reference", folder / "me.mp4"]) == 2
    assert "nowhere.mp4 does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"consent": None}, "--i-have-consent"),
        ({"consent": "nowhere.txt"}, "nowhere.txt does not exist"),
        ({"reference": "nowhere.mp4"}, "nowhere.mp4 does not exist"),
        ({"reference": ["{folder}/me.mp4", "nowhere.mp4"]}, "nowhere.mp4 does not"),
        ({"reference": "{folder}/grey.mp4"}, "expected a face, none was found"),
        ({"reference": "{folder}/two.mp4"}, "expected one person, 2 faces"),
        ({"reference": "{folder}/grey.mp4", "crop": "none"}, "square picture"),
        ({"still": "{folder}/grey.mp4"}, "expected a face, none was found"),
        ({"still": "{folder}/grey.mp4", "crop": "none"}, "grey.mp4 is 80x48"),
        (
            {
                "reference": "{folder}/short.mp4",
                "weights": "{folder}/knowing.safetensors",
            },
            "12 frames or more",
        ),
        ({"blank_person": True}, "do not blank"),
        ({"audio": "{folder}/silent.mp4"}, "no audio track"),
        ({"audio": "{folder}/consent.txt"}, "consent.txt"),
        ({"still": "{folder}/w.safetensors"}, "w.safetensors"),
        ({"face_detector": "nowhere.onnx"}, "nowhere.onnx does not exist"),
        ({"face_detector": "{folder}/consent.txt"}, "expected the weights of YuNet"),
        ({"weights": "{folder}/me.mp4"}, "expected a safetensors file"),
        ({"steps": 0}, "--steps of 1 or more"),
        ({"audio_guidance": 0.5}, "--audio-guidance of 1 or more"),
        ({"seconds": -1}, "--seconds above 0"),
        ({"seconds": "inf"}, "--seconds above 0"),
        ({"weights": "nowhere.safetensors"}, "nowhere.safetensors does not exist"),
        ({"out": "nowhere/a.mp4"}, "nowhere is none"),
        ({"prompt": "far too long a prompt"}, "at most 3 fit"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, folder, changes, words, capsys):

    def fill(value):
        if isinstance(value, list):
            return [fill(part) for part in value]
        return value.format(folder=folder) if isinstance(value, str) else value

    changes = {name: fill(value) for name, value in changes.items()}
    assert run(**changes) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and words in lines[-1]
    assert list(run.out.iterdir()) == []


def test_inputs_are_never_replaced(run, folder, capsys):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert run(out=folder / "me.mp4") == 2
    assert "would replace" in capsys.readouterr().err
    assert run(out=folder / "me.mp4", reference=folder / "short.mp4") == 2
    both = [folder / "short.mp4", folder / "silent.mp4"]
    assert run(out=folder / "silent.mp4", reference=both) == 2
    assert "silent.mp4, the --reference" in capsys.readouterr().err
    (run.out / "a.json").write_text("I agree.")
    assert run(consent=run.out / "a.json") == 2
    assert (run.out / "a.json").read_text() == "I agree."
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        sample.main(["--help"])
    assert stopped.value.code == 0
    assert "python -m avatar_jax.sample --reference" in capsys.readouterr().out


def test_compiled_programs_are_kept_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    try:
        assert command.use_compilation_cache() == tmp_path / "avatar_jax" / "xla"
        assert jax.config.jax_compilation_cache_dir.startswith(str(tmp_path))
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
