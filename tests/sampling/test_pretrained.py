"""Weights files that fit, and those that do not; ~8 s on 2 cores."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
import tiny_weights

from avatar_jax import checkpoint
from avatar_jax.models import sizes
from avatar_jax.models.dit import AvatarDiT
from avatar_jax.sampling import pretrained
from avatar_jax.types import InputError


@pytest.fixture(scope="module")
def made():
    return tiny_weights.make_params()


def test_the_shipped_weights_load_and_know_how_they_are_sampled():
    assert pretrained.TINY_WEIGHTS.stat().st_size < 16e6
    loaded = pretrained.load(pretrained.TINY_WEIGHTS)
    card = loaded.card
    assert card.size == 64 and card.blank_still and card.config.reference
    assert card.motion == card.identity == "procedural"
    assert card.reference_latents >= 24 and card.face_crops > 0
    assert pretrained.choose_settings(card).scales.audio > 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(loaded.params))


def write(path, card, params):
    checkpoint.save_weights(path, params, card.to_metadata(), dtype=np.float16)
    return path


def test_a_card_survives_its_file(tmp_path, made):
    card, params = made
    loaded = pretrained.load(write(tmp_path / "w.safetensors", card, params))
    assert loaded.card == card
    assert loaded.codec.name == card.codec
    chex.assert_trees_all_close(loaded.params, params, atol=2e-3)


def test_the_first_wrong_key_of_each_kind_is_named(tmp_path, made):
    card, params = made
    wrong = {**params, "extra": np.zeros(2), "head": dict(params["head"])}
    wrong["head"]["bias"] = np.zeros(3)
    del wrong["head_modulation"]
    path = write(tmp_path / "w.safetensors", card, wrong)
    with pytest.raises(InputError) as caught:
        pretrained.load(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("missing head_modulation", "unexpected extra", "mis-shaped head/bias"):
        assert part in message


@pytest.mark.parametrize(
    "change, words",
    [
        ({"colour": 3}, "unknown colour"),
        ({"size": None}, "no size"),
        ({"codec": "vae"}, "codec 'vae'"),
        ({"speech": "ears"}, "speech encoder 'ears'"),
        ({"identity": "eyes"}, "identity encoder 'eyes'"),
        ({"motion": "eyes"}, "motion encoder 'eyes'"),
    ],
)
def test_metadata_of_another_kind_is_named(tmp_path, made, change, words):
    card, params = made
    metadata = {**card.to_metadata(), **change}
    metadata = {name: value for name, value in metadata.items() if value is not None}
    checkpoint.save_weights(tmp_path / "w.safetensors", params, metadata)
    with pytest.raises(InputError, match=words):
        pretrained.load(tmp_path / "w.safetensors")


def test_encoders_of_a_person_are_loaded_with_the_weights(tmp_path):
    card, params = tiny_weights.make_params(
        tiny_weights.PERSON_CONFIG, **tiny_weights.PERSON_CARD
    )
    loaded = pretrained.load(write(tmp_path / "w.safetensors", card, params))
    assert (loaded.motion.kind, loaded.identity.kind) == ("motion", "identity")
    assert loaded.patch_side == 16
    short = dataclasses.replace(card, motion_mean=(0.0,) * 11)
    with pytest.raises(InputError, match="12 motion codes.* 11 means"):
        pretrained.load(write(tmp_path / "short.safetensors", short, params))


def test_guidance_by_codes_that_weights_do_not_know_is_refused(made):
    blind, _ = made
    knowing = dataclasses.replace(blind, motion="procedural")
    with pytest.raises(InputError, match=r"guidance of 1.* no motion codes, came 2\.0"):
        pretrained.choose_settings(blind, motion_guidance=2.0)
    assert pretrained.choose_settings(blind).scales.motion == 1
    told = pretrained.choose_settings(knowing, motion_guidance=2.0)
    assert told.scales.motion == 2


@pytest.mark.parametrize(
    "change", [{"shift": 0.0}, {"motion_lead": 0.5}, {"motion_guidance": 0.5}]
)
def test_a_card_with_impossible_settings_is_refused(made, change):
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"{name}={value}.*at least 1"):
        dataclasses.replace(made[0], **change)


@pytest.mark.parametrize(
    "parts",
    [
        {"audio_width": 6},
        {"reference": True, "audio_width": 6, "reference_audio_width": 4},
        {"reference": True, "faces": True, "identity_width": 3, "motion_width": 2},
    ],
)
def test_expected_shapes_hold_every_part_of_the_model(parts):
    config = dataclasses.replace(sizes.TINY, channels=5, text_width=4, **parts)
    card = pretrained.Card(config=config, size=16, chunk_latents=4)
    shapes = pretrained.expected_shapes(AvatarDiT(config), card)
    bare = dataclasses.replace(sizes.TINY, channels=5, text_width=4)
    plain = dataclasses.replace(card, config=bare)
    fewer = pretrained.expected_shapes(AvatarDiT(bare), plain)
    assert len(jax.tree.leaves(shapes)) > len(jax.tree.leaves(fewer))
