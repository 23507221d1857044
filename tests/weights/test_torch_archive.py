"""Archives of torch.save are read without torch, and none can run code (~2 s)."""

import pickle
import zipfile

import numpy as np
import published
import pytest
from published import call, say

from avatar_jax.types import InputError
from avatar_jax.weights import torch_archive

DTYPES = [np.float32, np.float16, published.BFLOAT16, np.int64]


def draw(*shape, dtype=np.float32):
    return np.random.default_rng(3).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_of_every_dtype_come_back(tmp_path, dtype):
    tensors = {"a.weight": 9 * draw(3, 5, dtype=dtype), "b": draw(7, dtype=dtype)}
    published.write_archive(tmp_path / "w.pth", tensors, order=b"little")
    found = torch_archive.read_archive(tmp_path / "w.pth")
    assert list(found) == ["a.weight", "b"]
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype and found[name].nbytes == tensor.nbytes
        np.testing.assert_array_equal(found[name].read(), tensor)


def test_views_honour_offset_and_strides(tmp_path):
    whole = draw(4, 6)
    views = [
        ("transposed", "whole", 0, (6, 4), (1, 6)),
        ("row", "whole", 12, (6,), (1,)),
        ("column", "whole", 2, (4,), (6,)),
        ("repeated", "whole", 5, (3, 2), (0, 1)),
        ("scalar", "whole", 7, (), ()),
        ("empty", "whole", 0, (0, 6), (6, 1)),
    ]
    published.write_archive(tmp_path / "w.pth", {"whole": whole}, shared=views)
    found = {
        n: t.read() for n, t in torch_archive.read_archive(tmp_path / "w.pth").items()
    }
    np.testing.assert_array_equal(found["transposed"], whole.T)
    np.testing.assert_array_equal(found["row"], whole[2])
    np.testing.assert_array_equal(found["column"], whole[:, 2])
    np.testing.assert_array_equal(found["repeated"], [whole.ravel()[5:7]] * 3)
    assert found["scalar"] == whole[1, 1] and found["empty"].shape == (0, 6)
    assert not found["row"].flags.writeable


def test_a_view_beyond_its_storage_is_refused(tmp_path):
    for view in (("v", "w", 1, (4, 6), (6, 1)), ("v", "w", 0, (2, 2), (-1, 1))):
        published.write_archive(tmp_path / "w.pth", {"w": draw(4, 6)}, shared=[view])
        with pytest.raises(InputError, match="larger than its storage|impossible"):
            torch_archive.read_archive(tmp_path / "w.pth")


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def attacks(marker):
    """Return pickles that would write a file, or change what reads them."""
    opened = pickle.dumps(Malicious(marker), 2)[2:-1]
    listing = call("os.system") + b"(" + say(f"touch {marker}") + b"tR"
    evaluated = call("builtins.eval") + b"(" + say(f"open({str(marker)!r},'w')") + b"tR"
    rebuild = call("torch._utils._rebuild_tensor_v2")
    changed = rebuild + say({"__call__": 1}) + b"b"
    hooked = rebuild + b"N" + say({"__call__": 1}) + b"\x86b"
    nested = call("torch._utils.__builtins__")
    dotted = b"\x80\x04" + say("collections") + say("OrderedDict.__base__") + b"\x93"
    return [opened, listing, evaluated, changed, hooked, nested, dotted]


@pytest.mark.parametrize("number", range(7))
def test_a_pickle_that_would_run_code_is_refused_in_one_line(tmp_path, number):
    marker = tmp_path / "executed"
    code = b"}" + say("w") + attacks(marker)[number] + b"s"
    published.write_zip(tmp_path / "w.pth", code)
    with pytest.raises(InputError, match="is not read") as caught:
        torch_archive.read_archive(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_a_pickle_cannot_point_a_tensor_at_another_file(tmp_path):
    published.write_archive(tmp_path / "good.pth", {"w": draw(4)})
    with zipfile.ZipFile(tmp_path / "good.pth") as archive:
        code = archive.read("weights/data.pkl")[2:-1]
    assert code.endswith(b"tRu")
    for state in ({"path": "/etc/hostname"}, (None, {"path": "/etc/hostname"})):
        changed = code[:-1] + say(state) + b"bu"
        published.write_zip(tmp_path / "bad.pth", changed, {"0": draw(4)})
        with pytest.raises(InputError, match="damaged"):
            torch_archive.read_archive(tmp_path / "bad.pth")


def test_other_and_damaged_files_are_told_apart(tmp_path):
    path = tmp_path / "w.pth"

    def refused(match):
        with pytest.raises(InputError, match=match):
            torch_archive.read_archive(path)

    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"rest")
    refused("before torch 1.6")
    path.write_bytes(b"something else")
    refused("no archive of torch.save")
    published.write_archive(path, {"w": draw(4000)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused("truncated")
    published.write_archive(path, {"w": draw(40)}, compression=zipfile.ZIP_DEFLATED)
    refused("compressed")
    published.write_archive(path, {"w": draw(40)}, order=b"big")
    refused("little-endian")
    published.write_zip(path, b"}" + say("step") + say(3) + b"s")
    refused("'step' is a int")
    published.write_zip(path, say([1, 2]))
    refused("holds a list")
    published.write_zip(path, b"}(" + say("w"))
    refused("damaged")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "nothing")
    refused("without a data.pkl")


def test_a_missing_or_short_storage_is_named(tmp_path):
    published.write_archive(tmp_path / "good.pth", {"w": draw(40)})
    with zipfile.ZipFile(tmp_path / "good.pth") as archive:
        code = archive.read("weights/data.pkl")[2:-1]
    for storages, match in (({}, "'0' is missing"), ({"0": draw(39)}, "truncated")):
        published.write_zip(tmp_path / "bad.pth", code, storages)
        with pytest.raises(InputError, match=match):
            torch_archive.read_archive(tmp_path / "bad.pth")
