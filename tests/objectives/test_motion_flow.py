"""The motion stream under flow matching: noise, closed loop and loss (~15 s)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flow_cases import DM, B, C, F, make_clip

from avatar_jax.objectives import flow_matching
from avatar_jax.training import config as config_module
from avatar_jax.training import state, step
from avatar_jax.types import VideoMotion, count_frames

ENERGY, PREFIX_FRAMES = np.ones(C, np.float32), count_frames(2)


class Mover(nn.Module):
    """Also two numbers for the codes: of the noisy ones and of the estimate told."""

    @nn.compact
    def __call__(self, noisy, t, conditions):
        scale = self.param("scale", nn.initializers.ones, (C,))
        own = self.param("own", nn.initializers.constant(0.7), ())
        fed = self.param("fed", nn.initializers.constant(-0.4), ())
        motion = own * noisy.motion
        if conditions.motion is not None:
            motion = motion + fed * conditions.motion
        latents = noisy.latents * scale[None, None, None, None, :]
        return VideoMotion(latents=latents, motion=motion)

    def predict_codes(self, codes, t, conditions):
        own = self.get_variable("params", "own")
        fed = self.get_variable("params", "fed")
        told = 0 if conditions.motion is None else conditions.motion
        return own * codes + fed * told


def make_mover(**fields):
    config = flow_matching.FlowMatchingConfig(**fields)
    return flow_matching.FlowMatching(Mover(), ENERGY, config, motion_width=DM)


def make_moving_clip(seed=0):
    clip = make_clip(seed)
    told = clip.conditions.replace(
        prefix_motion=clip.target.motion[:, :PREFIX_FRAMES],
        motion_valid=np.arange(B) != 5,
    )
    return clip.replace(conditions=told)


def start(objective, clip, seed=0):
    batch = jax.tree.map(jnp.asarray, clip)
    params, _ = objective.init(jax.random.key(0), batch)
    return params, objective.prepare(params, {}, batch, rng=jax.random.key(seed))


def loss_of(objective, params, prepared):
    return objective.loss(
        params, {}, prepared, rng=jax.random.key(1), step=jnp.int32(0)
    )


def test_codes_are_noised_with_the_time_of_the_video():
    clip = make_moving_clip()
    _, prepared = start(make_mover(), clip)
    t = np.asarray(prepared.t)
    for clean, noisy, target in (
        (clip.target.latents, prepared.noisy.latents, prepared.target.latents),
        (clip.target.motion, prepared.noisy.motion, prepared.target.motion),
    ):
        times = t.reshape(-1, *(1,) * (clean.ndim - 1))
        np.testing.assert_allclose(noisy, clean + times * target, atol=1e-5)
        noise = target + clean
        np.testing.assert_allclose(noise.std(), 1, atol=0.15)
    assert prepared.noisy.motion.shape == clip.target.motion.shape


def test_alone_only_the_codes_are_compared_and_only_their_part_learns():
    clip = make_moving_clip()
    both, alone = (
        make_mover(motion_alone=on, motion_weight=1.0) for on in (False, True)
    )
    params, prepared = start(alone, clip)
    value, metrics = loss_of(alone, params, prepared)
    _, whole = loss_of(both, *start(both, clip))
    assert set(metrics) == {"loss_motion"}
    motion = metrics["loss_motion"]
    np.testing.assert_allclose(value, motion.total / B, rtol=1e-5)
    # The same codes, estimate and loss as with pictures.
    np.testing.assert_allclose(motion.total, whole["loss_motion"].total, rtol=1e-5)
    grads = jax.grad(lambda p: loss_of(alone, p, prepared)[0])(params)["model"]
    np.testing.assert_array_equal(grads["scale"], 0)
    assert abs(grads["own"]) > 1e-3


def test_codes_ahead_have_a_time_of_their_own_that_is_never_later():
    clip, times, own_times = make_moving_clip(), [], []
    objective = make_mover(motion_ahead=True)
    for seed in range(40):
        _, prepared = start(objective, clip, seed)
        times.append(np.asarray(prepared.t))
        own_times.append(np.asarray(prepared.conditions.motion_time))
    t, own = np.concatenate(times), np.concatenate(own_times)
    lead = t * (1 - own) / (own * (1 - t))  # own = shift of t by 1 / lead
    np.testing.assert_allclose(
        np.quantile(1 / lead, [0, 0.5, 1]), [0, 0.5, 1], atol=0.1
    )
    t, own = times[-1][:, None, None], own_times[-1][:, None, None]
    noisy, target = prepared.noisy, prepared.target
    codes = clip.target.motion + own * target.motion
    np.testing.assert_allclose(noisy.motion, codes, atol=1e-5)
    t = t[..., None, None]
    latents = clip.target.latents + t * target.latents
    np.testing.assert_allclose(noisy.latents, latents, atol=1e-5)


@pytest.mark.parametrize("ahead", [False, True])
def test_the_network_is_told_its_earlier_estimate_or_nothing(ahead):
    clip = make_moving_clip()
    _, prepared = start(make_mover(motion_ahead=ahead, self_feeding=0.0), clip)
    np.testing.assert_array_equal(prepared.conditions.motion, 0)
    _, prepared = start(make_mover(motion_ahead=ahead, self_feeding=1.0), clip)
    # The first pass is told nothing and is at m_b = m + b u: v = 0.7 m_b, so its
    # estimate is (1 - 0.7 b) (m + b u), with one b of each sample, t or later.
    own = prepared.conditions.code_time(prepared.t)
    fed, clean = np.asarray(prepared.conditions.motion), clip.target.motion
    for i in range(B):
        b = np.linspace(float(own[i]), 1, 2_000)[:, None, None]
        u = np.asarray(prepared.target.motion[i])
        off = np.abs((1 - 0.7 * b) * (clean[i] + b * u) - fed[i]).max((1, 2))
        assert off.min() < 5e-3
    told = 0
    objective = make_mover(self_feeding=0.5)
    for seed in range(40):
        _, prepared = start(objective, clip, seed)
        told += bool(np.any(prepared.conditions.motion))
    assert 10 < told < 30


def test_no_gradient_flows_through_the_estimate():
    objective, clip = make_mover(self_feeding=1.0), make_moving_clip()
    batch = jax.tree.map(jnp.asarray, clip)
    params, frozen = objective.init(jax.random.key(0), batch)
    run = config_module.Run(
        train=config_module.TrainConfig(steps=1),
        objective=objective,
        optimizer=optax.sgd(1.0),
        dataset=lambda index, count: [],
        describe=lambda batch: {},
    )
    current = state.TrainState(
        step=jnp.int32(0),
        params=params,
        frozen=frozen,
        ema=params,
        opt_state=run.optimizer.init(params),
    )
    after, _ = step.make_step(run)(current, batch)
    rng, _ = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))

    def whole(params, told):
        prepared = objective.prepare(told, {}, batch, rng=rng)
        return loss_of(objective, params, prepared)[0]

    stopped = jax.grad(whole)(params, params)
    moved = jax.tree.map(jnp.subtract, params, after.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        moved,
        stopped,
    )
    through = jax.grad(lambda params: whole(params, params))(params)
    assert abs(through["model"]["own"] - stopped["model"]["own"]) > 1e-3


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("space", ["velocity", "clean"])
def test_motion_loss_is_its_error_and_that_of_its_differences(space, ahead):
    fields = {"self_feeding": 0.0, "loss_space": space, "floor": 1e-3}
    fields["motion_ahead"] = ahead
    clip = make_moving_clip()
    params, prepared = start(make_mover(motion_weight=0.25, **fields), clip)
    loss, metrics = loss_of(make_mover(motion_weight=0.25, **fields), params, prepared)
    video, _ = loss_of(make_mover(motion_weight=0.0, **fields), params, prepared)
    own = prepared.conditions.motion_time if ahead else prepared.t
    t = np.asarray(own)[:, None, None]
    off = 0.7 * np.asarray(prepared.noisy.motion) - np.asarray(prepared.target.motion)
    scale = t if space == "clean" else 1.0
    told = clip.conditions
    counted = np.ones((B, count_frames(F)))
    counted[told.prefix_valid, :PREFIX_FRAMES] = 0
    counted[~told.motion_valid] = 0
    error = np.square(scale * off).mean(-1) * counted
    # Codes of a prefix are given, so they are right: their clean estimate is exact.
    clean_off = -t * off * counted[..., None]
    jumps = np.abs(np.diff(clean_off, axis=1)).mean(-1) * counted[:, 1:]
    rows = (error.sum(1) + jumps.sum(1)) / count_frames(F)
    np.testing.assert_allclose(loss - video, 0.25 * rows.mean(), rtol=1e-3)
    mean = metrics["loss_motion"]
    np.testing.assert_allclose(mean.total, rows.sum(), rtol=1e-4)
    assert int(mean.count) == told.motion_valid.sum()


def test_codes_of_a_prefix_and_dropped_codes_carry_no_loss():
    objective, clip = make_mover(), make_moving_clip()
    params, prepared = start(objective, clip)

    def loss(target):
        return loss_of(objective, params, prepared.replace(target=target))[0]

    grad = np.asarray(jax.grad(loss)(prepared.target).motion)
    told = clip.conditions
    given, moving = told.prefix_valid, told.motion_valid
    assert (grad[given, :PREFIX_FRAMES] == 0).all() and (grad[~moving] == 0).all()
    assert (grad[given & moving, PREFIX_FRAMES:] != 0).all()
    assert (grad[~given & moving] != 0).all()


def test_clips_without_codes_train_the_video_alone():
    objective, clip = make_mover(), make_moving_clip()
    told = clip.conditions.replace(prefix_motion=None, motion_valid=np.zeros(B, bool))
    clip = clip.replace(target=clip.target.replace(motion=None), conditions=told)
    params, prepared = start(objective, clip)
    grad, metrics = jax.grad(
        lambda params: loss_of(objective, params, prepared), has_aux=True
    )(params)
    assert float(metrics["loss_motion"].count) == 0
    assert grad["model"]["own"] == 0 and (grad["model"]["scale"] != 0).all()
