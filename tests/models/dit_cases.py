"""A small network with every part on, and random conditions for it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.models import dit
from avatar_jax.types import Conditions, Reference, VideoMotion

B, F, R, H, W, C = 2, 3, 4, 4, 6, 5  # patch grid 2 x 3
FRAMES, PREFIX_FRAMES = 4 * (F - 1) + 1, 5
DM, DA, DR, DT = 7, 11, 9, 8
T = jnp.array([0.3, 0.7])

FULL = dit.DiTConfig(
    width=24,
    mlp_width=40,
    heads=2,
    layers=3,
    channels=C,
    text_width=DT,
    time_features=16,
    audio_width=DA,
    reference=True,
    reference_audio_width=DR,
    adapter_rank=6,
    faces=True,
    identity_width=10,
    motion_width=DM,
    detail_width=6,
    still_concat=True,
    prediction="clean",
)
PLAIN = dataclasses.replace(
    FULL,
    reference=False,
    reference_audio_width=None,
    faces=False,
    identity_width=None,
    motion_width=None,
    audio_width=None,
)
HEARING = dataclasses.replace(PLAIN, audio_width=DA)  # as in stage 2


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def make_reference(**changes):
    reference = Reference(
        latents=normal(1, B, R, H, W, C),
        valid=jax.random.bernoulli(jax.random.key(2), 0.6, (B, R, 2, 3)),
        segment_ids=jnp.array([[0, 0, 1, 1]] * B, jnp.int32),
        audio=normal(3, B, 4 * R, DR),
        motion=normal(4, B, 4 * R, DM),
        identity=normal(5, B, 10),
        faces=normal(6, B, 2, 2, 4, C),
        faces_valid=jnp.array([[True, False], [True, True]]),
    )
    return reference.replace(**changes)


def make_conditions(**changes):
    conditions = Conditions(
        text=normal(10, B, 6, DT),
        null_text=normal(11, B, 6, DT),
        audio=normal(12, B, FRAMES, DA),
        still=normal(13, B, 1, H, W, C),
        still_valid=jnp.ones((B, 2, 3), bool).at[0, 0, 1].set(False),
        prefix=normal(14, B, 2, H, W, C),
        prefix_valid=jnp.array([True, False]),
        prefix_motion=normal(16, B, PREFIX_FRAMES, DM),
        reference=make_reference(),
        motion=normal(15, B, FRAMES, DM),
    )
    return conditions.replace(**changes)


def make_noisy(seed=20):
    return VideoMotion(normal(seed, B, F, H, W, C), normal(seed + 1, B, FRAMES, DM))


def random_params(cfg, seed=0, scale=0.3):
    """Draw every parameter at random: zeros would hide what is wired wrongly."""
    model = dit.AvatarDiT(cfg)
    inputs = make_noisy(), jnp.ones((B,)), Conditions()
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        center = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(
            center + scale * rng.standard_normal(leaf.shape), jnp.float32
        )

    return model, jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def _jitted(cfg, method):
    model = dit.AvatarDiT(cfg)
    return jax.jit(
        lambda params, *args: model.apply({"params": params}, *args, method=method)
    )


def run(model, params, noisy, t, conditions):
    return _jitted(model.cfg, None)(params, noisy, t, conditions)


def make_cache(model, params, reference, null_text):
    return _jitted(model.cfg, "cache_reference")(params, reference, null_text)
