"""Sampling on eight CPU devices equals that on one (~60 s on 2 cores)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from avatar_jax import sharding
from avatar_jax.models import dit, dit_config
from avatar_jax.sampling import chunk, placement
from avatar_jax.types import (
    Conditions,
    Reference,
    ReferenceCache,
    VideoMotion,
    count_frames,
)

F, R, H, W, C, TEXT = 3, 2, 6, 10, 5, 7  # neither rows nor reference rows divide by 8
CFG = dit_config.DiTConfig(
    width=32,
    mlp_width=48,
    heads=8,
    layers=2,
    channels=C,
    text_width=16,
    audio_width=24,
    reference=True,
    reference_audio_width=8,
    adapter_rank=4,
)
MESHES = [dict(context=8), dict(fsdp=2, context=4), dict(fsdp=4, context=2)]


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def make_inputs(model):
    reference = Reference(
        latents=normal(0, 1, R, H, W, C),
        valid=jnp.ones((1, R, H // 2, W // 2), bool),
        segment_ids=jnp.zeros((1, R), jnp.int32),
        audio=normal(1, 1, 4 * R, 8),
    )
    told = Conditions(
        text=normal(2, 1, TEXT, 16),
        null_text=normal(3, 1, TEXT, 16),
        audio=normal(4, 1, count_frames(F), 24),
        still=normal(5, 1, 1, H, W, C),
    )
    noise = VideoMotion(normal(6, 1, F, H, W, C))
    params = model.init(jax.random.key(7), noise, jnp.ones((1,)), told)["params"]
    # Zeros at the start would hide what speech and head do.
    keys = iter(jax.random.split(jax.random.key(8), 1000))
    params = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params
    )
    return params, reference, told, noise


def sample(model, params, reference, told, noise):
    made = chunk.cache_reference(model, params, reference, told.null_text)
    made = jax.jit(placement.constrain_cache)(made)
    settings = chunk.Settings(num_steps=2, shift=5.0, solver="unipc")
    passes = chunk.Passes(told.replace(reference=made))
    schedule, key = chunk.schedule(settings), jax.random.key(9)
    out = chunk.sample_chunk(model, params, noise, passes, schedule, key, settings)
    return made, out.latents


@pytest.mark.slow
@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_a_chunk_is_the_same_on_a_mesh(axes):
    model = dit.AvatarDiT(CFG)
    params, *inputs = make_inputs(model)
    _, expected = sample(model, params, *inputs)
    mesh = placement.make_mesh(
        jax.devices(), sharding.MeshConfig(**dict(data=1) | axes)
    )
    params = jax.device_put(params, placement.parameters(params, mesh))
    inputs = jax.device_put(inputs, placement.whole(inputs, mesh))
    with placement.entered(mesh):
        made, got = sample(model, params, *inputs)
    np.testing.assert_allclose(got, expected, atol=2e-5)  # sums in another order
    # What is left lies as it is read, and parameters are nowhere whole.
    assert made.k.sharding.is_equivalent_to(placement.cache(made, mesh).k, 5)
    by_head = 8 // axes["context"]
    assert made.k.sharding.shard_shape(made.k.shape)[3] == by_head
    kernel = params["blocks"]["attention"]["q"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 32 // 8, 32)


def test_without_a_mesh_nothing_moves():
    model = dit.AvatarDiT(CFG)
    params, reference, told, _ = make_inputs(model)
    made = chunk.cache_reference(model, params, reference, told.null_text)
    assert placement.constrain_cache(made) is made


def test_a_ring_divides_the_rows_of_a_cache():
    rows = jax.ShapeDtypeStruct((2, 1, 24, 2, 16), jnp.float32)
    mesh = placement.make_mesh(jax.devices())
    valid = jax.ShapeDtypeStruct((1, 24), jnp.bool_)
    where = placement.cache(ReferenceCache(k=rows, v=rows, valid=valid), mesh)
    assert where.k.shard_shape(rows.shape) == (2, 1, 3, 2, 16)
    assert where.valid.spec == P()


def test_pictures_are_divided_by_rows_where_devices_divide_them():
    mesh = placement.make_mesh(jax.devices())
    tree = [jax.ShapeDtypeStruct((1, 2, n, 6, 3), jnp.float32) for n in (16, 15)]
    even, odd = placement.picture_rows(tree, mesh)
    assert even.spec == P(None, None, "context") and odd.spec == P()
