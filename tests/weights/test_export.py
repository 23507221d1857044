"""Our weights back to the original's files, and the command for both ways (~30 s)."""

import sys

import chex
import jax
import ml_dtypes
import numpy as np
import published
import pytest
from flax import traverse_util
from safetensors.numpy import load_file

from avatar_jax import checkpoint, convert
from avatar_jax.types import InputError
from avatar_jax.weights import conversion, export, networks, table


def flatten(tree):
    return traverse_util.flatten_dict(tree, sep="/")


@pytest.mark.parametrize("kind", published.KINDS)
def test_weights_go_and_come_back_to_the_byte(tmp_path, kind):
    path, tensors = published.write_kind(
        tmp_path / "in", kind, dtype=ml_dtypes.bfloat16
    )
    done = conversion.convert(kind, path, tmp_path / "ours", published.options_of(kind))
    assert done["config"] == published.CONFIGS[kind]
    params, metadata = checkpoint.load_weights(tmp_path / "ours")
    assert networks.read_config(kind, metadata["config"]) == done["config"]
    entries = networks.describe(kind, done["config"], tensors).entries
    expected = table.assemble(entries, tensors)
    if kind == "wan":
        expected["embed"]["still_role"] = np.zeros(published.WAN.width)
    chex.assert_trees_all_equal(
        jax.tree.map(np.float32, params), jax.tree.map(np.float32, expected)
    )
    back = tmp_path / "back.safetensors"
    assert export.export(kind, tmp_path / "ours", back) == len(tensors)
    found = load_file(back)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert found[name].tobytes() == tensor.tobytes()


def test_weights_that_learnt_more_than_the_original_has_are_not_exported(tmp_path):
    path, _ = published.write_kind(tmp_path / "in", "wan")
    conversion.convert("wan", path, tmp_path / "ours", published.options_of("wan"))
    params, metadata = checkpoint.load_weights(tmp_path / "ours")

    def refused(match, change):
        flat = {**flatten(params), **change}
        tree = traverse_util.unflatten_dict(flat, sep="/")
        checkpoint.save_weights(tmp_path / "w.safetensors", tree, metadata)
        with pytest.raises(InputError, match=match):
            export.export("wan", tmp_path / "w.safetensors", out)
        assert not out.exists()

    out = tmp_path / "back.safetensors"
    role, kernel = "embed/still_role", "embed/patch/kernel"
    refused(role, {role: np.ones(24, np.float32)})
    refused("has room for 5 channels", {kernel: np.ones((28, 24), np.float32)})
    refused("'extra/bias'", {"extra/bias": np.ones(2, np.float32)})
    refused("head/bias", {"head/bias": np.ones(3, np.float32)})
    with pytest.raises(InputError, match="holds wan"):
        export.export("tavr", tmp_path / "ours", out)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, monkeypatch, capsys):
    published.write_zip(tmp_path / "bad.pth", published.call("os.system"))
    swapped, _ = published.write_kind(tmp_path / "vae", "wan-vae")
    right, _ = published.write_kind(tmp_path / "in", "wan")
    out = tmp_path / "out"
    for arguments, words in (
        (["tavr", tmp_path / "bad.pth", out], "os.system"),
        (["tavr", swapped, out], "which is wan-vae"),
        (["wan", tmp_path / "none", out], "does not exist"),
        (["wan", right, out], "--heads"),
        (["wan", right, out, "--heads=2", "--mesh=rows=2"], "fsdp=8,tensor=2"),
        (["wan-vae", swapped, out, "--heads=2"], "are of tavr and wan"),
        (["wan", right, out, "--to=safetensors"], ".safetensors file to write"),
    ):
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
        assert convert.cli() == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and words in error
        assert not out.exists()
    monkeypatch.setattr(sys, "argv", ["c", "wan", str(right), str(out), "--heads=2"])
    assert convert.cli() == 0
    assert "96 tensors" in capsys.readouterr().out
