"""Runs of latents with the motion codes of their frames.

A run that begins like a video has one code for its first latent; every further latent
has four.
"""

import jax.numpy as jnp

from avatar_jax.types import FRAMES_PER_LATENT, VideoMotion, count_frames


def make_empty(
    latents: int, item: tuple[int, ...], motion_width: int | None
) -> VideoMotion:
    """Return zeros; `item` is the shape (B, H, W, C) of one latent."""
    batch, *cell = item
    motion = None
    if motion_width:
        motion = jnp.zeros((batch, count_frames(latents), motion_width))
    return VideoMotion(jnp.zeros((batch, latents, *cell)), motion)


def cover(video: VideoMotion, latents: slice) -> VideoMotion:
    """Take what a chunk covers of a video: its first latent has one code again."""
    motion = video.motion
    if motion is not None:
        start = FRAMES_PER_LATENT * latents.start
        motion = motion[:, start : count_frames(latents.stop)]
    return VideoMotion(video.latents[:, latents], motion)


def cut(run: VideoMotion, start: int, latents: slice) -> VideoMotion:
    """Take latents of a video out of a run that begins at its latent `start`."""
    first, stop = latents.start - start, latents.stop - start
    motion = run.motion
    if motion is not None:
        motion = motion[:, max(0, count_frames(first)) : count_frames(stop)]
    return VideoMotion(run.latents[:, first:stop], motion)


def take_end(run: VideoMotion, latents: int) -> VideoMotion:
    """Take the last latents, as the prefix of a run to come: one code for the first."""
    motion = run.motion
    if motion is not None:
        motion = motion[:, -count_frames(latents) :]
    return VideoMotion(run.latents[:, -latents:], motion)
