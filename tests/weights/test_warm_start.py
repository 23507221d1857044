"""A network of more parts starts as the one whose weights it takes (~2 min of CPU)."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from avatar_jax.models import dit
from avatar_jax.types import Conditions, InputError, Reference, VideoMotion
from avatar_jax.weights import networks, table, warm_start

B, F, R, H, W = 2, 3, 4, 4, 6  # patch grid 2 x 3
C, DT, DA, DR, DM, IDENTITY = 5, 8, 11, 9, 7, 10
FRAMES = 4 * (F - 1) + 1
T = jnp.array([0.3, 0.7])


def exact(cfg, **changes):
    return dataclasses.replace(cfg, dtype="float32", remat=False, **changes)


FULL = exact(
    published.TAVR,
    faces=True,
    identity_width=IDENTITY,
    motion_width=DM,
    guidance_scales=2,
    still_concat=True,
)
PARENTS = {"tavr": exact(published.TAVR), "wan": exact(published.WAN)}


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def make_reference(**fields):
    return Reference(
        latents=normal(1, B, R, H, W, C),
        valid=jax.random.bernoulli(jax.random.key(2), 0.6, (B, R, 2, 3)),
        segment_ids=jnp.zeros((B, R), jnp.int32),
        audio=normal(3, B, 4 * R, DR),
        **fields,
    )


def make_conditions(kind):
    """Return what a parent of that kind knows, and what the full network is told."""
    known = Conditions(text=normal(10, B, 6, DT), null_text=normal(11, B, 6, DT))
    told = known.replace(
        audio=normal(12, B, FRAMES, DA),
        motion=normal(15, B, FRAMES, DM),
        guidance=normal(16, B, 2),
    )
    if kind == "wan":
        return known, told
    prefix = normal(14, B, 2, H, W, C)
    seen = {"still": normal(13, B, 1, H, W, C), "prefix": prefix}
    prefix_motion = normal(17, B, 5, DM)
    known = known.replace(audio=told.audio, reference=make_reference(), **seen)
    reference = make_reference(motion=normal(4, B, 4 * R, DM))
    return known, told.replace(reference=reference, prefix_motion=prefix_motion, **seen)


@functools.cache
def jitted(cfg):
    apply = jax.jit(dit.AvatarDiT(cfg).apply)
    return lambda params, *inputs: apply({"params": params}, *inputs).latents


def run(cfg, params, conditions):
    codes = normal(21, B, FRAMES, DM) if cfg.motion_width else None
    noisy = VideoMotion(normal(20, B, F, H, W, C), codes)
    return jitted(cfg)(params, noisy, T, conditions)


@pytest.fixture(scope="module")
def full():
    """Return the full network's parameters, started from TAVR's layout."""
    tensors = published.make_tensors("tavr")
    return warm_start.initialise(FULL, tensors, jax.random.key(7))


@pytest.mark.slow
def test_step_0_is_wan_and_one_update_is_not():
    parent, tensors = PARENTS["wan"], published.make_tensors("wan")
    grown = dataclasses.replace(FULL, rotary_scale=parent.rotary_scale)
    parent_params = warm_start.initialise(parent, tensors, jax.random.key(8))
    params = warm_start.initialise(grown, tensors, jax.random.key(7))
    known, told = make_conditions("wan")
    expected = run(parent, parent_params, known)
    assert float(jnp.abs(expected).max()) > 0.1
    chex.assert_trees_all_close(run(grown, params, told), expected, atol=1e-5)

    motion = params["blocks"]["motion"]

    def speak(kernel):
        """Return the network whose motion injection has that output projection."""
        output = {**motion["attention"]["o"], "kernel": kernel}
        attention = {**motion["attention"], "o": output}
        blocks = {**params["blocks"], "motion": {**motion, "attention": attention}}
        return {**params, "blocks": blocks}

    def loss(kernel):
        return jnp.mean(jnp.square(run(grown, speak(kernel), told) - 1.0))

    silent = motion["attention"]["o"]["kernel"]
    assert not np.any(silent)
    stepped = speak(silent - jax.grad(loss)(silent))  # of one leaf: compiles sooner
    assert float(jnp.abs(run(grown, stepped, told) - expected).max()) > 1e-4


@pytest.mark.slow
def test_step_0_is_tavr(full):
    tensors = published.make_tensors("tavr")
    parent = PARENTS["tavr"]
    parent_params = warm_start.initialise(parent, tensors, jax.random.key(8))
    known, told = make_conditions("tavr")
    expected = run(parent, parent_params, known)
    assert float(jnp.abs(expected).max()) > 0.1
    chex.assert_trees_all_close(run(FULL, full, told), expected, atol=1e-5)


@pytest.mark.slow
def test_dropped_identity_and_crops_leave_the_parent_as_it_was(full):
    _, told = make_conditions("tavr")
    absent = run(FULL, full, told)
    given = told.reference.replace(
        faces=normal(6, B, 2, 2, 4, C),
        faces_valid=jnp.zeros((B, 2), bool),
        identity=jnp.zeros((B, IDENTITY)),
    )
    dropped = run(FULL, full, told.replace(reference=given))
    chex.assert_trees_all_close(dropped, absent, atol=1e-5)
    given = given.replace(identity=normal(5, B, IDENTITY))
    seen = run(FULL, full, told.replace(reference=given))
    assert float(jnp.abs(seen - absent).max()) > 0  # rows that share attention's weight


def test_a_parent_that_starts_from_itself_is_its_checkpoint():
    tensors = published.make_tensors("tavr")
    params = warm_start.initialise(PARENTS["tavr"], tensors, jax.random.key(8))
    entries = networks.describe("tavr", PARENTS["tavr"]).entries
    chex.assert_trees_all_equal(
        jax.tree.map(np.asarray, params), table.assemble(entries, tensors)
    )


@pytest.mark.parametrize(
    "kind, change, words",
    [
        ("tavr", {"detail_width": 6}, "detail_width=6"),
        ("tavr", {"prediction": "clean"}, "'clean'.*linear head"),
        ("tavr", {"rotary_scale": None}, "rotary_scale=None.*1.5"),
        ("tavr", {"mlp_width": 41}, r"ffn.0.weight' should have shape \[41, 24\]"),
        ("wan-vae", {}, "tavr or wan, came wan-vae"),
    ],
)
def test_what_cannot_start_so_is_refused(kind, change, words):
    cfg = dataclasses.replace(FULL, **change)
    with pytest.raises(InputError, match=words):
        warm_start.initialise(cfg, published.make_tensors(kind), jax.random.key(0))
