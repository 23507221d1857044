"""Published files of tiny networks, converted, make a video as TAVR does (~2 min).

Weights are random, so the video shows nothing; every part of the real path runs: crop,
detectors, validity, speech, prompts, the autoencoder, three passes, two chunks.
"""

import contextlib
import dataclasses
import json
import textwrap

import numpy as np
import published
import pytest

from avatar_jax import command, convert, sample
from avatar_jax.data.talking_heads import clips, people
from avatar_jax.media import decode, encode
from avatar_jax.models.vae_config import WanVAEConfig
from avatar_jax.models.wav2vec2 import Wav2Vec2Config
from avatar_jax.sampling import (
    placement,
    pretrained,
    request,
    tavr_request,
    video,
)
from avatar_jax.types import SAMPLES_PER_FRAME

SPEECH = Wav2Vec2Config(
    width=12,
    heads=2,
    mlp_width=20,
    layers=4,
    conv_widths=(4,) * 7,
    positional_kernel=8,
    positional_groups=3,
)
TEXT = dataclasses.replace(published.CONFIGS["umt5"], vocabulary=9, width=8)
NETWORKS = {
    "tavr": dataclasses.replace(
        published.TAVR,
        channels=16,
        text_width=TEXT.width,
        audio_width=8 * SPEECH.width,
        reference_audio_width=2 * SPEECH.width,
    ),
    "wan-vae": WanVAEConfig(width=2),
    "umt5": TEXT,
    "wav2vec2": SPEECH,
}
FIELDS = {
    "hidden_size": SPEECH.width,
    "num_attention_heads": SPEECH.heads,
    "intermediate_size": SPEECH.mlp_width,
    "num_hidden_layers": SPEECH.layers,
    "conv_dim": list(SPEECH.conv_widths),
    "conv_kernel": list(SPEECH.conv_kernels),
    "conv_stride": list(SPEECH.conv_strides),
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": SPEECH.positional_kernel,
    "num_conv_pos_embedding_groups": SPEECH.positional_groups,
}
HEIGHT, WIDTH, FRAMES = 96, 128, 24
CARD = """
    import ml_collections
    from avatar_jax.models.dit_config import DiTConfig
    from avatar_jax.sampling.pretrained import Card

    def get_config():
        card = Card(
            config=DiTConfig(**{config}),
            size={size}, width={width}, chunk_latents=5, codec="wan21",
            speech="wav2vec2", text="umt5", text_length=7, reference_latents=3,
            segment_latents=3, blank_still=True, num_steps=2, solver="unipc", shift=5.0,
            text_guidance=5.0, audio_guidance=1.8, latent_dtype="bfloat16",
            protocol="tavr", negative_prompt="grey",
        )
        return ml_collections.ConfigDict(card.to_metadata())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of converted weights, a config, a person and their speech."""
    package = pytest.importorskip("tokenizers", reason="needs the package tokenizers")
    folder = tmp_path_factory.mktemp("converted")
    for kind, config in NETWORKS.items():
        fields = FIELDS if kind == "wav2vec2" else None
        tensors = published.make_tensors(kind, config)
        source = published.write_folder(folder / f"published-{kind}", tensors, fields)
        argv = [kind, str(source), str(folder / kind)]
        heads = ["--heads", str(published.HEADS)] if kind == "tavr" else []
        assert command.run(convert.main, [*argv, *heads]) == 0
    words = ["<pad>", "</s>", "<unk>", "a", "red", "room", "grey"]
    made = package.Tokenizer(
        package.models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>")
    )
    made.pre_tokenizer = package.pre_tokenizers.WhitespaceSplit()
    made.save(str(folder / "umt5" / "tokenizer.json"))
    text = CARD.format(
        config=dataclasses.asdict(NETWORKS["tavr"]), size=HEIGHT, width=WIDTH
    )
    text = textwrap.dedent(text)
    (folder / "tiny_tavr.py").write_text(text)
    (folder / "exact.py").write_text(text.replace("bfloat16", "float32"))
    person = people.sample_person(0, 2)
    clip = clips.make_clip(person, scene=0, utterance=0, num_frames=FRAMES, size=160)
    frames = np.full((FRAMES, 160, 224, 3), 90, np.uint8)
    frames[:, :, 32:192] = clip.frames
    draw = np.random.default_rng(0)
    wave = draw.normal(scale=0.1, size=FRAMES * SAMPLES_PER_FRAME).astype(np.float32)
    encode.write_video(folder / "me.mp4", frames, wave)
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "use_compilation_cache", lambda: None)

    def run(name="a", **changes):
        flags = {
            "config": folder / "tiny_tavr.py",
            "weights": folder / "tavr",
            "reference": folder / "me.mp4",
            "audio": folder / "me.mp4",
            "prompt": "a red room",
            "out": tmp_path / f"{name}.mp4",
            **changes,
        }
        argv = ["--i-have-consent"]
        for flag, value in flags.items():
            argv += [f"--{flag.replace('_', '-')}", str(value)]
        return command.run(sample.main, argv), tmp_path / f"{name}.mp4"

    return run


