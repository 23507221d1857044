"""umT5 on tiny random weights, its tokenizers and how prompts are cleaned (~10 s)."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.models import prompts, text, tokenizer, umt5
from avatar_jax.types import InputError
from avatar_jax.weights import table
from avatar_jax.weights import umt5 as umt5_weights

CFG = umt5.UMT5Config(
    vocabulary=41, width=24, heads=3, head_dim=10, mlp_width=28, layers=2
)
END = 1
LENGTH = 40


@pytest.fixture(scope="module")
def params():
    return random_params(CFG)


def random_params(cfg):
    """Return weights that all matter, those of norms too."""
    ids, valid = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)
    shapes = jax.eval_shape(
        lambda: umt5.UMT5(cfg).init(jax.random.key(0), ids, valid)["params"]
    )
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32), shapes
    )


def spell(words):
    """A tokenizer of one token a letter."""
    return [2 + ord(letter) % 39 for letter in words]


@pytest.fixture(scope="module")
def encode(params):
    return umt5.UMT5Encoder(CFG, params, tokenizer.Tokenizer(spell, END), LENGTH)


def test_padding_changes_nothing(params):
    ids = np.random.default_rng(1).integers(0, CFG.vocabulary, (2, 13), np.int32)
    valid = np.arange(13) < np.array([[9], [13]])
    padded = umt5.encode_tokens(CFG, params, ids, valid)
    alone = umt5.encode_tokens(CFG, params, ids[:1, :9], valid[:1, :9])
    np.testing.assert_allclose(padded[:1, :9], alone, atol=1e-5)
    other = ids + (1 - valid).astype(np.int32)
    changed = umt5.encode_tokens(CFG, params, other % CFG.vocabulary, valid)
    np.testing.assert_array_equal(changed[0, :9], padded[0, :9])


def test_prompts_are_cut_at_their_end_and_do_not_see_each_other(encode):
    assert isinstance(encode, text.TextEncoder)
    short, empty, long = encode(["a cat", "", "b" * 35])
    assert short.shape == (encode.length, encode.width) == (LENGTH, CFG.width)
    for row, tokens in ((short, 6), (empty, 1), (long, 36)):
        assert (np.abs(row).max(axis=1) > 0).sum() == tokens
        assert not row[tokens:].any()
    np.testing.assert_array_equal(encode(["a cat"])[0], short)
    np.testing.assert_array_equal(encode(["", "x"])[0], empty)


def test_lengths_are_compiled_for_few_shapes(encode, monkeypatch):
    seen = []
    original = umt5.encode_tokens

    def record(cfg, params, ids, valid):
        seen.append(ids.shape)
        return original(cfg, params, ids, valid)

    monkeypatch.setattr(umt5, "encode_tokens", record)
    encode(["a" * count for count in (0, 3, 31, 32, 38, 39)])
    assert set(seen) == {(1, umt5.SHORTEST), (1, LENGTH)}


def test_a_long_prompt_is_cut_before_its_end_token_and_the_log_says_so(encode, caplog):
    whole = encode(["c" * (LENGTH - 1)])
    assert not caplog.records
    cut = encode(["c" * LENGTH])
    assert "40 tokens cut to 39" in caplog.text
    np.testing.assert_array_equal(cut, whole)


def test_order_of_words_matters_only_by_distance(params):
    """A shifted prompt among invalid rows has the same rows: distances are relative."""
    ids = np.random.default_rng(2).integers(0, CFG.vocabulary, (1, 7), np.int32)
    shifted = np.pad(ids, ((0, 0), (4, 0)))
    rows = umt5.encode_tokens(CFG, params, ids, np.ones((1, 7), bool))
    later = umt5.encode_tokens(CFG, params, shifted, np.arange(11)[None] >= 4)
    np.testing.assert_allclose(later[:, 4:], rows, atol=1e-5)
    turned = umt5.encode_tokens(CFG, params, ids[:, ::-1], np.ones((1, 7), bool))
    assert np.abs(turned[:, ::-1] - rows).max() > 0.1


def test_distances_share_buckets_in_equal_ratios():
    buckets = umt5.distance_buckets(300, CFG)
    row = buckets[299, ::-1]  # keys before the query, nearest first
    starts = [int(np.argmax(row == bucket)) for bucket in range(16)]
    assert starts == [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
    np.testing.assert_array_equal(buckets[0, 1:], 16 + row[1:])


def test_bfloat16_halves_the_weights_and_keeps_the_rows(params, encode):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    cfg = dataclasses.replace(CFG, dtype="bfloat16")
    rows = dataclasses.replace(encode, cfg=cfg, params=half)(["a black cat"])
    exact = encode(["a black cat"])
    assert rows.dtype == np.float32
    assert np.abs(rows - exact).max() < 0.1 * np.abs(exact).max()


def test_tokens_beyond_the_vocabulary_are_an_input_error(params):
    foreign = tokenizer.Tokenizer(lambda words: [99], END)
    with pytest.raises(InputError, match="below 41, came 99"):
        umt5.UMT5Encoder(CFG, params, foreign)(["a"])


@pytest.mark.parametrize("dialect", ["wan", "shared", "own"])
def test_every_dialect_makes_the_same_parameters(params, dialect):
    marks = {
        "wan": (),
        "shared": ("shared.weight",),
        "own": ("shared.weight", "encoder.embed_tokens.weight"),
    }
    entries = umt5_weights.entries(CFG, marks[dialect])
    tensors = {}
    for entry in entries:
        leaf = params
        for key in entry.path.split("/"):
            leaf = leaf[key]
        leaf = np.asarray(leaf if entry.layer is None else leaf[entry.layer])
        tensors[entry.name] = table.to_foreign(leaf, entry)
    assert marks[dialect][-1:] == () or marks[dialect][-1] in tensors
    again = table.assemble(entries, tensors)
    jax.tree.map(np.testing.assert_array_equal, again, jax.tree.map(np.asarray, params))


@pytest.fixture
def json_file(tmp_path):
    """A tokenizer.json of whole words that pads, cuts and ends texts by itself."""
    package = pytest.importorskip("tokenizers", reason="needs the package tokenizers")
    words = ["<pad>", "</s>", "<unk>", "a", "red", "cat"]
    vocabulary = {word: index for index, word in enumerate(words)}
    made = package.Tokenizer(package.models.WordLevel(vocabulary, "<unk>"))
    made.pre_tokenizer = package.pre_tokenizers.WhitespaceSplit()
    made.post_processor = package.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    made.enable_padding(length=9)
    made.enable_truncation(2)
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return path


def test_a_tokenizer_file_or_its_folder_is_read_without_its_padding(json_file):
    for path in (json_file, json_file.parent, str(json_file)):
        loaded = tokenizer.load(path)
        assert loaded.encode("a red cat dances") == [3, 4, 5, 2]
        assert loaded.encode("") == [] and loaded.end == 1


def test_a_sentencepiece_model_is_read(tmp_path):
    package = pytest.importorskip("sentencepiece", reason="needs sentencepiece")
    lines = ["a red cat", "the cat is red", "a cat", "red is the cat"] * 5
    prefix = str(tmp_path / "spiece")
    package.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=prefix,
        vocab_size=22,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    loaded = tokenizer.load(tmp_path)
    ids = loaded.encode("a red cat")
    assert loaded.end == 1 and 1 not in ids and loaded.encode("") == []
    assert loaded.encode("red cat") == loaded.encode("red") + loaded.encode("cat")


def test_a_missing_tokenizer_says_which_file_is_wanted(tmp_path):
    with pytest.raises(
        InputError, match=r"tokenizer.json or spiece.model in .*neither"
    ):
        tokenizer.load(tmp_path)
    with pytest.raises(InputError, match="does not exist; give the tokenizer.json"):
        tokenizer.load(tmp_path / "tokenizer.json")
    (tmp_path / "vocab.txt").write_text("a")
    with pytest.raises(InputError, match="came vocab.txt"):
        tokenizer.load(tmp_path / "vocab.txt")


@pytest.mark.parametrize(("name", "package"), tokenizer.PACKAGES.items())
def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch, name, package):
    (tmp_path / name).write_text("{}")
    monkeypatch.setitem(sys.modules, package, None)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(InputError, match=f"run pip install {package}"):
            tokenizer.load(path)


@pytest.mark.parametrize(("name", "package"), tokenizer.PACKAGES.items())
def test_a_broken_tokenizer_file_is_an_input_error(tmp_path, name, package):
    pytest.importorskip(package, reason=f"needs the package {package}")
    (tmp_path / name).write_text("nothing of use")
    with pytest.raises(InputError, match="expected a tokenizer, .* is none"):
        tokenizer.load(tmp_path / name)


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("  a\n\tb \u3000 c ", "a b c"),
        ("“Hello,” she’s in the café…", '"Hello," she\'s in the café…'),
        ("色调艳丽，过曝（画面）！", "色调艳丽,过曝(画面)!"),
        ("cafÃ© naÃ¯ve itâ€™s ðŸ˜€ 20Ã‚Â°C goÃ»t", "café naïve it's 😀 20°C goût"),
        ("«CAFÉ» São Ångström VOILÃ’ l’été", "«CAFÉ» São Ångström VOILÃ' l'été"),
        ("R&amp;amp;D &lt;b&gt; it&rsquo;s", "R&D <b> it's"),
        ("ﬁne ＡＢ\ufeff e\u0301 \x93c1\x94 \x1b[31mred\x1b[0m", 'fine AB é "c1" red'),
        ("One. The person is talking with gestures. Two.", "One. Two."),
        ("\ud83d\ude00", "😀"),
        ("", ""),
    ],
)
def test_prompts_are_cleaned_as_the_peers_clean_them(prompt, cleaned):
    assert prompts.clean(prompt) == cleaned
    assert prompts.clean(cleaned) == cleaned
