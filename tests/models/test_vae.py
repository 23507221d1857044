"""The video autoencoder: pieces, causality, gradients, meshes (minutes to compile)."""

import contextlib
import dataclasses
import functools
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from vae_cases import SHALLOW, SMALL, random_latents, random_params, random_video

from avatar_jax import sharding
from avatar_jax.models import vae, vae_layers
from avatar_jax.models.codec import LatentCodec
from avatar_jax.models.vae_config import WanVAEConfig
from avatar_jax.types import InputError

ATOL = 2e-5


@pytest.fixture(scope="module")
def wan():
    return vae.WanCodec(random_params(SMALL), SMALL)


def test_it_is_a_codec_of_published_scale(wan):
    assert isinstance(wan, LatentCodec)
    assert wan.spatial_stride == 8 and wan.channels == 5 and wan.name
    published = vae.WanCodec({}).energy
    assert published.shape == (16,) and published.max() == 1
    np.testing.assert_allclose(published[0] / published[1], 2.8184 / 1.4541, 1e-5)


def test_shapes_follow_the_strides(wan):
    video = random_video(9)
    latents = wan.encode(video)
    assert latents.shape == (2, 3, 2, 3, 5) and latents.dtype == jnp.float32
    assert wan.decode(latents).shape == video.shape
    clips = wan.encode_clips(video[:, :8])
    assert clips.shape == (2, 2, 2, 3, 5)
    assert wan.decode_clips(clips).shape == (2, 8, 16, 24, 3)


@pytest.mark.parametrize("ends", [(1, 5), (5,)])
def test_encoding_pieces_equals_encoding_the_whole(wan, ends):
    video = random_video(9)
    state, found = wan.init_encode(), []
    for piece in jnp.split(video, ends, axis=1):
        state, latents = wan.encode_next(state, piece)
        found.append(latents)
    found = jnp.concatenate(found, axis=1)
    np.testing.assert_allclose(found, wan.encode(video), atol=ATOL)


@pytest.mark.parametrize("ends", [(1, 2, 3), (2,)])
def test_decoding_pieces_equals_decoding_the_whole(wan, ends):
    latents = random_latents(SMALL, 4)
    state, found = wan.init_decode(), []
    for piece in jnp.split(latents, ends, axis=1):
        state, video = wan.decode_next(state, piece)
        found.append(video)
    found = jnp.concatenate(found, axis=1)
    np.testing.assert_allclose(found, wan.decode(latents), atol=ATOL)


def test_the_first_frame_stands_alone_and_nothing_sees_what_comes_later(wan):
    video, latents = random_video(9), random_latents(SMALL, 3)
    encoded, decoded = wan.encode(video), wan.decode(latents)
    np.testing.assert_allclose(wan.encode(video[:, :1]), encoded[:, :1], atol=ATOL)
    np.testing.assert_allclose(wan.decode(latents[:, :1]), decoded[:, :1], atol=ATOL)
    changed = wan.encode(video.at[:, 5].add(0.5))
    np.testing.assert_allclose(changed[:, :2], encoded[:, :2], atol=ATOL)
    assert (jnp.abs(changed - encoded)[:, 2] > 1e-3).any()
    changed = wan.decode(latents.at[:, 2].add(0.5))
    np.testing.assert_allclose(changed[:, :5], decoded[:, :5], atol=ATOL)


def test_the_temporal_upsampler_never_looks_back_at_the_first_latent():
    layer = vae_layers.Upsample(time=True, dtype=jnp.float32)
    first, later = jnp.split(random_latents(SMALL, 4)[..., :4], [1], axis=1)
    variables = layer.init(jax.random.key(0), later, first=False)
    params = {"params": variables["params"]}
    _, after = layer.apply(params, first, first=True, mutable=["cache"])
    continued, _ = layer.apply(params | after, later, first=False, mutable=["cache"])
    fresh, _ = layer.apply(params, later, first=False, mutable=["cache"])
    np.testing.assert_array_equal(continued, fresh)


def test_clips_are_encoded_after_copies_of_their_first_frame(wan):
    clip = random_video(4)
    longer = jnp.concatenate([jnp.repeat(clip[:, :1], 25, axis=1), clip], axis=1)
    expected = wan.encode(longer)[:, -1:]
    np.testing.assert_allclose(wan.encode_clips(clip), expected, atol=ATOL)


def test_a_stream_takes_two_programs_and_no_more_memory(wan):
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(vae.WanCodec.decode_next, n=2))
    state, sizes = wan.init_decode(), []
    for latent in jnp.split(random_latents(SMALL, 4), 4, axis=1):
        state, _ = step(wan, state, latent)
        sizes.append(jax.tree.map(jnp.shape, state.cache))
    assert all(size == sizes[0] for size in sizes)


def test_programs_need_the_same_memory_for_long_videos(wan):
    _, cache = jax.eval_shape(
        lambda: wan.decode_next(wan.init_decode(), random_latents(SMALL, 1, batch=1))
    )[::-1]
    cache = cache.cache

    def temporary(latents):
        program = vae.run_later.lower(
            wan.params,
            cache,
            jax.ShapeDtypeStruct((1, latents, 2, 3, 5), jnp.float32),
            cfg=SMALL,
            half=vae.WanVAE.decode,
        )
        return program.compile().memory_analysis().temp_size_in_bytes

    assert temporary(40) <= temporary(4) + 40 * 2 * 3 * 5 * 4