def test_a_video_comes_out(run):
    code, out = run()
    made = decode.read_video(out)
    assert code == 0
    assert made.frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert made.audio is not None
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["chunks"] == 2
    assert record["settings"]["solver"] == "unipc"


@pytest.mark.slow
def test_a_seed_repeats_a_video_and_another_does_not(run):
    first, again, other = (
        decode.read_video(run(name, seed=seed)[1]).frames
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.slow
def test_four_devices_make_the_same_frames_as_one(folder):
    card = sample.read_card_file(folder / "exact.py")
    me = folder / "me.mp4"
    asked = request.Request(reference=me, audio=me, prompt="a red room")
    made = []
    for count in (1, 4):
        mesh = sample.choose_mesh(count)
        loaded = pretrained.load(folder / "tavr", card, folder, mesh)
        prepared, plan, _ = tavr_request.prepare(asked, loaded)
        settings = pretrained.choose_settings(card)
        with contextlib.nullcontext() if mesh is None else placement.entered(mesh):
            runs = video.generate(
                loaded, prepared, plan=plan, settings=settings, seed=0
            )
            made.append(np.concatenate(list(runs), axis=1).astype(float))
    # Levels of 255: sums in another order, decoded in float16, rounded.
    assert np.abs(made[0] - made[1]).mean() < 0.1


@pytest.mark.slow
def test_a_real_clip_and_real_speech_make_a_video(run, shared):
    video = sorted((shared / "videos").glob("*.mp4"))[0]
    speech = sorted((shared / "audio").iterdir())[0]
    code, out = run(reference=video, audio=speech, seconds=1)
    assert code == 0
    assert len(decode.read_video(out).frames) == 25


@pytest.mark.parametrize(
    ("kept", "needle"),
    [("wan-vae", "convert wan-vae"), ("umt5", "convert umt5"), ("tavr", "tavr")],
)
def test_a_network_that_is_missing_is_named(
    run, folder, tmp_path, capsys, kept, needle
):
    (tmp_path / "weights").mkdir()
    for kind in NETWORKS:
        if kind != kept:
            (tmp_path / "weights" / kind).symlink_to(folder / kind)
    code, out = run(weights=tmp_path / "weights" / "tavr")
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and not out.exists()
    assert needle in lines[-1]


def test_a_missing_tokenizer_is_named(run, folder, tmp_path, capsys):
    (tmp_path / "weights" / "umt5").mkdir(parents=True)
    for path in (folder / "umt5").iterdir():
        if path.name != "tokenizer.json":
            (tmp_path / "weights" / "umt5" / path.name).symlink_to(path)
    for kind in ("wan-vae", "wav2vec2"):
        (tmp_path / "weights" / kind).symlink_to(folder / kind)
    code, _ = run(encoders=tmp_path / "weights")
    assert code == 2
    assert "tokenizer.json" in capsys.readouterr().err.strip().splitlines()[-1]
