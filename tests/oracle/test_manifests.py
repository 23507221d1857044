"""Every tensor of the published checkpoints has its place (~10 s; needs ../shared)."""

import dataclasses
import json
import math

import cases
import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util

from avatar_jax.models import dit, sizes, umt5, vae, wav2vec2
from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.types import Conditions, VideoMotion
from avatar_jax.weights import networks, tavr, wan

WAN_1_3B = dataclasses.replace(
    sizes.BASE, audio_width=None, motion_width=None, rotary_scale=1.0
)
WAN_14B = dataclasses.replace(
    sizes.LARGE,
    audio_width=None,
    reference=False,
    reference_audio_width=None,
    rotary_scale=1.0,
)


def _manifests():
    return sorted(cases.ORACLE.rglob("full_manifest.json"))


def _maps():
    return sorted(cases.ORACLE.rglob("key_map.json"))


def _read(paths):
    if not paths:
        pytest.skip(f"needs the manifests of published networks in {cases.ORACLE}")
    return [json.loads(path.read_text()) for path in paths]


def _our_shapes(cfg: DiTConfig):
    """Return the network's leaves by path, as shapes."""
    side = cfg.patch
    latents = jnp.zeros((1, 1, side, side, cfg.channels))
    conditions = Conditions(text=jnp.zeros((1, 1, cfg.text_width)), still=latents)
    made = jax.eval_shape(
        lambda rng: dit.AvatarDiT(cfg).init(
            rng, VideoMotion(latents), jnp.ones((1,)), conditions
        ),
        jax.random.key(0),
    )
    flat = traverse_util.flatten_dict(made["params"], sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}


def _placed(entries):
    """Return shapes of the leaves that the entries fill, layers stacked."""
    layers, shapes = {}, {}
    for entry in entries:
        layers.setdefault(entry.path, []).append(entry.layer)
        shapes.setdefault(entry.path, entry.our_shape)
        assert shapes[entry.path] == entry.our_shape
    for path, indices in layers.items():
        if indices != [None]:
            assert sorted(indices) == list(range(len(indices))), path
            shapes[path] = (len(indices), *shapes[path])
    return shapes


def test_every_tensor_of_tavr_has_its_place_in_large():
    for manifest in _read(_manifests()):
        told = manifest["transformer"]
        shapes = {name: tuple(shape) for name, (shape, _) in told["keys"].items()}
        cfg = tavr.read_config(shapes)
        assert cfg == sizes.LARGE
        entries = tavr.entries(cfg)
        assert {e.name: e.shape for e in entries} == shapes
        assert len(entries) == len(shapes) == told["num_keys"] == 2310
        count = sum(math.prod(shape) for shape in shapes.values())
        assert count == told["num_parameters"] == 18_905_907_264
        assert _placed(entries) == _our_shapes(cfg)
        per_block = [e for e in entries if e.name.startswith("blocks.7.")]
        assert len(per_block) == 57


@pytest.mark.parametrize(
    "cfg, tensors, count, size",
    [
        (WAN_1_3B, 825, 1_418_996_800, "1.3B"),
        (WAN_14B, 1095, 14_288_491_584, "14B"),
    ],
)
def test_every_tensor_of_wan_has_its_place(cfg, tensors, count, size):
    entries = wan.entries(cfg)
    assert len(entries) == len({e.name for e in entries}) == tensors
    assert sum(math.prod(e.shape) for e in entries) == count
    placed, ours = _placed(entries), _our_shapes(cfg)
    assert set(ours) - set(placed) == set(wan.MADE)
    assert placed == {p: s for p, s in ours.items() if p not in wan.MADE}
    shapes = {e.name: e.shape for e in entries}
    assert wan.read_config(shapes) == cfg
    for told in _read(_maps()):
        assert told["transformer"]["parameters"][size] == count


def test_names_of_diffusers_are_those_of_the_map():
    for told in _read(_maps()):
        template = told["transformer"]["template"]
        for original, (theirs, _) in template.items():
            assert wan.diffusers_name(original) == theirs
        assert wan.DIFFUSERS_KEY in {theirs for theirs, _ in template.values()}
        entries = wan.entries(WAN_14B)
        mine = {e.name for e in entries if e.layer in (None, 3)}
        assert mine == {name.replace("N", "3") for name in template}
        shapes = {
            name.replace("N", str(layer)): tuple(shape)
            for theirs in template.items()
            for name, shape in [theirs[1]]
            for layer in range(WAN_14B.layers)
        }
        network = networks.identify("wan", shapes)
        assert {e.name: e.shape for e in network.entries} == shapes
        assert network.config == WAN_14B


@pytest.mark.parametrize(
    "kind, group, config",
    [
        ("wan-vae", "vae", vae.WanVAEConfig()),
        ("umt5", "text_encoder", umt5.UMT5Config()),
        ("wav2vec2", "audio_encoder", wav2vec2.Wav2Vec2Config()),
    ],
)
def test_encoders_are_known_in_each_dialect(kind, group, config):
    for manifest in _read(_manifests()):
        keys = manifest[group]["keys"]
        for dialect in range(2):
            shapes = {}
            for name, told in keys.items():
                names = (name, *told[2:3]) if len(told) > 2 else (name,)
                shapes[names[min(dialect, len(names) - 1)]] = tuple(told[0])
            network = networks.identify(kind, shapes)
            assert network.config == config
            used = {e.name: e.shape for e in network.entries}
            assert used.items() <= shapes.items()
            left = set(shapes) - set(used)
            assert all(network.is_unused(name) for name in left)
