"""Flow matching, and the DiT under it on 8 devices (~75 s on 2 cores)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flow_cases import AUDIO, TEXT, B, C, F, H, W, make_clip

from avatar_jax import sharding
from avatar_jax.models import dit, sizes
from avatar_jax.objectives import flow_matching
from avatar_jax.training import config as config_module
from avatar_jax.training import optimizer, state, step
from avatar_jax.types import Conditions, VideoMotion

ENERGY = np.linspace(1.0, 0.2, C, dtype=np.float32)


class Guess(nn.Module):
    """A network of one number per channel: it looks at x_t alone."""

    @nn.compact
    def __call__(self, noisy, t, conditions):
        scale = self.param("scale", nn.initializers.ones, (C,))
        return VideoMotion(latents=noisy.latents * scale[None, None, None, None, :])


def evaluate(objective, clip, *, seed=0):
    params = {"model": {"scale": jnp.full((C,), 0.3)}}
    batch = jax.tree.map(jnp.asarray, clip)
    prepared = objective.prepare(params, {}, batch, rng=jax.random.key(seed))
    loss, metrics = objective.loss(
        params, {}, prepared, rng=jax.random.key(1), step=jnp.int32(0)
    )
    return prepared, loss, metrics


def test_loss_is_the_weighted_mean_of_squared_velocity_errors():
    config = flow_matching.FlowMatchingConfig(mouth_weight=3.0, energy_power=2.0)
    clip = make_clip()
    prepared, loss, _ = evaluate(
        flow_matching.FlowMatching(Guess(), ENERGY, config), clip
    )
    weight = (ENERGY**2) * (1 + 3.0 * clip.mouth_mask[..., None])
    weight[clip.conditions.prefix_valid, :2] = 0
    # The noise is what the path says it is: x_t = x + t u.
    t = np.asarray(prepared.t)[:, None, None, None, None]
    target = prepared.target.latents
    noisy = clip.target.latents + t * target
    np.testing.assert_allclose(prepared.noisy.latents, noisy, rtol=1e-4, atol=1e-5)
    error = np.square(0.3 * noisy - target)
    np.testing.assert_allclose(loss, (weight * error).sum() / weight.sum(), rtol=1e-4)


def test_clean_space_is_the_error_of_the_clean_estimate():
    config = flow_matching.FlowMatchingConfig(loss_space="clean", floor=1e-3)
    clip = make_clip().replace(mouth_mask=None)
    clip = clip.replace(conditions=Conditions())
    prepared, loss, _ = evaluate(
        flow_matching.FlowMatching(Guess(), np.ones(C, np.float32), config), clip
    )
    t = np.asarray(prepared.t)[:, None, None, None, None]
    clean = prepared.noisy.latents - t * 0.3 * prepared.noisy.latents
    expected = np.mean(np.square(clean - clip.target.latents))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_prefix_latents_carry_no_gradient_where_they_are_given():
    objective = flow_matching.FlowMatching(Guess(), ENERGY)
    clip = make_clip()
    prepared, _, _ = evaluate(objective, clip)

    def loss(target):
        params = {"model": {"scale": jnp.ones((C,))}}
        value, _ = objective.loss(
            params,
            {},
            prepared.replace(target=target),
            rng=jax.random.key(1),
            step=jnp.int32(0),
        )
        return value

    grad = np.asarray(jax.grad(loss)(prepared.target).latents)
    given = clip.conditions.prefix_valid
    assert (grad[given, :2] == 0).all()
    assert (grad[given, 2:] != 0).all() and (grad[~given] != 0).all()


def test_metrics_split_the_loss_by_time_and_find_the_mouth():
    objective = flow_matching.FlowMatching(Guess(), ENERGY)
    clip = make_clip()
    _, loss, metrics = evaluate(objective, clip)
    by_time = [m for name, m in metrics.items() if name.startswith("loss_t/")]
    assert sum(float(m.count) for m in by_time) == B
    np.testing.assert_allclose(sum(m.total for m in by_time) / B, loss, rtol=1e-5)
    everywhere = clip.replace(mouth_mask=np.ones_like(clip.mouth_mask))
    _, loss, metrics = evaluate(objective, everywhere)
    mouth = metrics["loss_mouth"]
    np.testing.assert_allclose(mouth.total / mouth.count, loss, rtol=1e-5)


def test_an_unknown_loss_space_is_refused():
    with pytest.raises(ValueError, match="use 'velocity' or 'clean'"):
        flow_matching.FlowMatchingConfig(loss_space="noise")


def test_the_face_weighs_more_where_it_is_known():
    config = flow_matching.FlowMatchingConfig(mouth_weight=3.0, face_weight=2.0)
    face = np.random.default_rng(5).random((B, F, H, W)).astype(np.float32)
    clip = make_clip().replace(face_mask=face)
    prepared, _, _ = evaluate(flow_matching.FlowMatching(Guess(), ENERGY, config), clip)
    weight = ENERGY * (1 + 3.0 * clip.mouth_mask + 2.0 * face)[..., None]
    weight[clip.conditions.prefix_valid, :2] = 0
    weight = weight / weight.sum((1, 2, 3, 4)).mean()
    np.testing.assert_allclose(prepared.weight, weight, rtol=1e-4)


# The real network.


def make_dit_run(*, micro_batches=1):
    model = dataclasses.replace(
        sizes.TINY,
        width=16,
        mlp_width=24,
        layers=2,
        channels=C,
        text_width=TEXT,
        audio_width=AUDIO,
    )
    return config_module.Run(
        train=config_module.TrainConfig(steps=3, micro_batches=micro_batches),
        objective=flow_matching.FlowMatching(dit.AvatarDiT(model), ENERGY),
        optimizer=optimizer.make_optimizer(
            optimizer.OptimizerConfig(learning_rate=1e-3, warmup_steps=1), steps=3
        ),
        dataset=lambda index, count: [],
        describe=lambda batch: {},
    )


def train_dit(mesh_config, devices, **kwargs):
    # Plain Adam compiles sooner; Muon on eight devices is in training/test_step.py.
    run = dataclasses.replace(make_dit_run(**kwargs), optimizer=optax.adam(1e-3))
    mesh = sharding.make_mesh(mesh_config, devices)
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.LOGICAL_RULES):
        current = state.create(run, mesh, make_clip())
        take = step.jit_step(run, current)
        losses = []
        for i in range(3):
            current, metrics = take(current, sharding.put_batch(make_clip(i), mesh))
            losses.append(float(metrics["loss"].total / metrics["loss"].count))
    return losses, current


def test_the_dit_on_eight_devices_has_the_losses_of_one():
    losses, _ = train_dit(sharding.MeshConfig(), jax.devices()[:1])
    mesh = sharding.MeshConfig(data=1, fsdp=2, context=2, tensor=2)
    split, current = train_dit(mesh, jax.devices(), micro_batches=2)
    np.testing.assert_allclose(split, losses, rtol=2e-4)
    kernel = current.params["model"]["blocks"]["attention"]["q"]["kernel"]
    assert kernel.addressable_shards[0].data.size < kernel.size


def test_every_block_matrix_of_the_dit_is_muons():
    run = make_dit_run()
    params, _ = jax.eval_shape(run.objective.init, jax.random.key(0), make_clip())
    flat, _ = jax.tree_util.tree_flatten_with_path(params["model"]["blocks"])
    matrices = [path for path, leaf in flat if str(path[-1].key).endswith("kernel")]
    assert (
        len(matrices) >= 14
    )  # q k v o of self, text and audio attention, two of the MLP
    names = {jax.tree_util.keystr(path) for path in matrices}
    opt_state = jax.eval_shape(run.optimizer.init, params)
    momenta = optax.tree_utils.tree_get_all_with_path(opt_state, "mu")
    muon = next(tree for path, tree in momenta if "muon" in str(path))
    held, _ = jax.tree_util.tree_flatten_with_path(muon["model"]["blocks"])
    assert {jax.tree_util.keystr(path) for path, _ in held} == names
    assert all(leaf.ndim == 3 for _, leaf in held)
