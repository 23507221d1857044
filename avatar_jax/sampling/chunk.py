"""What is jitted in sampling: one chunk (all solver steps), the cache, the decoder."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from avatar_jax.flow import guidance, solver
from avatar_jax.flow import times as flow_times
from avatar_jax.models import tokens
from avatar_jax.models.codec import LatentCodec
from avatar_jax.types import Conditions, Reference, ReferenceCache, VideoMotion


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a chunk is sampled. The paper: 24 steps, shift 5 (480p), overshoot 1."""

    num_steps: int = 24
    shift: float = 1.0  # Choice: 1 up to 128 px; large pictures need 5
    # Choice: Euler, until the product's 1 measures better here. Of latents: codes take
    # second-order steps whatever it is, as few first-order ones lose their spread.
    overshoot: float = 0.0
    scales: guidance.Scales = guidance.Scales()
    motion_lead: float = 1.0  # codes run ahead by a shift of 1 / lead; 1: not at all


@struct.dataclass
class Passes:
    """The conditions of each guidance pass; a pass whose scale is 1 is None."""

    full: Conditions
    without_audio: Conditions | None = None  # driving and reference speech are nulls
    negative: Conditions | None = None  # another prompt
    without_motion: Conditions | None = None  # no codes, driving or reference


@functools.partial(jax.jit, static_argnames=("model", "settings"))
def sample_chunk(
    model: nn.Module,
    params: dict,
    noise: VideoMotion,
    passes: Passes,
    times: Float[Array, " times"],
    rng: PRNGKeyArray,
    settings: Settings,
) -> VideoMotion:
    """Denoise one chunk and return it with its prefix exactly as it was given.

    Args:
      noise: latents `B F H W C`; motion codes too where the model has that stream.
      times: from 1 to 0 (`flow.times.schedule`).
      rng: for the noise of the overshoot step alone.
      settings: static, like the model: one compile for each.
    """

    def velocity_fn(
        x: VideoMotion, t: VideoMotion, estimate: VideoMotion
    ) -> VideoMotion:
        def run(conditions: Conditions | None) -> VideoMotion | None:
            if conditions is None:
                return None
            told = conditions.replace(motion=estimate.motion, motion_time=t.motion)
            return model.apply({"params": params}, x, t.latents, told)

        full = run(passes.full)
        guided = guidance.guide(
            full,
            without_audio=run(passes.without_audio),
            negative=run(passes.negative),
            without_motion=run(passes.without_motion),
            scales=settings.scales,
        )
        # Guidance would exaggerate the codes, which have a scale that is the person's.
        return guided.replace(motion=full.motion)

    ahead = None
    if noise.motion is not None:
        ahead = flow_times.shift_times(times, 1 / settings.motion_lead)
    sample = solver.solve(
        velocity_fn,
        noise,
        VideoMotion(times, ahead),
        rng=rng,
        overshoot=settings.overshoot,
        second_order=VideoMotion(False, None if ahead is None else True),
    )
    return _restore_prefix(sample, passes.full)


@functools.partial(jax.jit, static_argnames="model")
def cache_reference(
    model: nn.Module,
    params: dict,
    reference: Reference,
    null_text: Float[Array, "B L Dt"],
) -> ReferenceCache:
    """Run the reference rows once; all steps and all chunks read what it leaves."""
    return model.apply(
        {"params": params}, reference, null_text, method="cache_reference"
    )


@functools.partial(jax.jit, static_argnames="codec")
def decode_pixels(
    codec: LatentCodec, state: Any, latents: Float[Array, "B F H W C"]
) -> tuple[Any, UInt8[Array, "B frames Y X 3"]]:
    """Decode the next latents of a stream to 8-bit pixels."""
    state, video = codec.decode_next(state, latents)
    return state, jnp.round((jnp.clip(video, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def _restore_prefix(sample: VideoMotion, conditions: Conditions) -> VideoMotion:
    """Put the clean prefix back where there is one: the network only saw it."""
    latents, _ = tokens.place_prefix(sample.latents, conditions)
    motion = sample.motion
    if motion is not None:
        motion = tokens.place_prefix_codes(motion, conditions)
    return VideoMotion(latents, motion)
