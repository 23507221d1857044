"""A video of any length, chunk after chunk; nothing here grows with the length.

Chunk k covers latents stride k .. stride k + F - 1, where stride = F - overlap. Chunk 0
starts from the scene still; a later chunk holds the last `overlap` latents of the chunk
before as its clean prefix, and the first latent of chunk 0 as its still (the anchor).
The noise of latent f of the whole video is drawn from fold_in(rng, f), so that
neighbours share it where they overlap; or it is given.

TAVR writes its chunks onto a canvas `margin` latents longer than the speech: what the
last chunk has beyond its end is cut off, what no chunk reaches stays noise.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray, UInt8
from tqdm import tqdm

from avatar_jax.sampling import chunk, passes, runs
from avatar_jax.sampling.pretrained import Pretrained
from avatar_jax.types import (
    FRAMES_PER_LATENT,
    Conditions,
    Leaf,
    Reference,
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
    # Latents of the canvas past the speech (TAVR: 4, behind the end of its video);
    # None: it ends with the last chunk.
    margin: int | None = None
    shown_frames: int | None = None  # handed out; None: `num_frames`

    def __post_init__(self) -> None:
        if self.num_frames < 1 or not 0 < self.overlap < self.chunk_latents:
            raise ValueError(
                f"{self} is no plan; use one frame or more and chunks longer than the "
                "overlap."
            )
        if self.margin is not None and self.margin < 0:
            raise ValueError(f"margin={self.margin}; use 0 or more, or None.")

    @property
    def stride(self) -> int:
        """Latents that a chunk adds to the video."""
        return self.chunk_latents - self.overlap

    @property
    def frames_out(self) -> int:
        """Frames of the finished video."""
        return self.num_frames if self.shown_frames is None else self.shown_frames

    @property
    def num_chunks(self) -> int:
        """Chunks that cover the speech; the last one may reach past its end."""
        return 1 + max(0, -(-(self._needed - self.chunk_latents) // self.stride))

    @property
    def padded_frames(self) -> int:
        """Frames of all chunks together: the speech and its silence tail."""
        return count_frames(self._reached)

    @property
    def canvas_latents(self) -> int:
        """Latents of the whole video, as it is handed out."""
        return self._reached if self.margin is None else self._needed + self.margin

    @property
    def noise_latents(self) -> int:
        """Latents whose noise is needed, by chunks or as the end of the canvas."""
        return max(self._reached, self.canvas_latents)

    @property
    def _needed(self) -> int:
        return -(-(self.num_frames - 1) // FRAMES_PER_LATENT) + 1

    @property
    def _reached(self) -> int:
        return self.chunk_latents + (self.num_chunks - 1) * self.stride

    def read(self, index: int) -> slice:
        """Latents of the canvas that chunk `index` covers."""
        start = self.stride * index
        return slice(start, start + self.chunk_latents)

    def written(self, index: int) -> slice:
        """Latents of the canvas that chunk `index` adds: none twice, to its end."""
        covered = self.read(index)
        start = covered.start + (self.overlap if index else 0)
        return slice(start, min(covered.stop, self.canvas_latents))

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
    return decode_stream(pretrained.codec, latents, plan.frames_out)


def sample_chunks(
    model: nn.Module,
    params: dict,
    prepared: Prepared,
    *,
    plan: Plan,
    settings: chunk.Settings,
    rng: PRNGKeyArray,
    noise: VideoMotion | None = None,
) -> Iterator[VideoMotion]:
    """Yield what is new in each chunk: F latents of the first, `stride` of the others.

    Motion codes come along where the model has that stream.

    Args:
      noise: of `plan.noise_latents` latents (and of their codes); None: drawn.

    Raises:
      ValueError: noise of another length.
    """
    noise_rng, solver_rng = jax.random.split(rng)
    schedule = chunk.schedule(settings)
    shared = _shared_passes(model, params, prepared, settings)
    batch, _, *cell = prepared.still.shape
    width = model.cfg.motion_width
    read_noise = _noise_source(noise, noise_rng, plan, (batch, *cell), width)
    prefix = runs.make_empty(plan.overlap, (batch, *cell), width)
    anchor = jnp.asarray(prepared.still)
    patch = model.cfg.patch
    everywhere = jnp.ones((batch, cell[0] // patch, cell[1] // patch), bool)
    seen = everywhere if prepared.still_valid is None else prepared.still_valid
    for index in range(plan.num_chunks):
        told = passes.place(
            shared,
            audio=jnp.asarray(prepared.speech[:, plan.audio_rows(index)]),
            still=anchor,
            still_valid=seen if index == 0 else everywhere,
            prefix=prefix,
            prefix_valid=jnp.full((batch,), index > 0),
        )
        key = jax.random.fold_in(solver_rng, index)
        covered = plan.read(index)
        sample = chunk.sample_chunk(
            model, params, read_noise(covered), told, schedule, key, settings
        )
        yield runs.cut(sample, covered.start, plan.written(index))
        prefix = runs.take_end(sample, plan.overlap)
        anchor = sample.latents[:, :1] if index == 0 else anchor
    if plan.canvas_latents > covered.stop:
        yield _raw_end(read_noise, slice(covered.stop, plan.canvas_latents))


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
    """Make what every chunk is told."""
    told = Conditions(
        text=jnp.asarray(prepared.text),
        null_text=jnp.asarray(prepared.null_text),
        motion_valid=prepared.motion_valid,
        reference=prepared.reference,
    )
    negative = prepared.negative_text
    return passes.share(model, params, told, negative_text=negative, settings=settings)


def _noise_source(
    given: VideoMotion | None,
    rng: PRNGKeyArray,
    plan: Plan,
    item: tuple[int, ...],
    motion_width: int | None,
) -> Callable[[slice], VideoMotion]:
    """Return what gives the noise of a chunk; `item` is the shape (B, H, W, C)."""
    if given is not None:
        came, expected = given.latents.shape[1], plan.noise_latents
        if came != expected:
            raise ValueError(f"noise of {came} latents came, {plan} needs {expected}.")
        return lambda covered: runs.cover(given, covered)
    video_rng, motion_rng = jax.random.split(rng)

    def draw(covered: slice) -> VideoMotion:
        first, count, motion = covered.start, covered.stop - covered.start, None
        if motion_width:
            start, rows = FRAMES_PER_LATENT * first, count_frames(count)
            motion = draw_noise(motion_rng, start, rows, (item[0], motion_width))
        return VideoMotion(draw_noise(video_rng, first, count, item), motion)

    return draw


def _raw_end(read_noise: Callable[[slice], VideoMotion], latents: slice) -> VideoMotion:
    """Return the noise of canvas latents that no chunk reaches."""
    # From one latent earlier: only the first of a chunk has a single code.
    start = latents.start - 1
    return runs.cut(read_noise(slice(start, latents.stop)), start, latents)


def _one_ahead(items: Iterable) -> Iterator:
    """Yield each item once the next one has been asked for (dispatch runs ahead)."""
    waiting: list = []
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting
