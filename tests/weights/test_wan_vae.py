"""Names of the video autoencoder's tensors, there and back (~10 s on 2 cores)."""

import dataclasses
import math

import numpy as np
import pytest
from jax.tree_util import tree_map_with_path

from avatar_jax.models.vae_config import WanVAEConfig
from avatar_jax.types import InputError
from avatar_jax.weights import table, wan_vae

SMALL = dataclasses.replace(WanVAEConfig(), width=2, multipliers=(1, 2, 3, 4))


def make_tensors(entries):
    rng = np.random.default_rng(0)
    return {e.name: rng.standard_normal(e.shape).astype(np.float32) for e in entries}


def test_the_full_checkpoint_has_194_tensors_and_126_892_531_parameters():
    entries = wan_vae.entries(WanVAEConfig())
    names = {entry.name for entry in entries}
    assert len(names) == len(entries) == 194
    assert sum(math.prod(entry.shape) for entry in entries) == 126_892_531
    assert len({wan_vae.diffusers_name(name) for name in names}) == 194


def test_assembled_parameters_turn_back_into_the_checkpoint():
    entries = wan_vae.entries(SMALL)
    tensors = make_tensors(entries)
    found = {}

    def undo(path, leaf):
        entry = by_path["/".join(key.key for key in path)]
        found[entry.name] = table.to_foreign(leaf, entry)

    by_path = {entry.path: entry for entry in entries}
    tree_map_with_path(undo, table.assemble(entries, tensors))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)


def test_layers_are_stacked_in_their_order():
    entries = [table.Entry(f"b.{i}.w", (2, 3), "b/w", "dense", i) for i in (1, 0)]
    tensors = {f"b.{i}.w": np.full((2, 3), i) for i in (0, 1)}
    stacked = table.assemble(entries, tensors)["b"]["w"]
    assert stacked.shape == (2, 3, 2)
    assert (stacked[1] == 1).all() and (stacked[0] == 0).all()


def test_a_checkpoint_of_something_else_is_refused_by_name():
    entries = wan_vae.entries(SMALL)
    tensors = make_tensors(entries)
    wide = tensors | {"conv2.bias": np.zeros(3)}
    with pytest.raises(InputError, match=r"'conv2.bias'.*\[16\], came \[3\]"):
        table.assemble(entries, wide)
    del tensors["decoder.head.0.gamma"]
    with pytest.raises(InputError, match="lacks 'decoder.head.0.gamma'"):
        table.assemble(entries, tensors)
