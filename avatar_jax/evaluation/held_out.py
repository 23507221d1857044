"""What training shows of clips it does not learn from: their loss, and a sampled video.

Both are evaluators of `training.config.Run`: called with (step, averaged players), they
return scalars and videos by name. Clips, noise and times are the same at every call.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from avatar_jax.data import pipeline
from avatar_jax.models.codec import LatentCodec
from avatar_jax.objectives import base, flow_matching
from avatar_jax.sampling import chunk
from avatar_jax.types import Clip, VideoMotion, count_frames

Videos = dict[str, UInt8[np.ndarray, "frames Y X 3"]]


def make_evaluators(
    objective: flow_matching.FlowMatching,
    codec: LatentCodec,
    data: pipeline.PipelineConfig,
    *,
    num_batches: int,
    num_clips: int,
    settings: chunk.Settings,
) -> tuple["HeldOutLoss", "Preview"]:
    """Return both evaluators on validation clips of `data`, no condition dropped."""
    whole = dataclasses.replace(
        data,
        split="validation",
        text_dropout=0.0,
        audio_dropout=0.0,
        still_dropout=0.0,
        motion_dropout=0.0,
        reference_dropout=0.0,
        context_noise=0.0,
        # Whole references from other scenes, as at sampling.
        reference=dataclasses.replace(data.reference, cross_scene_from=0, whole=1.0),
    )
    clips = pipeline.make_dataset(whole, process_index=0, process_count=1)
    preview = Preview(
        objective.model, codec, clips, num_clips, settings, objective.motion_width
    )
    return HeldOutLoss(objective, clips, num_batches), preview


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOutLoss:
    """The objective's metrics over the first `num_batches` held-out batches."""

    objective: base.Objective
    clips: Iterable[Clip]
    num_batches: int = 4

    @functools.cached_property
    def _batches(self) -> list[Clip]:
        return list(itertools.islice(self.clips, self.num_batches))

    @functools.cached_property
    def _metrics(self) -> Callable:
        def metrics(
            players: base.Players, batch: Clip, rng: PRNGKeyArray
        ) -> base.Metrics:
            prepare_rng, loss_rng = jax.random.split(rng)
            prepared = self.objective.prepare(players, {}, batch, rng=prepare_rng)
            loss, metrics = self.objective.loss(
                players, {}, prepared, rng=loss_rng, step=jnp.zeros((), int)
            )
            return metrics | {"loss": base.Mean(loss, jnp.ones(()))}

        return jax.jit(metrics)

    def __call__(
        self, step: int, players: base.Players
    ) -> tuple[dict[str, float], Videos]:
        """Return `held_out/<metric>`."""
        sums: dict[str, tuple[float, float]] = {}
        for i, batch in enumerate(self._batches):
            values = jax.device_get(self._metrics(players, batch, jax.random.key(i)))
            for name, mean in values.items():
                total, count = sums.get(name, (0.0, 0.0))
                sums[name] = (total + float(mean.total), count + float(mean.count))
        return {f"held_out/{n}": t / c for n, (t, c) in sums.items() if c}, {}


@dataclasses.dataclass(frozen=True, eq=False)
class Preview:
    """Held-out clips, sampled: above what the codec keeps of them, below the samples.

    Attributes:
      num_clips: side by side in the picture.
      settings: of the sampler, without guidance.
      motion_width: of the model's motion stream; None: it has none.
    """

    model: nn.Module
    codec: LatentCodec
    clips: Iterable[Clip]
    num_clips: int = 4
    settings: chunk.Settings = chunk.Settings(num_steps=16)
    motion_width: int | None = None

    @functools.cached_property
    def _batch(self) -> Clip:
        first = next(iter(self.clips))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[: self.num_clips]), first)

    def __call__(
        self, step: int, players: base.Players
    ) -> tuple[dict[str, float], Videos]:
        """Return the video `preview`."""
        batch = self._batch
        noise_rng, rng = jax.random.split(jax.random.key(0))
        sample = chunk.sample_chunk(
            self.model,
            players["model"],
            self._draw_noise(noise_rng),
            chunk.Passes(full=batch.conditions),
            chunk.schedule(self.settings),
            rng,
            self.settings,
        )
        rows = [
            self._decode(latents) for latents in (batch.target.latents, sample.latents)
        ]
        return {}, {"preview": np.concatenate(rows, axis=1)}

    def _draw_noise(self, rng: PRNGKeyArray) -> VideoMotion:
        latents = self._batch.target.latents
        video_rng, motion_rng = jax.random.split(rng)
        motion = None
        if self.motion_width:
            rows = latents.shape[0], count_frames(latents.shape[1])
            motion = jax.random.normal(motion_rng, (*rows, self.motion_width))
        return VideoMotion(jax.random.normal(video_rng, latents.shape), motion)

    def _decode(
        self, latents: Float[Array, "B F H W C"]
    ) -> UInt8[np.ndarray, "frames Y X 3"]:
        state = self.codec.init_decode()
        _, video = chunk.decode_pixels(self.codec, state, latents)
        return np.concatenate(np.asarray(video), axis=2)
