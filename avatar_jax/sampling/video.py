"""A video of any length, chunk after chunk; nothing here grows with the length.

Chunk k covers latents stride k .. stride k + F - 1, where stride = F - overlap. Chunk 0
starts from the scene still; a later chunk holds the last `overlap` latents of the chunk
before as its clean prefix, and the first latent of chunk 0 as its still (the anchor).
The noise of latent f of the whole video is drawn from fold_in(rng, f), so that
neighbours share it where they overlap.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8
from tqdm import tqdm

from avatar_jax.flow import times
from avatar_jax.models import tokens
from avatar_jax.sampling import chunk
from avatar_jax.sampling.pretrained import Pretrained
from avatar_jax.types import (
    FRAMES_PER_LATENT,
    Conditions,
    Leaf,
    Reference,
    ReferenceCache,
    VideoMotion,
    count_frames,
)


@struct.dataclass
class Prepared:
    """What a request comes to: arrays of one batch of videos of equal length."""

    still: Leaf  # B 1 H W C, scene
    speech: Leaf  # B frames Da, `Plan.padded_frames` rows; may stay on the host
    text: Leaf  # B L Dt
    null_text: Leaf  # B L Dt, the empty prompt
    negative_text: Leaf = None  # B L Dt, for text guidance; None: the empty prompt
    reference: Reference | None = None
    still_valid: Leaf = None  # B h w bool, patch grid; None: all valid
    motion_valid: Leaf = None  # B bool, False: motion codes are not injected


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a speech of `num_frames` (25 fps) is cut into chunks of equal shape."""

    num_frames: int
    chunk_latents: int
    overlap: int = 2  # latents

    def __post_init__(self) -> None:
        if self.num_frames < 1 or not 0 < self.overlap < self.chunk_latents:
            raise ValueError(
                f"{self} is no plan; use one frame or more and chunks longer than the "
                "overlap."
            )

    @property
    def stride(self) -> int:
        """Latents that a chunk adds to the video."""
        return self.chunk_latents - self.overlap

    @property
    def num_chunks(self) -> int:
        """Chunks that cover the speech; the last one may reach past its end."""
        needed = -(-(self.num_frames - 1) // FRAMES_PER_LATENT) + 1
        return 1 + max(0, -(-(needed - self.chunk_latents) // self.stride))

    @property
    def padded_frames(self) -> int:
        """Frames of all chunks together: the speech and its silence tail."""
        return count_frames(self.chunk_latents + (self.num_chunks - 1) * self.stride)

    def audio_rows(self, index: int) -> slice:
        """Rows of the speech features that chunk `index` reads."""
        start = FRAMES_PER_LATENT * self.stride * index
        return slice(start, start + count_frames(self.chunk_latents))


def generate(
    pretrained: Pretrained,
    prepared: Prepared,
    *,
    plan: Plan,
    settings: chunk.Settings,
    seed: int,
) -> Iterator[UInt8[np.ndarray, "B _ Y X 3"]]:
    """Yield the frames of a batch of videos, a chunk's worth at a time."""
    chunks = sample_chunks(
        pretrained.model,
        pretrained.params,
        prepared,
        plan=plan,
        settings=settings,
        rng=jax.random.key(seed),
    )
    progress = tqdm(chunks, total=plan.num_chunks, desc="chunks", unit="chunk")
    latents = (made.latents for made in progress)
    return decode_stream(pretrained.codec, latents, plan.num_frames)


def sample_chunks(
    model: nn.Module,
    params: dict,
    prepared: Prepared,
    *,
    plan: Plan,
    settings: chunk.Settings,
    rng: PRNGKeyArray,
) -> Iterator[VideoMotion]:
    """Yield what is new in each chunk: F latents of the first, `stride` of the others.

    Motion codes come along where the model has that stream.
    """
    noise_rng, solver_rng = jax.random.split(rng)
    schedule = times.schedule(settings.num_steps, shift=settings.shift)
    shared = _shared_passes(model, params, prepared, settings)
    batch, _, *cell = prepared.still.shape
    prefix = _no_prefix(model, plan, (batch, *cell))
    anchor = jnp.asarray(prepared.still)
    patch = model.cfg.patch
    everywhere = jnp.ones((batch, cell[0] // patch, cell[1] // patch), bool)
    seen = everywhere if prepared.still_valid is None else prepared.still_valid
    for index in range(plan.num_chunks):
        passes = _place(
            shared,
            audio=jnp.asarray(prepared.speech[:, plan.audio_rows(index)]),
            still=anchor,
            still_valid=seen if index == 0 else everywhere,
            prefix=prefix,
            prefix_valid=jnp.full((batch,), index > 0),
        )
        noise = _chunk_noise(model, noise_rng, plan, index, (batch, *cell))
        key = jax.random.fold_in(solver_rng, index)
        sample = chunk.sample_chunk(
            model, params, noise, passes, schedule, key, settings
        )
        yield sample if index == 0 else _cut_overlap(sample, plan.overlap)
        prefix = _cut_prefix(sample, plan.overlap)
        anchor = sample.latents[:, :1] if index == 0 else anchor


def decode_stream(
    codec: Any, latents: Iterable[Float[Array, "B _ H W C"]], num_frames: int
) -> Iterator[UInt8[np.ndarray, "B _ Y X 3"]]:
    """Decode runs of latents with the codec's carried state, cut at `num_frames`.

    The next run is already being denoised while a run is decoded and handed out.
    """
    state = codec.init_decode()
    left = num_frames
    for run in _one_ahead(latents):
        state, pixels = chunk.decode_pixels(codec, state, run)
        yield np.asarray(pixels[:, :left])
        left -= min(left, pixels.shape[1])
        if not left:
            return


def draw_noise(
    rng: PRNGKeyArray, start: int, count: int, shape: tuple[int, ...]
) -> Float[Array, "B count ..."]:
    """Draw the noise of items start .. start + count - 1, each from its own key.

    Args:
      shape: `(B, ...)` of one item; the items become axis 1.
    """
    keys = jax.vmap(functools.partial(jax.random.fold_in, rng))(
        start + jnp.arange(count)
    )
    return jax.vmap(lambda key: jax.random.normal(key, shape), out_axes=1)(keys)


def _shared_passes(
    model: nn.Module, params: dict, prepared: Prepared, settings: chunk.Settings
) -> chunk.Passes:
    """Make the conditions that no chunk changes, with one reference cache each."""
    null_text = jnp.asarray(prepared.null_text)

    def cache(reference: Reference) -> ReferenceCache:
        return chunk.cache_reference(model, params, reference, null_text)

    reference = prepared.reference
    if reference is not None:
        rows = tokens.choose_capacity(reference, model.cfg.patch)
        reference = reference.replace(capacity=rows)
    full = Conditions(
        text=jnp.asarray(prepared.text),
        null_text=null_text,
        motion_valid=prepared.motion_valid,
        reference=None if reference is None else cache(reference),
    )

    def drop(name: str) -> Conditions:
        nothing = {name: jnp.zeros((null_text.shape[0],), bool)}
        dropped = full.replace(**nothing)
        if reference is not None:
            without = cache(reference.replace(**nothing))
            dropped = dropped.replace(reference=without)
        return dropped

    without_audio = negative = without_motion = None
    if settings.scales.audio != 1:
        without_audio = drop("audio_valid")
    if settings.scales.motion != 1:
        without_motion = drop("motion_valid")
    if settings.scales.text != 1:
        other = prepared.negative_text
        negative = full.replace(text=null_text if other is None else other)
    return chunk.Passes(full, without_audio, negative, without_motion)


def _place(
    passes: chunk.Passes,
    *,
    audio: Float[Array, "B frames Da"],
    still: Float[Array, "B 1 H W C"],
    still_valid: Bool[Array, "B h w"],
    prefix: VideoMotion,
    prefix_valid: Bool[Array, " B"],
) -> chunk.Passes:
    """Add what one chunk is told to the conditions of every pass."""
    return jax.tree.map(
        lambda told: told.replace(
            audio=audio,
            still=still,
            still_valid=still_valid,
            prefix=prefix.latents,
            prefix_motion=prefix.motion,
            prefix_valid=prefix_valid,
        ),
        passes,
        is_leaf=lambda leaf: isinstance(leaf, Conditions),
    )


def _chunk_noise(
    model: nn.Module,
    rng: PRNGKeyArray,
    plan: Plan,
    index: int,
    item: tuple[int, ...],
) -> VideoMotion:
    """Draw the noise of chunk `index`; `item` is the shape (B, H, W, C)."""
    first, latents = plan.stride * index, plan.chunk_latents
    video_rng, motion_rng = jax.random.split(rng)
    motion = None
    if model.cfg.motion_width:
        motion = draw_noise(
            motion_rng,
            FRAMES_PER_LATENT * first,
            count_frames(latents),
            (item[0], model.cfg.motion_width),
        )
    return VideoMotion(draw_noise(video_rng, first, latents, item), motion)


def _no_prefix(model: nn.Module, plan: Plan, item: tuple[int, ...]) -> VideoMotion:
    """Return zeros in the shape of a prefix; `item` is the shape (B, H, W, C)."""
    batch, *cell = item
    motion = None
    if model.cfg.motion_width:
        frames = count_frames(plan.overlap)
        motion = jnp.zeros((batch, frames, model.cfg.motion_width))
    return VideoMotion(jnp.zeros((batch, plan.overlap, *cell)), motion)


def _cut_overlap(sample: VideoMotion, overlap: int) -> VideoMotion:
    """Leave out what the chunk before has shown."""
    motion = sample.motion
    if motion is not None:
        motion = motion[:, count_frames(overlap) :]
    return VideoMotion(sample.latents[:, overlap:], motion)


def _cut_prefix(sample: VideoMotion, overlap: int) -> VideoMotion:
    """Take the end of a chunk: its last latents and their motion codes."""
    motion = sample.motion
    if motion is not None:
        motion = motion[:, -count_frames(overlap) :]
    return VideoMotion(sample.latents[:, -overlap:], motion)


def _one_ahead(items: Iterable) -> Iterator:
    """Yield each item once the next one has been asked for (dispatch runs ahead)."""
    waiting: list = []
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting
