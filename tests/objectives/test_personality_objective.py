"""The objective of stage 3: what is trained, decoded and left alone (~20 s)."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from human_cases import (
    CODEC,
    CONFIG,
    NAMES,
    TIMES,
    B,
    C,
    F,
    make_faces,
    make_simple_params,
)

from avatar_jax import checkpoint, sharding
from avatar_jax.objectives import flow_matching, personality
from avatar_jax.training import config as config_module
from avatar_jax.training import state, step
from avatar_jax.types import Clip, Conditions, VideoMotion, count_frames


class Guess(nn.Module):
    """One number per channel: it looks at x_t and at its codes alone."""

    @nn.compact
    def __call__(self, noisy, t, conditions):
        scale = self.param("scale", nn.initializers.ones, (C,))
        latents = noisy.latents * scale[None, None, None, None, :]
        return VideoMotion(latents=latents, motion=0.5 * noisy.motion)


def make_clip(seed=0):
    faces = make_faces(seed)
    rng = np.random.default_rng(seed)
    t = TIMES[:, None, None, None, None]
    return Clip(
        target=VideoMotion(
            latents=np.asarray(faces.noisy - t * faces.target),
            motion=rng.standard_normal((B, count_frames(F), 3)).astype(np.float32),
        ),
        conditions=Conditions(
            audio=np.asarray(faces.speech), audio_valid=np.asarray(faces.speech_valid)
        ),
        mouth_mask=np.asarray(faces.mouth_mask),
        face_mask=np.asarray(faces.face_mask),
    )


def make_run(**fields):
    flow = flow_matching.FlowMatching(
        Guess(), np.ones(C, np.float32), motion_width=3, patch=2
    )
    config = dataclasses.replace(CONFIG, largest_time=1.1)
    return config_module.Run(
        train=config_module.TrainConfig(steps=2, **fields),
        objective=personality.Personality(flow, CODEC, config),
        optimizer=optax.sgd(0.1),
        dataset=lambda index, count: [],
        describe=lambda batch: {},
        frozen_as_made=("judges",),
    )


def take_steps(run, count):
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        start = current = state.create(run, mesh, make_clip())
        start = jax.device_get(start)
        take = step.jit_step(run, current)
        for seed in range(count):
            batch = sharding.put_batch(make_clip(seed), mesh)
            current, metrics = take(current, batch)
    return start, jax.device_get(current), jax.device_get(metrics)


def test_a_step_trains_the_model_and_leaves_the_judges(simple):
    start, end, metrics = take_steps(make_run(), 2)
    chex.assert_trees_all_equal(end.frozen, start.frozen)
    chex.assert_trees_all_equal(start.frozen, {"judges": make_simple_params()})
    assert set(end.params) == {"model"}
    moved = end.params["model"]["scale"] - start.params["model"]["scale"]
    assert (moved != 0).all()
    wanted = {"loss", "loss_flow", "loss_motion", "loss_mouth"}
    assert wanted | {f"human/{name}" for name in NAMES} <= set(metrics)
    assert metrics["loss"].total > metrics["loss_flow"].total  # step 1 of the ramp


@pytest.mark.parametrize("clips", [1, B])
def test_micro_batches_have_the_loss_of_the_batch(simple, clips):
    objective = make_run().objective
    config = dataclasses.replace(objective.config, clips=clips)
    objective = dataclasses.replace(objective, config=config)
    clip = jax.tree.map(jnp.asarray, make_clip())
    params, frozen = objective.init(jax.random.key(0), clip)
    prepared = objective.prepare(params, frozen, clip, rng=jax.random.key(3))

    @jax.jit
    def loss(rows):
        return objective.loss(
            params, frozen, rows, rng=jax.random.key(0), step=jnp.int32(50)
        )[0]

    halves = [jax.tree.map(lambda leaf, h=h: leaf[h::2], prepared) for h in range(2)]
    split = np.mean([loss(half) for half in halves])
    np.testing.assert_allclose(split, loss(prepared), rtol=1e-5)


def test_a_parent_gives_the_model_and_not_the_judges(simple, tmp_path):
    path = tmp_path / "parent.safetensors"
    parent = {"scale": np.full(C, 3.0, np.float32)}
    checkpoint.save_weights(path, parent, {"config": {}})
    start, _, _ = take_steps(make_run(init_from=str(path)), 1)
    np.testing.assert_array_equal(start.params["model"]["scale"], parent["scale"])
    chex.assert_trees_all_equal(start.frozen["judges"], make_simple_params())


def test_decoded_latents_lie_after_a_prefix_and_inside_the_clip(simple):
    objective = make_run().objective
    clip = jax.tree.map(jnp.asarray, make_clip())
    params, frozen = objective.init(jax.random.key(0), clip)
    prepare = jax.jit(functools.partial(objective.prepare, params, frozen, clip))
    firsts = [prepare(rng=jax.random.key(i)).first for i in range(20)]
    assert {int(first) for row in firsts for first in row} == {2, 3}
    short = jax.tree.map(lambda leaf: leaf, clip)
    short = short.replace(
        target=short.target.replace(latents=clip.target.latents[:, :3])
    )
    with pytest.raises(ValueError, match="3 latents are too short"):
        objective.prepare(params, frozen, short, rng=jax.random.key(0))