@pytest.mark.slow
def test_gradients_reach_every_parameter_and_survive_black_frames():
    video = random_video(5, batch=1).at[:, :, :8].set(0)
    params = random_params(SHALLOW)

    @jax.jit
    @jax.grad
    def find_grads(params):
        codec = vae.WanCodec(params, SHALLOW)
        latents = codec.encode(video)
        return jnp.mean((codec.decode(latents) - video) ** 2) + jnp.mean(latents**2)

    flat, _ = jax.tree_util.tree_flatten_with_path(find_grads(params))
    for path, grad in flat:
        assert jnp.isfinite(grad).all(), path
        assert jnp.abs(grad).max() > 0, path
    silent = jax.tree.map(jnp.zeros_like, params)
    for grad in jax.tree.leaves(find_grads(silent)):
        assert jnp.isfinite(grad).all()


@pytest.mark.slow
def test_recomputing_pieces_changes_no_gradient():
    params, latents = random_params(SHALLOW), random_latents(SHALLOW, 3, batch=1)

    @functools.partial(jax.jit, static_argnames="cfg")
    @jax.grad
    def find_grads(latents, cfg):
        return jnp.sum(jnp.sin(vae.WanCodec(params, cfg).decode(latents)))

    kept = find_grads(latents, SHALLOW)
    again = find_grads(latents, dataclasses.replace(SHALLOW, remat=True))
    np.testing.assert_allclose(again, kept, atol=1e-4, rtol=1e-4)
    assert jnp.abs(kept).min() > 0


@contextlib.contextmanager
def mesh_of_rows():
    """Eight devices: the batch over two, rows over four."""
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, context=4))
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.LOGICAL_RULES):
        yield mesh


@pytest.mark.slow
@pytest.mark.parametrize("height", [64, 40])  # 8 and 5 rows of latents
def test_rows_over_four_devices_equal_one_device(wan, height):
    video = random_video(5, height=height)
    latents = random_latents(SMALL, 2, height=height // 8)
    expected = wan.encode(video), wan.decode(latents)
    with mesh_of_rows() as mesh:
        rows = NamedSharding(mesh, PartitionSpec("data", None, "context"))
        if height == 64:
            video, latents = jax.device_put((video, latents), rows)
        copy = jax.device_put(wan, NamedSharding(mesh, PartitionSpec()))
        encoded = jax.jit(vae.WanCodec.encode)(copy, video)
        decoded = jax.jit(vae.WanCodec.decode)(copy, latents)
    # Sums in another order, and norms of two channels, which may be nearly 0.
    np.testing.assert_allclose(encoded, expected[0], atol=5e-4)
    np.testing.assert_allclose(decoded, expected[1], atol=5e-4)
    if height == 64:
        assert decoded.addressable_shards[0].data.shape == (1, 5, 16, 24, 3)


@pytest.mark.slow
def test_devices_trade_rows_and_gather_only_keys_and_values(wan):
    with mesh_of_rows() as mesh:
        rows = NamedSharding(mesh, PartitionSpec("data", None, "context"))
        latents = jax.ShapeDtypeStruct((2, 2, 8, 3, 5), jnp.float32, sharding=rows)
        program = jax.jit(vae.WanCodec.decode).lower(wan, latents).compile()
    text = program.as_text()
    assert "collective-permute" in text
    gathered = re.findall(r"= \w+\[([\d,]+)\]\S* all-gather", text)
    keys = 8 * 3 * SMALL.width * SMALL.multipliers[-1]
    assert gathered
    assert max(np.prod([int(n) for n in shape.split(",")]) for shape in gathered) <= (
        2 * keys
    )


def test_attention_in_blocks_of_keys_equals_attention_at_once():
    rng = np.random.default_rng(0)
    q, k, v = jnp.asarray(rng.standard_normal((3, 2, 1, 6, 5, 4)), jnp.float32)

    def run(longest):
        return jax.value_and_grad(
            lambda *x: jnp.sum(jnp.sin(vae_layers.attend(*x, longest))), (0, 1, 2)
        )(q, k, v)

    whole = run(30)
    for longest in (1, 10, 15):
        chex.assert_trees_all_close(run(longest), whole, atol=1e-5)
    flat = (a.reshape(2, 30, 1, 4) for a in (q, k, v))
    expected = jax.nn.dot_product_attention(*flat).reshape(q.shape)
    np.testing.assert_allclose(vae_layers.attend(q, k, v, 10), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near(wan, dtype):
    half = wan.replace(cfg=dataclasses.replace(SMALL, decode_dtype=dtype))
    latents = random_latents(SMALL, 2)
    state, video = half.decode_next(half.init_decode(), latents)
    assert video.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(state.cache)} == {jnp.dtype(dtype)}
    error = jnp.abs(video - wan.decode(latents))
    assert 0 < error.mean() < {"bfloat16": 0.05, "float16": 0.006}[dtype]


def test_bad_sizes_say_what_to_do(wan):
    with pytest.raises(InputError, match="4n\\+1 frames here, came 8"):
        wan.encode(random_video(8))
    with pytest.raises(InputError, match="4n frames here, came 5"):
        wan.encode_clips(random_video(5))
    with pytest.raises(InputError, match="multiples of 8, came 12x24"):
        wan.encode(random_video(5, height=12))
    with pytest.raises(InputError, match="5 channels"):
        wan.decode(random_latents(dataclasses.replace(SMALL, channels=5), 2)[..., :4])
    with pytest.raises(InputError, match="5 channels"):
        wan.decode(random_latents(SMALL, 2)[:, :0])


@pytest.mark.parametrize(
    "fields",
    [
        {"time_down": (True, True)},
        {"time_down": (False, False, True)},
        {"channels": 4},
        {"width": 3, "multipliers": (1, 1, 1, 1)},
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        WanVAEConfig(**fields)
