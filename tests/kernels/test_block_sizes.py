"""Which devices get kernels, and blocks that cannot be."""

import types

import jax
import jax.numpy as jnp
import pytest
from avatar_kernels.reference_attention import block_sizes, tpu_walks, visits
from avatar_kernels.reference_attention.reference import LocalWindow
from avatar_kernels.reference_attention.sources import Source, windowed


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("NVIDIA H200", True),
        ("NVIDIA A100-SXM4-80GB", True),
        ("NVIDIA RTX 6000 Ada Generation", True),
        ("NVIDIA RTX 2000 Ada Generation", True),
        ("NVIDIA GeForce RTX 4090", True),
        ("NVIDIA TITAN V", False),
        ("NVIDIA GeForce RTX 2080 Ti", False),
        ("NVIDIA GeForce GTX 1660", False),
        ("NVIDIA T4", False),
        ("Quadro RTX 5000", False),
        ("Tesla V100-SXM2-16GB", False),
    ],
)
def test_a_gpu_that_is_only_described_is_known_by_its_name(kind, made):
    assert block_sizes.has_kernels("cuda", kind) == made
    assert block_sizes.has_kernels("tpu", kind)


@pytest.mark.parametrize(
    ("capability", "made"),
    [("7.5", False), ("8.0", True), ("12.0", True), ("gfx90a", True)],
)
def test_a_gpu_that_is_there_is_asked(monkeypatch, capability, made):
    gpu = types.SimpleNamespace(
        platform="gpu", device_kind="NVIDIA X", compute_capability=capability
    )
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    assert block_sizes.has_kernels("gpu", "NVIDIA X") == made


def test_lists_of_a_window_are_as_long_as_its_longest():
    window = LocalWindow(1, 1, (4, 10))
    rows = 400
    k = jnp.zeros((2, rows, 1, 64))
    source = windowed(k, k, jnp.ones((2, rows), bool), window)
    some, _ = source.see(64, 32)
    by_query, by_key = source.longest(64, 32)
    assert by_query == some.sum(-1).max() < some.shape[2]
    turned, _ = visits.turn_round(source.see, 64, 32, rows=rows)
    assert by_key == turned.sum(-1).max()  # the still is seen by all
    everything = Source(*source[:6])
    assert everything.longest(64, 32) == (13, 7)


def test_blocks_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match="came q=0, kv=64 and kv_compute=64"):
        block_sizes.BlockSizes(0, 64, 64)


def test_lists_that_overfill_scalar_memory_are_named():
    tpu_walks.check_scalars([jnp.zeros(tpu_walks.SMEM // 8, jnp.int32)])
    with pytest.raises(NotImplementedError, match="take 1048576 bytes of 1048576"):
        tpu_walks.check_scalars([jnp.zeros(tpu_walks.SMEM // 8, jnp.int32)] * 2)
