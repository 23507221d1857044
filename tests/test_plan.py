"""Plans through the TPU compiler, which needs no TPU (~20 s on 2 cores)."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest

from avatar_jax import command, plan
from avatar_jax.planning import hardware, plans, programs
from avatar_jax.types import InputError

needs_tpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs libtpu, which is for Linux on x86-64",
)
# Heads of 32 go through XLA: kernels would take most of the time to compile.
CARD = """
import dataclasses
import ml_collections
from avatar_jax.models import sizes
from avatar_jax.sampling import pretrained

def get_config():
    config = dataclasses.replace(
        sizes.LARGE, width=128, mlp_width=256, heads=4, layers=3, channels=64,
        text_width=24, audio_width=40, reference_audio_width=32, adapter_rank=8,
    )
    card = pretrained.Card(
        config=config, size=64, width=96, chunk_latents=3, codec="dct64",
        text_length=16, reference_latents=2, segment_latents=2, num_steps=5,
        solver="unipc", shift=5.0, audio_guidance=1.8,
    )
    return ml_collections.ConfigDict(card.to_metadata())
"""
LAYERS, STEPS, PASSES = 3, 5, 2


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "card.py"
    path.write_text(CARD)
    return str(path)


def run(capsys, *arguments):
    plan.main([*map(str, arguments), "--json"])
    *lines, last = capsys.readouterr().out.strip().splitlines()
    return "\n".join(lines), json.loads(last)


@pytest.mark.slow
@needs_tpu_compiler
def test_sampling_is_planned_for_four_chips(card, capsys):
    shown, found = run(capsys, "--config", card, "--topology", "v5e:2x2")
    assert found["fits"] is True and "fits: 0.0" in shown
    assert found["devices"] == 4 and found["mesh"] == {"context": 4}
    assert found["hbm_bytes_per_chip"] == 16 * 2**30
    made = found["programs"]
    assert set(made) == {"reference", "chunk", "decode"}
    for program in made.values():
        held = program["argument_bytes"] - program["repeated_argument_bytes"]
        held += program["output_bytes"] - program["aliased_bytes"]
        held += program["temporary_bytes"] + program["code_bytes"]
        assert program["total_bytes"] == held + program["beside_bytes"]
        assert program["loops_of_unknown_length"] == 0
    largest = max(program["total_bytes"] for program in made.values())
    assert found["bytes_per_chip"] == largest
    # What the shapes say is what the compiler says, but for padded tiles.
    held = made["chunk"]["argument_bytes"] - made["chunk"]["repeated_argument_bytes"]
    assert found["parts"]["parameters"] < held < 2 * found["parts"]["parameters"]
    assert found["model_flops"] == made["chunk"]["model_flops"] > 1e8
    assert found["compile_seconds"] > 0
    # Of each layer's parameters 3/4 come from the other chips, in every step and pass.
    kernels = found["parts"]["parameters"] * 3
    assert found["collective_bytes"] > 0.5 * LAYERS * STEPS * PASSES * kernels / LAYERS


@pytest.mark.slow
@needs_tpu_compiler
@pytest.mark.slow
def test_sizes_of_the_command_line_replace_those_of_the_card(card, capsys):
    sizes = ["--frames", 13, "--size", "32x64", "--references", 3]
    shown, found = run(capsys, "--config", card, "--topology", "v5e:1x1", *sizes)
    assert "chunks of 4 latents of 32x64 pixels, 3 reference latents" in shown
    assert found["mesh"] == {} and found["collective_bytes"] == 0
    layers, rows, bytes_each = 3, 3 * 2 * 4, 4 * 2  # k and v
    cache = layers * rows * 128 * bytes_each // 4 * 2 + rows  # bfloat16, and marks
    assert found["parts"]["reference caches"] == 2 * cache


@pytest.mark.slow
@needs_tpu_compiler
@pytest.mark.slow
def test_training_is_planned_without_records(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # no folder of records here
    small = ["width=32", "mlp_width=48", "heads=2", "layers=2", "detail_width=8"]
    shown, found = run(
        capsys,
        *("--config", "configs/stage2_audio_to_video.py", "--topology", "v5e:2x2"),
        *("--size", "32x32", "--frames", "13", "--batch", "8"),
        *(f"--config.model.{field}" for field in small),
    )
    assert found["fits"] and found["mesh"] == {"fsdp": 4}
    assert "8 clips of 4 latents of 32x32 pixels" in shown
    step = found["programs"]["step"]
    # The state is donated, and written over where it lies.
    state = sum(found["parts"][n] for n in ("parameters", "averages", "optimiser"))
    assert step["aliased_bytes"] >= state
    assert found["optimizer_flops"] > 0
    assert step["collective_bytes"]["all-reduce"] > 0


BAD = {
    "--topology v9:2x2": "unknown topology 'v9:2x2'; use one like v5e:2x4",
    "--topology h200": "unknown topology 'h200'",
    "--topology v5e:2x2 --frames 12": "--frames 12 is not 4n+1",
    "--topology v5e:2x2 --size 60x64": "60x64 pixels do not divide into patches",
    "--topology v5e:2x2 --size 64": "--size '64' is not HEIGHTxWIDTH",
    "--topology v5e:2x2 --mesh fsdp=3": "does not fill 4 devices",
    "--topology v5e:2x2 --mesh rows=4": "--mesh 'rows=4' has 'rows=4'",
    "--topology v5e:2x2 --batch 0": "--batch 0 is too few",
    "--topology v5e:3x7": "the TPU compiler refuses topology 'v5e:3x7'",
    "--topology v5e:2x2 --config.size=wide": "config field size takes int",
}


@needs_tpu_compiler
@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_one_line_and_exit_code_2(card, arguments, capsys):
    assert command.run(plan.main, ["--config", card, *arguments.split()]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert BAD[arguments] in line


@pytest.mark.parametrize(
    "topology, words", [("v6e:2x4", "pip install libtpu"), ("h100:8", "'.[cuda]'")]
)
def test_a_compiler_that_is_not_installed_is_named(topology, words, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="not installed") as error:
        hardware.find(topology)
    assert words in str(error.value)


@needs_tpu_compiler
def test_a_chip_of_tpu7x_is_two_devices():
    found = hardware.find("tpu7x:2x2x1")
    assert len(found.devices) == 8 and found.devices_per_chip == 2
    assert hardware.find("v5e:2x2").devices_per_chip == 1


@needs_tpu_compiler
def test_a_program_that_is_too_large_is_told_with_its_bytes():
    found = hardware.find("v5e:2x2")
    mesh = jax.make_mesh((1,), ("chip",), devices=found.devices[:1])
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x = jax.ShapeDtypeStruct((18 * 2**8, 2**20), jnp.float32, sharding=where)
    with jax.set_mesh(mesh):
        lowered = jax.jit(jnp.sum).lower(x)
    compiled = programs.compile_program(
        "sum", lowered, devices=found.devices[:1], model_flops=0
    )
    assert compiled.needed == compiled.total == 18 * 2**30
    made = plans.Programs({}, (plans.Phase(compiled),), main="sum")
    planned = plans.Plan("config", "a sum", found, {}, made)
    assert not planned.fits and planned.to_json()["fits"] is False
    assert "DOES NOT FIT: 19.33 GB of 16.91 GB" in plans.format_plan(planned)


def test_encoders_lie_beside_where_there_is_room():
    compiled = programs.Compiled("chunk", seconds=1.0, temporary=90)
    made = plans.Programs({}, (plans.Phase(compiled, beside=5),), main="chunk")
    device = hardware.Hardware("made up", (), memory=128, usable=100)
    planned = plans.Plan("config", "", device, {}, made)
    assert planned.fits and planned.bytes_per_device == 95
    assert planned.place_encoder(5) == "beside" and planned.place_encoder(6) == "host"
    tight = dataclasses.replace(
        planned, hardware=dataclasses.replace(device, usable=94)
    )
    assert not tight.fits
