"""The video autoencoder is Wan2.1's number for number (needs ../shared; ~2 min)."""

import dataclasses
import json
import re

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import keystr, tree_flatten_with_path

from avatar_jax.models import vae
from avatar_jax.models.vae_config import WanVAEConfig
from avatar_jax.types import count_frames, count_latents
from avatar_jax.weights import table, wan_vae

ATOL = 5e-5  # README of the golden tensors, section 8
ATOL_HALF = 0.02  # float16: the original itself is 0.01 from float32
PLAIN = {"mean": (0.0,), "std": (1.0,)}  # diffusers' cases are not scaled


def load_codec(case, dtype="float32", **fields) -> vae.WanCodec:
    """Build the codec of a case; the sizes are those of its weights."""
    described, _ = cases.load(case)
    (weights,) = cases.weights(case).values()
    sizes = described.get("vae_config") or {"base_dim": described["meta"]["base_dim"]}
    found = {
        "width": sizes["base_dim"],
        "channels": weights[_either(weights, "conv2.bias")].shape[0],
        "multipliers": tuple(sizes.get("dim_mult", WanVAEConfig.multipliers)),
        "residual_blocks": sizes.get("num_res_blocks", WanVAEConfig.residual_blocks),
        "time_down": tuple(sizes.get("temperal_downsample", WanVAEConfig.time_down)),
    }
    scale = {name: value * found["channels"] for name, value in fields.items()}
    cfg = WanVAEConfig(**found, **scale, decode_dtype=dtype)
    entries = wan_vae.entries(cfg)
    if "conv2.bias" not in weights:
        entries = [
            dataclasses.replace(
                entry,
                name=wan_vae.diffusers_name(entry.name, cfg.residual_blocks),
            )
            for entry in entries
        ]
    assert {entry.name for entry in entries} == set(weights)
    params = table.assemble(entries, weights)
    return vae.WanCodec(jax.tree.map(jnp.asarray, params), cfg)


def _either(weights, name):
    return name if name in weights else wan_vae.diffusers_name(name)


def channels_last(array):
    """[B] C F Y X -> B F Y X C."""
    array = array if array.ndim == 5 else array[None]
    return jnp.asarray(np.moveaxis(array, 1, -1))


def numbered(tensors, name):
    """Yield the tensors `in.name0`, `in.name1` ... and the number."""
    for key in tensors:
        if found := re.fullmatch(rf"in\.{name}(\d+)", key):
            yield channels_last(tensors[key]), found[1]


def whole_latents(video):
    """Leave out the frames that the original does not read."""
    return video[:, : count_frames(count_latents(video.shape[1]))]


