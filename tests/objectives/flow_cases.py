"""A random clip with every condition of stage 2, and motion codes."""

import numpy as np

from avatar_jax.types import Clip, Conditions, VideoMotion, count_frames

B, F, H, W, C, AUDIO, TEXT, DM = 8, 4, 4, 6, 5, 7, 12, 3


def make_clip(seed=0):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.standard_normal((B, *shape)).astype(np.float32)

    latents = draw(F, H, W, C)
    prefix_valid = np.arange(B) % 2 == 0
    return Clip(
        target=VideoMotion(latents=latents, motion=draw(count_frames(F), DM)),
        conditions=Conditions(
            text=draw(3, TEXT),
            null_text=draw(3, TEXT),
            audio=draw(count_frames(F), AUDIO),
            audio_valid=np.arange(B) != 3,
            still=draw(1, H, W, C),
            still_valid=np.ones((B, H // 2, W // 2), bool),
            prefix=latents[:, :2],
            prefix_valid=prefix_valid,
        ),
        mouth_mask=rng.random((B, F, H, W)).astype(np.float32),
    )
