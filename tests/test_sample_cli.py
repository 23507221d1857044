"""`python -m avatar_jax.sample`, good and bad input; ~15 s on 2 cores."""

import hashlib
import json

import av
import jax
import numpy as np
import pytest

from avatar_jax import checkpoint, command, sample
from avatar_jax.media import decode, encode
from avatar_jax.models import dit_config, speech
from avatar_jax.models.dit import AvatarDiT
from avatar_jax.sampling import pretrained
from avatar_jax.types import SAMPLES_PER_FRAME

SIZE, FRAMES = 16, 27


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A reference of 27 frames with sound, one without, and random weights."""
    folder = tmp_path_factory.mktemp("files")
    draw = np.random.default_rng(0)
    frames = draw.integers(0, 255, (FRAMES, SIZE, SIZE, 3)).astype(np.uint8)
    wave = draw.normal(scale=0.1, size=FRAMES * SAMPLES_PER_FRAME).astype(np.float32)
    encode.write_video(folder / "me.mp4", frames, wave)
    encode.write_video(folder / "silent.mp4", frames)
    config = dit_config.DiTConfig(
        width=8,
        mlp_width=12,
        heads=1,
        layers=1,
        channels=5,
        text_width=4,
        audio_width=speech.LogMel().width,
    )
    card = pretrained.Card(
        config=config, size=SIZE, chunk_latents=4, codec="dct5", text_length=3
    )
    shapes = pretrained.expected_shapes(AvatarDiT(config), card)
    params = jax.tree.map(
        lambda s: draw.normal(scale=0.2, size=s.shape).astype(np.float16), shapes
    )
    checkpoint.save_weights(folder / "w.safetensors", params, card.to_metadata())
    (folder / "consent.txt").write_text("I agree.\n")
    return folder


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
            for part in ("--" + name.replace("_", "-"), str(value))
        ]
        return command.run(sample.main, argv)

    run.out = out
    return run


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
    assert record["request"]["reference"]["sha256"] == digest


def test_the_same_seed_gives_the_same_video(run):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(out=run.out / f"{name}.mp4", seconds=0.5, seed=seed) == 0
    a, b, c = (decode.read_video(run.out / f"{name}.mp4").frames for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"consent": None}, "--i-have-consent"),
        ({"consent": "nowhere.txt"}, "nowhere.txt does not exist"),
        ({"reference": "nowhere.mp4"}, "nowhere.mp4 does not exist"),
        ({"audio": "{folder}/silent.mp4"}, "no audio track"),
        ({"audio": "{folder}/consent.txt"}, "consent.txt"),
        ({"still": "{folder}/w.safetensors"}, "w.safetensors"),
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
    changes = {
        name: value.format(folder=folder) if isinstance(value, str) else value
        for name, value in changes.items()
    }
    assert run(**changes) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and words in lines[-1]
    assert list(run.out.iterdir()) == []


def test_inputs_are_never_replaced(run, folder, capsys):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert run(out=folder / "me.mp4") == 2
    assert "would replace" in capsys.readouterr().err
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