@pytest.mark.parametrize("case", cases.find("vae_encode"))
def test_encoder_equals_the_original(case):
    codec, (_, tensors) = load_codec(case), cases.load(case)
    for video, number in numbered(tensors, "video"):
        latents = codec.encode(whole_latents(video))
        expected = channels_last(tensors[f"out.latents{number}"])
        np.testing.assert_allclose(latents, expected, atol=ATOL)
        _, moments = run(codec, vae.WanVAE.encode, whole_latents(video))
        expected = channels_last(tensors[f"mid.moments_unnormalised{number}"])
        np.testing.assert_allclose(moments, expected, atol=ATOL)
    clip = channels_last(np.moveaxis(tensors["in.ref_frames"], 1, 0))
    latents = codec.encode_clips(clip[:, : clip.shape[1] // 4 * 4])
    expected = channels_last(tensors["out.videoref_latents"])
    np.testing.assert_allclose(latents, expected, atol=ATOL)


@pytest.mark.parametrize("case", cases.find("wan_vae_encode"))
def test_encoder_equals_diffusers(case):
    codec, (_, tensors) = load_codec(case, **PLAIN), cases.load(case)
    for video, number in numbered(tensors, "video"):
        video = whole_latents(video)
        latents = codec.encode(video)
        expected = channels_last(tensors[f"out.mode{number}"])
        np.testing.assert_allclose(latents, expected, atol=ATOL)
        _, moments = run(codec, vae.WanVAE.encode, video)
        expected = channels_last(tensors[f"out.moments{number}"])
        np.testing.assert_allclose(moments, expected, atol=ATOL)


@pytest.mark.parametrize("case", cases.find("vae_decode"))
def test_decoder_equals_the_original(case):
    described, tensors = cases.load(case)
    dtype = described["meta"]["dtype"]
    codec = load_codec(case, dtype)
    latents = channels_last(tensors["in.latents"])
    pixels = np.asarray(codec.decode(latents))
    expected = channels_last(tensors["out.pixels"])
    atol = ATOL if dtype == "float32" else ATOL_HALF
    np.testing.assert_allclose(pixels, expected, atol=atol)
    state, pieces = codec.init_decode(), []
    for latent in jnp.split(latents, latents.shape[1], axis=1):
        state, piece = codec.decode_next(state, latent)
        pieces.append(piece)
    np.testing.assert_allclose(np.concatenate(pieces, 1), expected, atol=atol)
    if dtype == "float32":
        plain = np.array(latents) * codec.cfg.std + codec.cfg.mean
        _, pixels = run(codec, vae.WanVAE.decode, jnp.asarray(plain, jnp.float32))
        unclipped = channels_last(tensors["mid.before_clamp"])
        np.testing.assert_allclose(pixels, unclipped, atol=ATOL)
        half = load_codec(case, "float16").decode(latents)
        assert 0 < np.abs(half - expected).max() < ATOL_HALF


@pytest.mark.parametrize("case", cases.find("wan_vae_decode"))
def test_decoder_equals_diffusers_latent_by_latent(case):
    codec, (_, tensors) = load_codec(case, **PLAIN), cases.load(case)
    latents = channels_last(tensors["in.z"])
    pixels = codec.decode(latents)
    np.testing.assert_allclose(pixels, channels_last(tensors["out.sample"]), atol=ATOL)
    cache, compared = None, 0
    for step in range(latents.shape[1]):
        latent = latents[:, step : step + 1]
        cache, pixels = run(codec, vae.WanVAE.decode, latent, cache)
        expected = channels_last(tensors[f"mid.step{step}_before_clamp"])
        np.testing.assert_allclose(pixels, expected, atol=ATOL)
        stem = f"mid.cache_after_step{step}."
        kept = {k[len(stem) :]: v for k, v in tensors.items() if k.startswith(stem)}
        if kept:
            compare_caches(cache, kept)
            compared += 1
    assert compared


def compare_caches(cache, kept):
    """Compare what the decoder's layers remember, in the order of execution."""
    found = {keystr(path): leaf for path, leaf in tree_flatten_with_path(cache)[0]}
    names = sorted(found, key=execution_order)
    assert len(names) == len(kept)
    for number, name in enumerate(names):
        expected = channels_last(kept[str(number)])
        np.testing.assert_allclose(found[name], expected, atol=ATOL, err_msg=name)


def execution_order(name):
    part, *rest = re.findall(r"'(\w+)'", name)[1:]  # without "decoder"
    stages = ("conv_in", "middle_in", "middle_out", "up", "conv_out")
    stage, slot = re.fullmatch(r"(.*?)(?:_(\d+)|_history)?", part).groups()
    return stages.index(stage), int(slot or 0), *rest


@pytest.mark.parametrize("case", cases.find("wan_vae_decode"))
def test_a_restarted_decoder_forgets(case):
    codec, (_, tensors) = load_codec(case, **PLAIN), cases.load(case)
    names = [k for k in tensors if k.startswith("out.decoded_without_cache_from_lat")]
    assert names
    for name in names:
        start = int(name.rsplit("_", 1)[1])
        pixels = codec.decode(channels_last(tensors["in.z"])[:, start:])
        expected = channels_last(tensors[name])
        np.testing.assert_allclose(pixels, expected, atol=ATOL)
        end = channels_last(tensors["out.sample"])[:, -expected.shape[1] :]
        assert np.abs(pixels - end).max() > 100 * ATOL


def run(codec, half, x, cache=None):
    """Run the network on numbers that are not scaled."""
    return vae.run_pieces(codec.params, cache, x, cfg=codec.cfg, half=half)


MANIFEST = cases.ORACLE / "tavr" / "full_manifest.json"
KEY_MAP = cases.ORACLE / "wan" / "key_map.json"


@pytest.mark.skipif(not MANIFEST.is_file(), reason=f"needs {MANIFEST}, absent here")
def test_names_and_shapes_are_those_of_the_full_checkpoint():
    manifest = json.loads(MANIFEST.read_text())["vae"]
    found = {entry.name: list(entry.shape) for entry in wan_vae.entries(WanVAEConfig())}
    assert found == {name: shape for name, (shape, *_) in manifest["keys"].items()}
    assert len(found) == manifest["num_keys"]
    total = sum(int(np.prod(shape)) for shape in found.values())
    assert total == manifest["num_parameters"]
    for name, (_, _, other) in manifest["keys"].items():
        assert wan_vae.diffusers_name(name) == other


@pytest.mark.skipif(not KEY_MAP.is_file(), reason=f"needs {KEY_MAP}, absent here")
def test_names_turn_into_those_of_diffusers():
    names = json.loads(KEY_MAP.read_text())["vae"]["full"]
    found = {name: wan_vae.diffusers_name(name) for name in names}
    assert found == {name: other for name, (other, _) in names.items()}
