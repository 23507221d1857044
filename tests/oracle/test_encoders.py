"""The frozen encoders of real models, number for number (~25 s; needs ../shared)."""

import dataclasses
import json

import cases
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from avatar_jax.media import piecewise_loudness
from avatar_jax.models import speech_features, umt5, wav2vec2
from avatar_jax.models.tokenizer import Tokenizer
from avatar_jax.weights import table
from avatar_jax.weights import umt5 as umt5_weights
from avatar_jax.weights import wav2vec2 as wav2vec2_weights

ATOL = 5e-5  # of float32 encoders, whose values reach 7
ATOL_BFLOAT16 = 0.03


@pytest.mark.parametrize("case", cases.find("umt5"))
def test_umt5_rows_equal_the_original(case):
    described, tensors = cases.load(case)
    cfg = umt5_weights.read_config(described["meta"]["umt5_config"])
    params = _assemble(umt5_weights.entries(cfg), cases.weights(case)["umt5"])
    ids, mask = tensors["in.input_ids"], tensors["in.attention_mask"].astype(bool)
    end = ids[0, mask[0].sum() - 1].item()
    texts = {str(i): row[valid][:-1].tolist() for i, (row, valid) in _rows(ids, mask)}
    encode = umt5.UMT5Encoder(
        cfg, params, Tokenizer(texts.__getitem__, end), length=ids.shape[1]
    )
    for i, row in enumerate(encode(list(texts))):
        expected = tensors[f"out.text{i}"]
        np.testing.assert_allclose(row[: len(expected)], expected, atol=ATOL)
        assert not row[len(expected) :].any()
    together = umt5.encode_tokens(cfg, params, ids.astype(np.int32), mask)
    whole = tensors["mid.last_hidden_state_all_positions"]
    np.testing.assert_allclose(np.asarray(together)[mask], whole[mask], atol=ATOL)


def _rows(ids, mask):
    return enumerate(zip(ids, mask, strict=True))


@pytest.mark.parametrize("case", cases.find("wav2vec"))
def test_speech_features_equal_the_original(case):
    described, tensors = cases.load(case)
    layers = tuple(described["meta"]["layers"])
    encoder = _speech_encoder(case)
    for i in range(described["meta"]["n"]):
        wave = tensors[f"in.wave{i}"]
        np.testing.assert_allclose(
            speech_features.standardise(wave),
            tensors[f"mid.normalised_wave{i}"][0],
            atol=1e-5,
        )
        rows = encoder(wave, (*layers, -1))  # one call: one compilation
        *states, last = np.split(rows, len(layers) + 1, axis=1)
        for layer, state in zip(layers, states, strict=True):
            expected = tensors[f"mid.hidden_state{layer}_wave{i}"][0]
            np.testing.assert_allclose(state, expected, atol=ATOL)
        driving = speech_features.pair_rows(np.concatenate(states, axis=1))
        expected = tensors[f"out.driving_f32_wave{i}"]
        np.testing.assert_allclose(driving, expected, atol=ATOL)
        expected = tensors[f"out.driving_as_coded_bf16_as_f32_wave{i}"]
        np.testing.assert_allclose(driving, expected, atol=ATOL_BFLOAT16)
        expected = tensors[f"out.reference_wave{i}"]
        reference = speech_features.pair_rows(last)
        np.testing.assert_allclose(reference, expected, atol=ATOL)


@pytest.mark.parametrize("case", cases.find("wav2vec"))
def test_bfloat16_products_stay_within_rounding(case):
    described, tensors = cases.load(case)
    layers = tuple(described["meta"]["layers"])
    encoder = _speech_encoder(case, dtype="bfloat16")
    rows = speech_features.pair_rows(encoder(tensors["in.wave0"], layers))
    error = rows - tensors["out.driving_f32_wave0"]
    # Not a rounding of the result, but one of every product on the way to it.
    assert np.sqrt(np.square(error).mean()) < ATOL_BFLOAT16


def _speech_encoder(case, **changes):
    described, tensors = cases.load(case)
    cfg = wav2vec2_weights.read_config(described["meta"]["wav2vec_config"])
    weights = cases.weights(case)["wav2vec"]
    params = _assemble(wav2vec2_weights.entries(cfg, weights), weights)
    cfg = dataclasses.replace(cfg, **changes)
    longest = max(tensors[name].size for name in tensors if "in.wave" in name)
    seconds = 1.2 * longest / 16_000  # all clips are padded, to one length
    return speech_features.Wav2Vec2Encoder(
        cfg, params, window_seconds=seconds, overlap_seconds=seconds / 10
    )


