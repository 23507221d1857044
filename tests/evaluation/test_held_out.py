"""Held-out loss and previews repeat exactly (~10 s on 2 cores)."""

import chex
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from avatar_jax.evaluation import held_out
from avatar_jax.models import codec
from avatar_jax.objectives import flow_matching
from avatar_jax.sampling import chunk
from avatar_jax.types import Clip, Conditions, VideoMotion

B, F, H, W, C = 3, 2, 2, 3, 5
MOTION = 7


class Guess(nn.Module):
    """A network of one number: it looks at x_t alone."""

    @nn.compact
    def __call__(self, noisy, t, conditions):
        return VideoMotion(
            latents=noisy.latents * self.param("scale", nn.initializers.ones, ())
        )


class MovingGuess(Guess):
    """The same with a motion stream."""

    @nn.compact
    def __call__(self, noisy, t, conditions):
        chex.assert_shape(noisy.motion, (2, 4 * (F - 1) + 1, MOTION))
        scale = self.param("scale", nn.initializers.ones, ())
        return VideoMotion(latents=noisy.latents * scale, motion=noisy.motion * scale)


def make_clips(count):
    rng = np.random.default_rng(0)
    return [
        Clip(
            target=VideoMotion(
                latents=rng.standard_normal((B, F, H, W, C)).astype(np.float32)
            ),
            conditions=Conditions(),
        )
        for _ in range(count)
    ]


def make_players(scale):
    return {"model": {"scale": jnp.float32(scale)}}


def test_held_out_loss_depends_on_the_weights_alone():
    objective = flow_matching.FlowMatching(Guess(), np.ones(C, np.float32))
    evaluate = held_out.HeldOutLoss(objective, make_clips(4), num_batches=2)
    first, _ = evaluate(1, make_players(0.5))
    again, _ = evaluate(2, make_players(0.5))
    other, _ = evaluate(3, make_players(0.9))
    assert first == again
    assert first["held_out/loss"] != other["held_out/loss"]


def test_preview_shows_the_truth_above_the_samples():
    video = codec.DCTCodec(channels=C)
    clips = make_clips(1)
    evaluate = held_out.Preview(Guess(), video, clips, 2, chunk.Settings(num_steps=3))
    _, videos = evaluate(1, make_players(0.5))
    frames = videos["preview"]
    assert frames.shape == (4 * (F - 1) + 1, 2 * 8 * H, 2 * 8 * W, 3)
    truth = video.decode(jnp.asarray(clips[0].target.latents[:1]))
    expected = np.asarray(jnp.round((truth[0] + 1) * 127.5))
    difference = frames[:, : 8 * H, : 8 * W].astype(float) - expected
    assert np.abs(difference).max() <= 1
    _, again = evaluate(2, make_players(0.5))
    chex.assert_trees_all_equal(videos, again)


def test_preview_of_a_motion_stream_starts_from_noise_in_its_codes():
    video = codec.DCTCodec(channels=C)
    evaluate = held_out.Preview(
        MovingGuess(), video, make_clips(1), 2, chunk.Settings(1), MOTION
    )
    _, videos = evaluate(1, make_players(0.5))
    assert videos["preview"].shape[0] == 4 * (F - 1) + 1
