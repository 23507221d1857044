"""umT5 and both layouts of wav2vec 2.0 against transformers, random weights (~1 min).

Runs where torch and transformers are installed; neither is a dependency.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.models import speech_features, umt5
from avatar_jax.weights import table
from avatar_jax.weights import umt5 as umt5_weights
from avatar_jax.weights import wav2vec2 as wav2vec2_weights

pytestmark = pytest.mark.slow
UMT5 = {
    "vocab_size": 37,
    "d_model": 48,
    "d_kv": 10,
    "d_ff": 56,
    "num_layers": 3,
    "num_heads": 6,
}
SPEECH = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 40,
    "conv_dim": [20, 24, 24, 16, 16, 16, 18],
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 7,
    "apply_spec_augment": False,
}
LAYOUTS = {
    "large": {
        "feat_extract_norm": "layer",
        "conv_bias": True,
        "do_stable_layer_norm": True,
        "num_conv_pos_embeddings": 14,
    },
    "base": {
        "feat_extract_norm": "group",
        "conv_bias": False,
        "do_stable_layer_norm": False,
        "num_conv_pos_embeddings": 9,
    },
}
RTOL = 1e-4  # of the largest value; float32 sums in another order


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="needs torch, which is not installed")


@pytest.fixture(scope="module")
def transformers(torch):
    reason = "needs the package transformers, which is not installed"
    pytest.importorskip("transformers.models", reason=reason)
    import transformers

    return transformers


def test_umt5_equals_transformers(torch, transformers):
    torch.manual_seed(0)
    fields = transformers.UMT5Config(**UMT5)
    model = transformers.UMT5EncoderModel(fields).eval()
    _randomise(torch, model, scale=0.3)
    cfg, params = _load(umt5_weights, model, fields)
    rng = np.random.default_rng(1)
    ids = rng.integers(0, cfg.vocabulary, (2, 300))
    mask = np.arange(300) < np.array([[300], [171]])
    with torch.no_grad():
        expected = model(torch.tensor(ids), torch.tensor(mask)).last_hidden_state
    rows = umt5.encode_tokens(cfg, params, ids.astype(np.int32), mask)
    _assert_close(np.asarray(rows)[mask], expected.numpy()[mask])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("naming", ["parametrizations", "weight_g"])
def test_wav2vec2_equals_transformers(torch, transformers, layout, naming):
    torch.manual_seed(0)
    fields = transformers.Wav2Vec2Config(**SPEECH, **LAYOUTS[layout])
    model = transformers.Wav2Vec2ForCTC(fields).eval()
    _randomise(torch, model, scale=0.2)
    renamed = {}
    if naming == "weight_g":
        renamed = {
            f"parametrizations.weight.original{i}": f"weight_{'gv'[i]}"
            for i in range(2)
        }
    cfg, params = _load(wav2vec2_weights, model, fields, renamed)
    encode = speech_features.Wav2Vec2Encoder(
        cfg, params, window_seconds=1.5, overlap_seconds=0.1
    )
    wave = np.random.default_rng(2).normal(size=15_347).astype(np.float32)
    values = torch.tensor(speech_features.standardise(wave))[None]
    with torch.no_grad():
        out = model.wav2vec2(values, output_hidden_states=True)
    layers = tuple(range(cfg.layers + 1))
    states = np.split(encode(wave, layers), len(layers), axis=1)
    # transformers 4 gives the last state behind the final norm, 5 gives it before.
    theirs = [*out.hidden_states[:-1], out.last_hidden_state]
    for state, expected in zip(states, theirs, strict=True):
        _assert_close(state, expected[0].numpy())


def _randomise(torch, model, *, scale):
    """Give every parameter weights that matter: norms start at 1, biases at 0."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))


def _load(weights, model, fields, renamed=()):
    """Read config and tensors as a checkpoint of transformers would give them."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        for theirs in renamed:
            name = name.replace(theirs, renamed[theirs])
        tensors[name] = tensor.numpy()
    cfg = weights.read_config(json.loads(fields.to_json_string(use_diff=False)))
    entries = weights.entries(cfg, tensors)
    unread = tensors.keys() - {entry.name for entry in entries}
    assert all(name.startswith(weights.UNUSED) for name in unread), unread
    params = jax.tree.map(jnp.asarray, table.assemble(entries, tensors))
    assert dataclasses.replace(cfg, dtype="float32") == cfg
    return cfg, params


def _assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=RTOL * np.abs(theirs).max())
