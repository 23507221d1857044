"""Safetensors in one file, in shards and in folders; damaged ones are named (~1 s)."""

import json

import numpy as np
import published
import pytest
from safetensors.numpy import load_file, save_file

from avatar_jax.types import InputError
from avatar_jax.weights import files

DTYPES = [np.float32, np.float16, published.BFLOAT16, np.int64, np.bool_]


def draw(*shape, dtype=np.float32):
    return (9 * np.random.default_rng(3).standard_normal(shape)).astype(dtype)


def write_shards(folder):
    """Write two shards and their index; return the tensors."""
    one, two = {"a": draw(3, 5), "b": draw(2)}, {"c": draw(4, 1)}
    folder.mkdir()
    save_file(one, folder / "m-1.safetensors")
    save_file(two, folder / "m-2.safetensors")
    names = dict.fromkeys(one, "m-1.safetensors") | {"c": "m-2.safetensors"}
    index = folder / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    return one | two, index


def refused(match, path):
    with pytest.raises(InputError, match=match) as caught:
        files.open_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_of_every_dtype_come_back(tmp_path, dtype):
    tensors = {"a": draw(3, 5, dtype=dtype), "empty": draw(0, 2), "b": draw(7)}
    save_file(tensors, tmp_path / "w.safetensors")
    found = files.open_checkpoint(tmp_path / "w.safetensors").tensors
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name].read(), tensor)
        assert found[name].dtype == tensor.dtype


def test_a_folder_may_hold_shards_one_file_or_an_archive(tmp_path):
    expected, index = write_shards(tmp_path / "shards")
    for path in (tmp_path / "shards", index):
        found = files.open_checkpoint(path).tensors
        assert set(found) == set(expected)
        np.testing.assert_array_equal(found["c"].read(), expected["c"])
    index.unlink()
    assert len(files.open_checkpoint(tmp_path / "shards").tensors) == 3
    (tmp_path / "torch").mkdir()
    published.write_archive(tmp_path / "torch" / "w.bin", {"w": draw(3)})
    (tmp_path / "torch" / "config.json").write_text('{"d_model": 3}')
    opened = files.open_checkpoint(tmp_path / "torch")
    assert list(opened.tensors) == ["w"] and opened.fields == {"d_model": 3}


def test_incomplete_shards_are_named(tmp_path):
    _, index = write_shards(tmp_path / "shards")
    (tmp_path / "shards" / "m-2.safetensors").unlink()
    refused("1 of them are missing, first m-2.safetensors", tmp_path / "shards")
    save_file({"d": draw(1)}, tmp_path / "shards" / "m-2.safetensors")
    refused("lack 1 of its tensors, first 'c'", tmp_path / "shards")
    index.write_text(json.dumps({"weight_map": {"a": "../../elsewhere.safetensors"}}))
    refused("index of shards", tmp_path / "shards")
    index.unlink()
    save_file({"a": draw(1)}, tmp_path / "shards" / "m-2.safetensors")
    refused("both hold 'a'", tmp_path / "shards")


def test_truncated_and_foreign_files_are_named(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a": draw(30, 5), "b": draw(2)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    refused("is truncated: its header tells of 608 bytes", path)
    path.write_bytes(whole + b"more")
    refused("bytes behind its end", path)
    path.write_bytes(whole[:40])
    refused("expected a safetensors file", path)
    path.write_bytes(b"")
    refused("expected a safetensors file", path)
    path.write_bytes(b"\x10" + b"\0" * 7 + b"not json at all!")
    refused("expected a safetensors file", path)
    path.write_bytes(whole.replace(b"[30,5]", b"[31,5]"))
    refused("'a' of shape .31, 5. has 600 bytes", path)
    path.write_bytes(whole.replace(b'"F32"', b'"Q32"'))
    refused("without a dtype that is known", path)
    refused("does not exist", tmp_path / "none.safetensors")
    (tmp_path / "w.txt").write_text("text")
    refused("expected .safetensors", tmp_path / "w.txt")
    (tmp_path / "empty").mkdir()
    refused("0 .safetensors and 0 .pth", tmp_path / "empty")


def test_a_header_that_is_made_here_is_read_by_safetensors(tmp_path):
    tensors = {"a": draw(3, 5, dtype=published.BFLOAT16), "b": draw(7)}
    listed = [(name, t.dtype, t.shape) for name, t in tensors.items()]
    values = b"".join(t.tobytes() for t in tensors.values())
    (tmp_path / "w.safetensors").write_bytes(files.make_header(listed) + values)
    found = load_file(tmp_path / "w.safetensors")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)
