"""What is jitted in sampling: one chunk (all solver steps), the cache, the decoder."""

import dataclasses
import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8

from avatar_jax.flow import guidance, solver, unipc
from avatar_jax.flow import times as flow_times
from avatar_jax.models import tokens
from avatar_jax.models.codec import LatentCodec
from avatar_jax.sampling import placement
from avatar_jax.types import (
    Conditions,
    Reference,
    ReferenceCache,
    VideoMotion,
    drop_reference,
)

Solver = Literal["overshoot", "unipc"]
Digits = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a chunk is sampled. The paper: 24 steps, shift 5 (480p), overshoot 1.

    TAVR: 24 steps, shift 5, "unipc", latents of bfloat16.
    """

    num_steps: int = 24
    shift: float = 1.0  # Choice: 1 up to 128 px; large pictures need 5
    solver: Solver = "overshoot"  # of `flow.solver` (Euler among them) or `flow.unipc`
    # Choice: Euler, until the product's 1 measures better here. Of latents: codes take
    # second-order steps whatever it is, as few first-order ones lose their spread.
    overshoot: float = 0.0
    scales: guidance.Scales = guidance.Scales()
    motion_lead: float = 1.0  # codes run ahead by a shift of 1 / lead; 1: not at all
    latent_dtype: Digits = "float32"  # of "unipc", from one step to the next
    # Step (from 0) before which the reference is hidden; below 0: throughout.
    reference_from: int = 0

    def __post_init__(self) -> None:
        for name, kind in (("solver", Solver), ("latent_dtype", Digits)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"{name}={getattr(self, name)!r}; use one of "
                    f"{', '.join(get_args(kind))}."
                )
        if self.solver == "unipc" and self.overshoot:
            raise ValueError(
                f"overshoot={self.overshoot} is of another solver than unipc; use 0."
            )
        if self.solver != "unipc" and self.latent_dtype != "float32":
            raise ValueError(
                f"latent_dtype={self.latent_dtype!r} is of solver='unipc', came "
                f"{self.solver!r}; use that, or float32."
            )


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
      times: of `schedule`, for these settings.
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
            if settings.reference_from:
                shown = is_reference_shown(t.latents, times, settings.reference_from)
                told = hide_reference(told, ~shown)
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

    return _restore_prefix(
        _solve(velocity_fn, noise, times, rng, settings), passes.full
    )


def schedule(settings: Settings) -> Float[Array, " times"]:
    """Return what the network is told of t at each step, and 0 at the end."""
    if settings.solver == "unipc":
        return unipc.told_times(settings.num_steps, shift=settings.shift)
    return flow_times.schedule(settings.num_steps, shift=settings.shift)


@functools.partial(jax.jit, static_argnames="model")
def cache_reference(
    model: nn.Module,
    params: dict,
    reference: Reference,
    null_text: Float[Array, "B L Dt"],
) -> ReferenceCache:
    """Run the reference rows once; all steps and all chunks read what it leaves."""
    cache = model.apply(
        {"params": params}, reference, null_text, method="cache_reference"
    )
    return placement.constrain_cache(cache)


@jax.jit
def decode_pixels(
    codec: LatentCodec, state: Any, latents: Float[Array, "B F H W C"]
) -> tuple[Any, UInt8[Array, "B frames Y X 3"]]:
    """Decode the next latents of a stream to 8-bit pixels."""
    state, video = codec.decode_next(state, latents)
    return state, jnp.round((jnp.clip(video, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def is_reference_shown(
    t: Float[Array, " B"], times: Float[Array, " times"], start: int
) -> Bool[Array, " B"]:
    """Say at time t whether the reference counts: from step `start` on, never if < 0.

    Steps of one time count as the first of them.
    """
    first = times[min(start, len(times) - 1)] if start >= 0 else -1.0
    return t <= first


def hide_reference(conditions: Conditions, hidden: Bool[Array, " B"]) -> Conditions:
    """Hide the reference of some samples: rows that are not valid say nothing."""
    reference, kept = conditions.reference, ~hidden
    if isinstance(reference, ReferenceCache):
        manner = reference.manner
        reference = reference.replace(
            valid=reference.valid & kept[:, None],
            manner=None if manner is None else manner * kept[:, None],
        )
    elif reference is not None:
        reference = drop_reference(reference, kept)
    return conditions.replace(reference=reference)


def _solve(
    velocity_fn: solver.VelocityFn,
    noise: VideoMotion,
    times: Float[Array, " times"],
    rng: PRNGKeyArray,
    settings: Settings,
) -> VideoMotion:
    """Integrate with the solver that the settings name; codes have their own times."""
    ahead, lead = None, settings.motion_lead
    if noise.motion is not None:
        ahead = flow_times.shift_times(times, 1 / lead)
    if settings.solver == "overshoot":
        return solver.solve(
            velocity_fn,
            noise,
            VideoMotion(times, ahead),
            rng=rng,
            overshoot=settings.overshoot,
            second_order=VideoMotion(False, None if ahead is None else True),
        )

    def steps(shift: float) -> unipc.Steps:
        return unipc.make_steps(unipc.schedule(settings.num_steps, shift=shift)[0])

    # Shifts multiply: that of the lead comes after that of the video.
    own = None if ahead is None else steps(settings.shift / lead)
    return unipc.solve(
        velocity_fn,
        noise,
        VideoMotion(times, ahead),
        steps=VideoMotion(steps(settings.shift), own),
        bfloat16=settings.latent_dtype == "bfloat16",
    )


def _restore_prefix(sample: VideoMotion, conditions: Conditions) -> VideoMotion:
    """Put the clean prefix back where there is one: the network only saw it."""
    latents, _ = tokens.place_prefix(sample.latents, conditions)
    motion = sample.motion
    if motion is not None:
        motion = tokens.place_prefix_codes(motion, conditions)
    return VideoMotion(latents, motion)
