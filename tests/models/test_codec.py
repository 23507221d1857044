"""The cosine codec: shapes, streaming, single frames, scale (~6 s on 2 cores)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.models import codec
from avatar_jax.types import InputError

DCT = codec.DCTCodec()


def smooth_video(frames, rows=16, columns=24, batch=2):
    """A moving coloured wave, softly within [-1, 1]."""
    n, t, y, x, c = np.indices((batch, frames, rows, columns, 3))
    phase = 0.15 * y + 0.1 * x + 0.2 * t + n
    return jnp.asarray(0.7 * np.sin(phase) * (1 - 0.1 * c) + 0.05 * c, jnp.float32)


def test_kept_rows_are_orthonormal_in_luma_and_chroma():
    analysis, synthesis = codec.analysis_rows(64), codec.synthesis_rows(64)
    np.testing.assert_allclose(analysis @ synthesis.T, np.eye(64), atol=1e-12)
    luma = codec.kept_coefficients(64)[3] == 0
    grey = synthesis[luma].reshape(-1, 256, 3)
    np.testing.assert_allclose(grey, grey[..., :1].repeat(3, axis=-1), atol=1e-12)
    np.testing.assert_allclose((grey[..., 0] ** 2).sum(1), 1, atol=1e-12)


def test_time_keeps_a_share_of_the_channels():
    t = codec.kept_coefficients(64)[0]
    assert (t > 0).sum() >= 16
    assert t[:16].max() == 1  # already among the cheapest


def test_shapes_follow_the_strides():
    video = smooth_video(frames=9)
    latents = jax.jit(DCT.encode)(video)
    assert latents.shape == (2, 3, 2, 3, 64)
    assert DCT.encode_clips(video[:, :8]).shape == (2, 2, 2, 3, 64)
    assert jax.jit(DCT.decode)(latents).shape == video.shape


def test_round_trip_keeps_smooth_video():
    video = smooth_video(frames=9)
    back = DCT.decode(DCT.encode(video))
    assert jnp.mean((back - video) ** 2) < 4 * 10**-3.3  # 33 dB
    more = codec.DCTCodec(96)
    assert jnp.mean((more.decode(more.encode(video)) - video) ** 2) <= jnp.mean(
        (back - video) ** 2
    )


def test_a_single_frame_is_a_still_block_and_decodes_alone():
    frame = smooth_video(frames=1)
    first = DCT.encode(frame)
    held = DCT.encode_clips(jnp.repeat(frame, 4, axis=1))
    np.testing.assert_allclose(first, held, atol=1e-5)
    temporal = codec.kept_coefficients(64)[0] > 0
    np.testing.assert_allclose(first[..., temporal], 0, atol=1e-4)
    noise = (
        jax.random.normal(jax.random.key(0), first.shape)
        * temporal[None, None, None, None]
    )
    np.testing.assert_allclose(DCT.decode(first + noise), DCT.decode(first), atol=1e-5)


def test_later_latents_do_not_depend_on_where_the_video_starts():
    video = smooth_video(frames=13)
    whole = DCT.encode(video)
    np.testing.assert_allclose(whole[:, 1:], DCT.encode_clips(video[:, 1:]), atol=1e-5)
    np.testing.assert_allclose(whole[:, 2:], DCT.encode(video[:, 4:])[:, 1:], atol=1e-5)


@pytest.mark.parametrize("pieces", [(1, 4), (3, 2), (2, 2, 1)])
def test_streaming_decode_equals_whole_decode(pieces):
    latents = jax.random.normal(jax.random.key(1), (2, 5, 2, 3, 64))
    state, videos = DCT.init_decode(), []
    for piece in jnp.split(latents, np.cumsum(pieces)[:-1], axis=1):
        state, video = jax.jit(DCT.decode_next)(state, piece)
        videos.append(video)
    np.testing.assert_allclose(
        jnp.concatenate(videos, axis=1), DCT.decode(latents), atol=1e-6
    )


def test_energy_is_the_share_of_each_channel_and_largest_for_brightness():
    energy = DCT.energy
    assert energy.shape == (64,) and energy.max() == energy[0] == 1
    assert energy.min() > 0


def test_bad_shapes_and_channels_are_input_errors():
    with pytest.raises(InputError, match="4n\\+1 frames, came 8"):
        DCT.encode(smooth_video(frames=8))
    with pytest.raises(InputError, match="12x24"):
        DCT.encode(smooth_video(frames=5, rows=12))
    with pytest.raises(InputError, match="use 64"):
        codec.DCTCodec(500)


def test_real_faces_have_latents_near_unit_scale(shared):
    from avatar_jax.media import decode

    frames = decode.read_video(shared / "videos" / "p01_grid_1.mp4").frames[:17]
    video = jnp.asarray(frames[None, :, 48:240, 84:276:], jnp.float32) / 127.5 - 1
    latents = DCT.encode(video[:, :, ::3, ::3])
    assert abs(float(latents[..., 0].mean())) < 1
    assert 0.4 < float(latents.std()) < 2
