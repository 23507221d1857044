"""wav2vec 2.0 on tiny random weights and the features made of it (~40 s)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.models import speech, speech_features, wav2vec2
from avatar_jax.types import SAMPLES_PER_FRAME, InputError
from avatar_jax.weights import table
from avatar_jax.weights import wav2vec2 as wav2vec2_weights

LARGE = wav2vec2.Wav2Vec2Config(
    width=24,
    heads=3,
    mlp_width=28,
    layers=4,
    conv_widths=(6, 10, 8, 8, 8, 8, 14),
    positional_kernel=10,
    positional_groups=4,
)
BASE = dataclasses.replace(
    LARGE,
    layers=2,
    conv_bias=False,
    conv_norm="group",
    norm_first=False,
    positional_kernel=7,
)
LAYERS = (0, 2)


@pytest.fixture(scope="module", params=[LARGE, BASE], ids=["large", "base"])
def encode(request):
    return speech_encoder(request.param)


@pytest.fixture(scope="module")
def large():
    return speech_encoder(LARGE)


def speech_encoder(cfg, **windows):
    return speech_features.Wav2Vec2Encoder(
        cfg,
        random_params(cfg),
        **{"window_seconds": 0.9, "overlap_seconds": 0.3} | windows,
    )


def random_params(cfg):
    """Return weights that all matter, those of norms too."""
    shapes = jax.eval_shape(
        lambda: wav2vec2.Wav2Vec2(cfg).init(
            jax.random.key(0), jnp.zeros((1, 800)), jnp.array([800]), (0,)
        )["params"]
    )
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        around = path[-1].key == "scale"
        return jnp.asarray(around + 0.3 * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def noise(samples, seed=3):
    return np.random.default_rng(seed).normal(size=samples).astype(np.float32)


def test_samples_behind_the_end_change_nothing(encode):
    wave = noise(5_003)
    length = np.array([4_100], np.int32)
    args = encode.cfg, encode.params
    cut = speech_features.encode_window(*args, wave[None, :4_100], length, LAYERS)
    rows = encode.cfg.count_rows(4_100)
    assert cut.shape == (len(LAYERS), 1, rows, encode.cfg.width)
    for tail in (wave, np.pad(wave[:4_100], (0, 903))):
        longer = speech_features.encode_window(*args, tail[None], length, LAYERS)
        np.testing.assert_allclose(longer[:, :, :rows], cut, atol=2e-5)


def test_states_are_finite_and_of_every_layer(encode):
    cfg = encode.cfg
    rows = encode(noise(3_207), (*range(cfg.layers + 1), -1))
    assert rows.shape == (cfg.count_rows(3_207), (cfg.layers + 2) * cfg.width)
    assert np.isfinite(rows).all() and rows.dtype == np.float32
    *_, before, last, again = np.split(rows, cfg.layers + 2, axis=1)
    np.testing.assert_array_equal(last, again)
    assert np.abs(last - before).max() > 0.1


def test_published_sizes_have_the_published_number_of_parameters():
    for cfg, expected in ((wav2vec2.LARGE, 315_437_696), (wav2vec2.BASE, 94_370_944)):
        entries = wav2vec2_weights.entries(cfg)
        assert sum(np.prod(e.shape, dtype=int) for e in entries) == expected


@pytest.mark.parametrize("samples", [9_007, 14_400])
def test_short_speech_is_one_window_and_padding_loses_nothing(large, samples):
    wave = noise(samples)
    seconds = LARGE.stride * -(-samples // LARGE.stride) / 16_000
    exact = dataclasses.replace(large, window_seconds=seconds)
    whole, windows = exact(wave, LAYERS), large(wave, LAYERS)
    assert len(windows) == LARGE.count_rows(samples)
    np.testing.assert_allclose(windows, whole, atol=2e-5)


def test_speech_shorter_than_one_row_has_no_rows(large):
    for samples in (0, 1, 399):
        assert large(noise(samples), LAYERS).shape == (0, 2 * LARGE.width)
    assert len(large(noise(400), LAYERS)) == 1


@pytest.mark.parametrize("samples", [14_401, 20_000, 33_333])
def test_windows_of_long_speech_join_to_whole_rows(samples):
    """Without attention a row hears little more than itself: windows = whole."""
    cfg = dataclasses.replace(LARGE, layers=1)
    windowed = speech_encoder(cfg)
    whole = dataclasses.replace(windowed, window_seconds=3.0)
    wave = noise(samples)
    expected = whole(wave, (0,))
    rows = windowed(wave, (0,))
    assert rows.shape == expected.shape
    np.testing.assert_allclose(rows, expected, atol=2e-5)


def test_level_and_offset_of_the_whole_clip_change_nothing(large):
    wave = np.concatenate([0.01 * noise(9_000), noise(9_000, seed=4)])
    rows = large(wave, LAYERS)
    np.testing.assert_allclose(large(0.2 * wave + 0.5, LAYERS), rows, atol=1e-3)
    # One gain for the clip, not one per window: a quiet first half stays quiet.
    assert np.abs(large(wave[:9_000], LAYERS)[:20] - rows[:20]).max() > 0.1


def test_windows_are_compiled_once(large):
    before = speech_features.encode_window._cache_size()
    for samples in (700, 5_000, 20_000):
        large(noise(samples), LAYERS)
    assert speech_features.encode_window._cache_size() <= before + 1


def test_driving_speech_is_followed_by_silence_and_held(large):
    encode = speech_features.DrivingSpeech(large, LAYERS)
    assert isinstance(encode, speech.SpeechEncoder)
    wave = 0.1 * noise(13 * SAMPLES_PER_FRAME)
    track = encode.track(wave)
    assert track.rows.shape[1] == encode.width == 2 * 2 * LARGE.width
    assert track.frames == 4 * 4 + 1  # 17 rows of speech, 12 of silence, of which half
    assert len(track.rows) == 17 + 12
    silence = speech_features.pair_rows(large(np.zeros_like(wave), LAYERS))
    np.testing.assert_allclose(track.rows[17:], silence, atol=1e-6)
    rows = encode(wave, 40)
    np.testing.assert_array_equal(rows[:29], track.rows)
    np.testing.assert_array_equal(rows[29:], np.repeat(track.rows[-1:], 11, axis=0))


def test_long_driving_speech_counts_silence_that_is_not_encoded(large):
    encode = speech_features.DrivingSpeech(large, LAYERS)
    short, long = (
        encode.track(0.1 * noise(frames * SAMPLES_PER_FRAME)) for frames in (20, 200)
    )
    assert (short.frames, long.frames) == (25, 205)
    assert len(long.rows) < 200 + 5 + 30
    with pytest.raises(InputError, match="came 0 samples"):
        encode.track(np.zeros(0, np.float32))


def test_reference_speech_runs_three_frames_ahead(large):
    null = np.full(2 * LARGE.width, 7.0, np.float32)
    encode = speech_features.ReferenceSpeech(large, null)
    assert isinstance(encode, speech.SpeechEncoder) and encode.width == null.size
    wave = noise(11 * SAMPLES_PER_FRAME)
    features = speech_features.pair_rows(large(wave, (-1,)))
    rows = encode(wave, 20)
    assert len(features) == 10 and rows.shape == (20, null.size)
    np.testing.assert_array_equal(rows[:3], np.repeat(features[:1], 3, axis=0))
    np.testing.assert_array_equal(rows[3:13], features)
    np.testing.assert_array_equal(rows[13:], np.repeat(null[None], 7, axis=0))
    np.testing.assert_array_equal(encode(wave, 6), rows[:6])


def test_odd_last_row_is_dropped_and_earlier_rows_come_first():
    pairs = speech_features.pair_rows(np.arange(14.0).reshape(7, 2))
    np.testing.assert_array_equal(pairs, np.arange(12.0).reshape(3, 4))
    cut = speech_features.cut_rows(pairs, 1, 4)
    np.testing.assert_array_equal(cut, pairs[[1, 2, 2, 2]])


@pytest.mark.parametrize("naming", ["new", "old", "bare"])
@pytest.mark.parametrize("cfg", [LARGE, BASE], ids=["large", "base"])
def test_every_naming_makes_the_same_parameters(cfg, naming):
    params = random_params(cfg)
    conv = "encoder.pos_conv_embed.conv."
    names = {
        "new": (f"wav2vec2.{conv}parametrizations.weight.original0",),
        "old": (f"wav2vec2.{conv}weight_g", "lm_head.bias"),
        "bare": (f"{conv}weight_g",),
    }[naming]
    entries = wav2vec2_weights.entries(cfg, names)
    tensors = {entry.name: _tensor(params, entry) for entry in entries}
    assert names[0] in tensors
    again = table.assemble(entries, tensors)
    jax.tree.map(np.testing.assert_array_equal, again, jax.tree.map(np.asarray, params))


def _tensor(params, entry):
    leaf = params
    for key in entry.path.split("/"):
        leaf = leaf[key]
    leaf = np.asarray(leaf if entry.layer is None else leaf[entry.layer])
    return table.to_foreign(leaf, entry)


def test_an_absent_field_means_the_base_layout():
    assert wav2vec2_weights.read_config({}) == wav2vec2.BASE


def test_wrong_sizes_are_told():
    with pytest.raises(ValueError, match="must divide"):
        dataclasses.replace(LARGE, heads=5)
    with pytest.raises(ValueError, match="different number"):
        dataclasses.replace(LARGE, conv_strides=(5, 2))
    with pytest.raises(ValueError, match="longer than their overlap"):
        speech_features.Wav2Vec2Encoder(LARGE, {}, 1.0, 1.0)