@pytest.mark.parametrize("case", cases.find("audio_features"))
def test_tracks_of_speech_equal_the_original(case, monkeypatch):
    described, tensors = cases.load(case)
    for name in ("odd", "even"):
        pairs = speech_features.pair_rows(tensors[f"in.raw50_{name}"])
        np.testing.assert_array_equal(pairs, tensors[f"out.pair_{name}"])
    lengths = []

    def encode(wave):
        lengths.append(len(wave))
        kind = "silence" if len(lengths) > 1 else "speech"
        return tensors[f"in.{kind}_features"]

    monkeypatch.setattr(piecewise_loudness, "normalise", lambda wave: wave)
    track = speech_features.driving_track(tensors["in.wave"], encode)
    assert track.frames == tensors["out.num_frames"]
    assert lengths == tensors["out.encoded_lengths"].tolist()
    np.testing.assert_array_equal(
        track.rows.astype(ml_dtypes.bfloat16).astype(np.float32),
        tensors["out.driving_features_bf16_as_f32"][0],
    )
    for i, frames in enumerate(described["meta"]["ref_counts"]):
        rows = speech_features.reference_track(
            tensors["in.ref_features"], frames, tensors["in.null_feature"][0]
        )
        np.testing.assert_array_equal(rows, tensors[f"out.videoref_features{i}"][0])


@pytest.mark.parametrize("case", cases.find("slice_audio"))
def test_every_chunk_hears_its_own_rows(case):
    described, tensors = cases.load(case)
    told = described["constants"]
    chunks = [name for name in tensors if name.startswith("out.chunk")]
    for i in range(len(chunks)):
        expected = tensors[f"out.chunk{i}"][0]
        start = told["audio_per_latent"] * told["chunk_stride"] * i
        rows = speech_features.cut_rows(tensors["in.features"][0], start, len(expected))
        np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize("case", cases.find("loudness"))
def test_loudness_of_pieces_equals_the_original(case):
    described, tensors = cases.load(case)
    for i in range(described["meta"]["n"]):
        levelled = piecewise_loudness.normalise(tensors[f"in.wave{i}"])
        np.testing.assert_allclose(levelled, tensors[f"out.wave{i}"], atol=1e-12)


@pytest.fixture(scope="module")
def manifest():
    found = sorted(cases.ORACLE.rglob("full_manifest.json"))
    if not found:
        pytest.skip(f"needs full_manifest.json in {cases.ORACLE}, absent here")
    return json.loads(found[0].read_text())


@pytest.mark.parametrize("dialect", ["wan", "transformers"])
def test_every_tensor_of_umt5_has_a_place_of_its_shape(manifest, dialect):
    listed = manifest["text_encoder"]["keys"]
    if dialect == "transformers":
        listed = {theirs: (shape, dtype) for shape, dtype, theirs in listed.values()}
    cfg = umt5_weights.read_config(manifest["text_encoder"]["config"])
    entries = umt5_weights.entries(cfg, listed)
    assert {e.name: list(e.shape) for e in entries} == {
        name: fields[0] for name, fields in listed.items()
    }
    shapes = jax.eval_shape(_init_umt5(cfg))
    assert _count(shapes) == manifest["text_encoder"]["num_parameters"]
    _check_places(entries, shapes)


def test_every_tensor_of_wav2vec2_has_a_place_of_its_shape(manifest):
    listed = {
        name: fields[0] for name, fields in manifest["audio_encoder"]["keys"].items()
    }
    cfg = wav2vec2_weights.read_config(manifest["audio_encoder"]["config"])
    assert cfg == wav2vec2.LARGE
    entries = wav2vec2_weights.entries(cfg, listed)
    read = {
        name: shape
        for name, shape in listed.items()
        if not name.startswith(wav2vec2_weights.UNUSED)
    }
    assert {e.name: list(e.shape) for e in entries} == read
    unused = sum(
        np.prod(shape, dtype=int) for name, shape in listed.items() if name not in read
    )
    shapes = jax.eval_shape(_init_wav2vec2(cfg))
    assert _count(shapes) == manifest["audio_encoder"]["num_parameters"] - unused
    _check_places(entries, shapes)


def _init_umt5(cfg):
    ids, valid = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)
    return lambda: umt5.UMT5(cfg).init(jax.random.key(0), ids, valid)["params"]


def _init_wav2vec2(cfg):
    model, wave = wav2vec2.Wav2Vec2(cfg), jnp.zeros((1, 800))
    length = jnp.array([800])
    return lambda: model.init(jax.random.key(0), wave, length, (0,))["params"]


def _check_places(entries, shapes):
    """Every leaf is filled, each of its layers once, by tensors of its shape."""
    ours = {
        "/".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    filled = {}
    for entry in entries:
        layers, shape = filled.setdefault(entry.path, ([], entry.our_shape))
        assert shape == entry.our_shape
        layers.append(entry.layer)
    assert filled.keys() == ours.keys()
    for path, (layers, shape) in filled.items():
        stacked = () if layers == [None] else (len(layers),)
        assert (*stacked, *shape) == ours[path]
        assert layers == [None] or sorted(layers) == list(range(len(layers)))


def _count(shapes):
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(shapes))


def _assemble(entries, tensors):
    return jax.tree.map(jnp.asarray, table.assemble(entries, tensors))
