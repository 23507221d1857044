"""Published checkpoints to our format, checked and measured (~60 s on 2 cores)."""

import dataclasses
import hashlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import chex
import jax
import ml_dtypes
import numpy as np
import published
import pytest
from flax import traverse_util
from safetensors.numpy import load_file

from avatar_jax import checkpoint, sharding
from avatar_jax.models import dit
from avatar_jax.sampling import pretrained
from avatar_jax.types import InputError
from avatar_jax.weights import conversion, export, networks, table, wan

FEW = conversion.Options(wishes=networks.Wishes(heads=published.HEADS))


def flatten(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def test_an_archive_and_the_dialect_of_diffusers_give_the_same_weights(tmp_path):
    original = published.make_tensors("wan")
    theirs = {wan.diffusers_name(name): t for name, t in original.items()}
    assert len(theirs) == len(original) and wan.DIFFUSERS_KEY in theirs
    published.write_archive(tmp_path / "w.pth", original)
    source = published.write_folder(tmp_path / "diffusers", theirs)
    conversion.convert("wan", tmp_path / "w.pth", tmp_path / "one", FEW)
    conversion.convert("wan", source, tmp_path / "two", FEW)
    one, two = (checkpoint.load_weights(tmp_path / n)[0] for n in ("one", "two"))
    chex.assert_trees_all_equal(one, two)
    export.export("wan", tmp_path / "two", tmp_path / "back.safetensors")
    assert set(load_file(tmp_path / "back.safetensors")) == set(theirs)


def test_the_manifest_tells_name_shape_dtype_sum_and_hash_of_every_tensor(tmp_path):
    path, tensors = published.write_kind(tmp_path / "in", "wan", dtype=np.float16)
    conversion.convert("wan", path, tmp_path / "ours", FEW)
    manifest = conversion.read_manifest(tmp_path / "ours")
    lines = {line.pop("name"): line for line in manifest["tensors"]}
    assert manifest["kind"] == "wan" and manifest["made"] == list(wan.MADE)
    for name, tensor in tensors.items():
        assert lines[name] == {
            "shape": list(tensor.shape),
            "dtype": "float16",
            "sum": pytest.approx(float(tensor.astype(np.float64).sum()), abs=1e-6),
            "sha256": hashlib.sha256(tensor.tobytes()).hexdigest(),
        }


@pytest.mark.parametrize(
    "came, wish, wide, narrow",
    [
        (ml_dtypes.bfloat16, None, "float32", "bfloat16"),
        (np.float32, None, "float32", "float32"),
        (np.float32, "bfloat16", "float32", "bfloat16"),
        (ml_dtypes.bfloat16, "float32", "float32", "float32"),
        (np.float16, "float16", "float32", "float16"),
    ],
)
def test_what_time_passes_through_stays_float32(tmp_path, came, wish, wide, narrow):
    path, _ = published.write_kind(tmp_path / "in", "tavr", dtype=came)
    options = published.options_of("tavr", dtype=wish)
    conversion.convert("tavr", path, tmp_path / "ours", options)
    leaves = flatten(checkpoint.open_converted(tmp_path / "ours")[0])
    for key in (
        "embed/time/inner/kernel",
        "embed/modulation/kernel",
        "embed/patch/kernel",
        "embed/reference_time",
        "embed/still_role",
        "embed/audio_slots",
        "embed/audio/null",
        "blocks/modulation",
        "blocks/text_norm/scale",
        "blocks/attention/norm_q/scale",
        "blocks/audio/adapter_q/norm/bias",
        "head_modulation",
    ):
        assert leaves[key].dtype == wide, key
    for key in (
        "embed/text/inner/kernel",
        "blocks/attention/q/kernel",
        "blocks/feedforward/outer/bias",
        "blocks/audio/adapter_q/down/kernel",
        "head/kernel",
    ):
        assert leaves[key].dtype == narrow, key


def test_training_reads_converted_weights_onto_its_own_mesh(tmp_path):
    path, tensors = published.write_kind(tmp_path / "in", "tavr")
    options = published.options_of("tavr", mesh=sharding.MeshConfig(fsdp=2, tensor=2))
    conversion.convert("tavr", path, tmp_path / "ours", options)
    parent, metadata = checkpoint.load_parent(tmp_path / "ours")
    pretrained.check_parent(published.TAVR, metadata, "ours")
    expected = table.assemble(
        networks.describe("tavr", published.TAVR, ()).entries, tensors
    )
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=4, tensor=2))
    empty = jax.tree.map(np.zeros_like, expected)
    placed = jax.device_put(empty, sharding.parameter_shardings(empty, mesh))
    merged = checkpoint.overlay(placed, parent)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, merged), expected)
    for ours, like in zip(
        jax.tree.leaves(merged), jax.tree.leaves(placed), strict=True
    ):
        assert ours.sharding == like.sharding and ours.dtype == like.dtype
    kernel = merged["blocks"]["attention"]["q"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (3, 6, 12)


@pytest.mark.parametrize("kind", ["tavr", "wan"])
def test_sampling_finds_every_parameter_of_its_network(tmp_path, kind):
    path, _ = published.write_kind(tmp_path / "in", kind, dtype=ml_dtypes.bfloat16)
    conversion.convert(kind, path, tmp_path / "ours", FEW)
    params, metadata = checkpoint.load_weights(tmp_path / "ours")
    config = networks.read_config(kind, metadata["config"])
    card = pretrained.Card(config=config, size=16, chunk_latents=3)
    expected = pretrained.expected_shapes(dit.AvatarDiT(config), card)
    pretrained.check_params(expected, params, "ours")


def test_zeros_are_values_too(tmp_path):
    tensors = published.make_tensors("wan")
    tensors["blocks.1.ffn.0.bias"][:] = 0
    tensors["head.head.weight"][:] = 0
    path = published.write_folder(tmp_path / "in", tensors)
    conversion.convert("wan", path, tmp_path / "ours", FEW)
    params, _ = checkpoint.load_weights(tmp_path / "ours")
    assert not params["head"]["kernel"].any()
    assert not params["blocks"]["feedforward"]["inner"]["bias"][1].any()


def test_files_are_cut_to_the_shards_of_the_mesh(tmp_path):
    path, _ = published.write_kind(tmp_path / "in", "wan")
    options = published.options_of("wan", mesh=sharding.MeshConfig(fsdp=4, tensor=2))
    conversion.convert("wan", path, tmp_path / "ours", options)
    params = tmp_path / "ours" / checkpoint.PARAMS_NAME
    stored = json.loads((params / "blocks.attention.q.kernel/zarr.json").read_text())
    grid = stored["chunk_grid"]["configuration"]["chunk_shape"]
    assert grid == [3, 24 // 4, 24 // 2]


def test_a_network_that_sees_the_still_starts_from_weights_that_do_not(tmp_path):
    path, tensors = published.write_kind(tmp_path / "in", "tavr")
    conversion.convert(
        "tavr", path, tmp_path / "ours", published.options_of("tavr", still_concat=True)
    )
    params, metadata = checkpoint.load_weights(tmp_path / "ours")
    assert metadata["config"]["still_concat"]
    kernel = params["embed"]["patch"]["kernel"].reshape(2, 2, 12, 24)
    weight = tensors["patch_embedding.weight"][:, :, 0]
    np.testing.assert_array_equal(kernel[:, :, :7], weight.transpose(2, 3, 1, 0))
    assert not kernel[:, :, 7:].any()
    export.export("tavr", tmp_path / "ours", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")["patch_embedding.weight"]
    np.testing.assert_array_equal(back[:, :, 0], weight)


def test_every_wrong_tensor_is_counted_and_the_first_named(tmp_path):
    tensors = published.make_tensors("tavr")
    del tensors["head.head.bias"], tensors["blocks.2.norm4.weight"]
    tensors["blocks.0.norm2.weight"] = np.ones(24, np.float32)
    tensors["blocks.1.ffn.0.bias"] = np.ones(41, np.float32)
    tensors["blocks.2.modulation"] = np.ones((1, 6, 24), np.int64)
    path = published.write_folder(tmp_path / "in", tensors)
    with pytest.raises(InputError) as caught:
        conversion.convert("tavr", path, tmp_path / "ours", FEW)
    message = str(caught.value)
    assert "\n" not in message and not (tmp_path / "ours").exists()
    for part in (
        "2 missing, first 'head.head.bias'",
        "1 unexpected, first 'blocks.0.norm2.weight'",
        "1 mis-shaped, first 'blocks.1.ffn.0.bias': [40] expected, [41] came",
        "1 of a dtype other than float32, float16, bfloat16, first "
        "'blocks.2.modulation': int64",
    ):
        assert part in message


@pytest.mark.parametrize("asked", published.KINDS)
def test_a_checkpoint_of_another_network_is_named(tmp_path, asked):
    given = published.KINDS[published.KINDS.index(asked) - 1]
    path, _ = published.write_kind(tmp_path / "in", given)
    with pytest.raises(InputError, match=f"tensors of {asked}, .* which is {given}"):
        conversion.convert(asked, path, tmp_path / "ours", published.options_of(asked))


def test_room_is_checked_before_anything_is_written(tmp_path, monkeypatch):
    path, _ = published.write_kind(tmp_path / "in", "wan")
    out = tmp_path / "ours"
    monkeypatch.setattr(conversion, "available_memory", lambda: 1000)
    with pytest.raises(InputError, match="of memory, 0.0 GB are free"):
        conversion.convert("wan", path, out, FEW)
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="of disk, 0.0 GB are free"):
        conversion.convert("wan", path, out, FEW)
    assert not out.exists()
    out.mkdir()
    (out / "note").write_text("mine")
    with pytest.raises(InputError, match="is in use"):
        conversion.convert("wan", path, out, FEW)
    assert (out / "note").read_text() == "mine"


def test_a_failed_conversion_leaves_nothing(tmp_path, monkeypatch):
    path, _ = published.write_kind(tmp_path / "in", "wan")

    def fail(*_):
        raise OSError("disk")

    monkeypatch.setattr(conversion, "_write_records", fail)
    with pytest.raises(OSError, match="disk"):
        conversion.convert("wan", path, tmp_path / "ours", FEW)
    assert not (tmp_path / "ours").exists()


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs /proc/self/status of Linux"
)
def test_memory_stays_below_twice_the_largest_leaf(tmp_path):
    config = dataclasses.replace(
        published.WAN, width=512, mlp_width=1024, layers=32, heads=4
    )
    tensors = published.make_tensors("wan", config)
    path = published.write_folder(tmp_path / "large", tensors)
    small, _ = published.write_kind(tmp_path / "small", "wan")
    largest = config.layers * config.width * config.mlp_width * 4
    assert sum(t.nbytes for t in tensors.values()) > 5 * largest
    program = f"""
        from avatar_jax.weights import conversion, networks

        def peak():  # not ru_maxrss, which begins with that of the parent process
            status = open("/proc/self/status").read()
            return 1024 * int(status.split("VmHWM:")[1].split()[0])

        def convert(source, out, heads):
            options = conversion.Options(wishes=networks.Wishes(heads=heads))
            conversion.convert("wan", source, out, options)

        convert({str(small)!r}, {str(tmp_path / "one")!r}, 2)
        before = peak()
        convert({str(path)!r}, {str(tmp_path / "two")!r}, 4)
        print(peak() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
    )
    used = int(done.stdout.split()[-1])
    assert 0 < used < 2 * largest, (
        f"{used / 1e6:.0f} MB for leaves of {largest / 1e6:.0f}"
    )
