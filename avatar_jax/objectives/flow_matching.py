"""Flow matching: stages 1 (text, still), 2 (speech, prefix) and 3 (person, motion).

With times t, noise e and the path and velocity u of `flow.path`:

  (1) error  = (v(x_t, t, conditions) - u)^2                       loss_space "velocity"
  (2) error  = max(t, floor)^2 (v - u)^2 = (x^ - x)^2              loss_space "clean"
  (3) weight = energy^p (1 + mouth_weight * mouth + face_weight * face),
               0 on prefix latents
  (4) loss   = sum(weight * error) / sum(weight) + motion_weight * motion
  (5) motion: eq. 1 of `motion_stream`, with the error of (1) or (2)

With `motion_alone` the first term of (4) is absent: `model.predict_codes` is called,
and human-aware losses, which look at pictures, are left out.

(2) holds for t > floor where the network estimates x^ and returns the velocity
v = (x_t - x^) / max(t, floor). Small models learn lips with it in a fifth of the steps.
Dropped conditions arrive as such in the batch: which stage it is, the data decide.

Where the network has a motion stream, its codes are noised with the video's t, or with
`motion_ahead` with a time of their own that is never later (Choice, against model.md's
one t: pictures learn to obey codes only where codes know more than noisy pictures
tell). In `self_feeding` of the batches the network is given its own clean estimate of
the codes at an earlier time (without gradient), as at every sampling step but the first
(model.md: closed loop).
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from avatar_jax.flow import path, times
from avatar_jax.objectives import base, motion_stream
from avatar_jax.types import Clip, Conditions, Leaf, VideoMotion, count_frames

TIME_BUCKETS = 4


@dataclasses.dataclass(frozen=True)
class FlowMatchingConfig:
    """Weights of eqs. 2-5.

    Attributes:
      shift: of the sampled times; 1 at TINY, 5 at 480p and above.
      loss_space: "velocity" (eq. 1) or "clean" (eq. 2).
      floor: of eq. 2; the model's own.
      energy_power: p of eq. 3; 0 weighs all (whitened) channels alike. Choice: 1, since
        whitening lifts faint, spiky channels to the variance of the strong ones.
      mouth_weight: extra weight of a latent cell that is all mouth.
      face_weight: the same of the face.
      self_feeding: share of batches in which the motion estimate is fed back.
      motion_ahead: the codes' time is t shifted by a uniform draw.
      uniform_times: share of examples whose t is uniform.
      motion_alone: only codes are predicted and compared, without the trunk.
    """

    shift: float = 1.0
    loss_space: str = "velocity"
    floor: float = 0.05
    energy_power: float = 1.0
    mouth_weight: float = 0.0
    face_weight: float = 0.0
    motion_weight: float = 0.1
    self_feeding: float = 0.5
    motion_ahead: bool = False
    uniform_times: float = 0.0
    motion_alone: bool = False

    def __post_init__(self) -> None:
        if self.loss_space not in ("velocity", "clean"):
            raise ValueError(
                f"loss_space={self.loss_space!r}; use 'velocity' or 'clean'."
            )


@struct.dataclass
class FlowBatch:
    """What eq. 4 needs of a batch; weights already divided by their mean row sum."""

    noisy: VideoMotion
    target: VideoMotion  # velocity u
    t: Leaf  # B
    conditions: Conditions
    weight: Leaf  # B F H W C
    mouth: Leaf  # B F H W C, the part of `weight` that is mouth
    motion_weight: Leaf = None  # B frames


@dataclasses.dataclass(frozen=True, eq=False)
class FlowMatching:
    """The objective of stages 1 and 2, a part of that of 3; its one player is `model`.

    Attributes:
      model: called as `model(noisy, t, conditions) -> VideoMotion`, a velocity.
      energy: the codec's standard deviation per channel, largest 1.
      patch: latent cells per token side, for counting tokens.
      motion_width: of the model's motion stream; None: it has none.
    """

    model: nn.Module
    energy: Float[np.ndarray, " C"]
    config: FlowMatchingConfig = FlowMatchingConfig()
    patch: int = 2
    motion_width: int | None = None

    def init(self, rng: PRNGKeyArray, batch: Clip) -> tuple[base.Players, base.Players]:
        """Initialise the network on one row of the batch; nothing is frozen."""
        row = jax.tree.map(lambda leaf: leaf[:1], batch)
        noisy = self._clean(row)
        params = self.model.init(rng, noisy, jnp.ones((1,)), row.conditions)["params"]
        return {"model": params}, {}

    def prepare(
        self,
        params: base.Players,
        frozen: base.Players,
        batch: Clip,
        *,
        rng: PRNGKeyArray,
    ) -> FlowBatch:
        """Draw times and noise for the whole batch and weigh its cells (eq. 3)."""
        cfg = self.config
        time_rng, ahead_rng, noise_rng, coin_rng = jax.random.split(rng, 4)
        x, conditions = self._clean(batch), batch.conditions
        t = times.sample_times(
            time_rng, len(x.latents), shift=cfg.shift, uniform=cfg.uniform_times
        )
        if self.motion_width and cfg.motion_ahead:
            # The runs of a sampler whose codes lead by 1 / uniform.
            ahead = times.shift_times(t, jax.random.uniform(ahead_rng, t.shape))
            conditions = conditions.replace(motion_time=ahead)
        noise = _draw_noise(noise_rng, x)
        noisy = path.interpolate(x, noise, motion_stream.all_times(t, conditions, x))
        moving = None
        if self.motion_width:
            moving = motion_stream.weigh(x.motion, batch.conditions)
            fed = motion_stream.feed_back(
                functools.partial(self._apply, params),
                x,
                noise,
                t,
                conditions,
                share=cfg.self_feeding,
                rng=coin_rng,
            )
            conditions = conditions.replace(motion=fed)
        weight, mouth = self._weigh(batch)
        rows = jnp.mean(jnp.sum(weight, axis=(1, 2, 3, 4)))
        return FlowBatch(
            noisy=noisy,
            target=path.velocity_target(x, noise),
            t=t,
            conditions=conditions,
            weight=weight / rows,
            mouth=mouth / rows,
            motion_weight=moving,
        )

    def _clean(self, batch: Clip) -> VideoMotion:
        """Return latents, and codes where the stream is on; zeros for clips without."""
        latents, motion = batch.target.latents, None
        if self.motion_width:
            motion = batch.target.motion
            frames = count_frames(latents.shape[1])
            if motion is None:
                motion = jnp.zeros((len(latents), frames, self.motion_width))
        return VideoMotion(latents, motion)

    def _weigh(
        self, batch: Clip
    ) -> tuple[Float[Array, "B F H W C"], Float[Array, "B F H W C"]]:
        x = batch.target.latents
        energy = jnp.asarray(self.energy, jnp.float32) ** self.config.energy_power
        weight = jnp.broadcast_to(energy[None, None, None, None, :], x.shape)
        conditions, prefix = batch.conditions, batch.conditions.prefix
        if prefix is not None:
            given = motion_stream.find_given(conditions, x.shape[1], prefix.shape[1])
            weight = weight * (1.0 - given[:, :, None, None, None])
        factor = jnp.ones_like(weight[..., :1])
        if batch.face_mask is not None:
            factor = factor + self.config.face_weight * batch.face_mask[..., None]
        if batch.mouth_mask is None:
            return weight * factor, jnp.zeros_like(weight)
        mask = batch.mouth_mask[..., None]
        return weight * (factor + self.config.mouth_weight * mask), weight * mask

    def loss(
        self,
        params: base.Players,
        frozen: base.Players,
        prepared: FlowBatch,
        *,
        rng: PRNGKeyArray,
        step: Int[Array, ""],
    ) -> tuple[Float[Array, ""], base.Metrics]:
        """Return eq. 4, and it by time and on the mouth."""
        return self.compare(self.predict(params, prepared), prepared)

    def predict(self, params: base.Players, prepared: FlowBatch) -> VideoMotion:
        """Return the network's velocity; with `motion_alone` zero for latents."""
        return self._apply(params, prepared.noisy, prepared.t, prepared.conditions)

    def _apply(
        self,
        params: base.Players,
        noisy: VideoMotion,
        t: Float[Array, " B"],
        conditions: Conditions,
    ) -> VideoMotion:
        variables = {"params": params["model"]}
        if not self.config.motion_alone:
            return self.model.apply(variables, noisy, t, conditions)
        codes = self.model.apply(
            variables, noisy.motion, t, conditions, method="predict_codes"
        )
        return VideoMotion(jnp.zeros_like(noisy.latents), codes)

    def compare(
        self, velocity: VideoMotion, prepared: FlowBatch
    ) -> tuple[Float[Array, ""], base.Metrics]:
        """Return eq. 4 of a velocity, and its metrics."""
        loss, metrics = jnp.zeros(()), {}
        if not self.config.motion_alone:
            loss, metrics = self._compare_latents(velocity, prepared)
        if self.motion_width:
            motion = self._compare_codes(velocity.motion, prepared)
            loss = loss + self.config.motion_weight * jnp.mean(motion)
            present = jnp.any(prepared.motion_weight > 0, axis=1)
            metrics["loss_motion"] = base.Mean(jnp.sum(motion), jnp.sum(present))
        return loss, metrics

    def _compare_latents(
        self, velocity: VideoMotion, prepared: FlowBatch
    ) -> tuple[Float[Array, ""], base.Metrics]:
        error = self._error(velocity.latents, prepared.target.latents, prepared.t)
        rows = jnp.sum(prepared.weight * error, axis=(1, 2, 3, 4))
        mouth = base.Mean(jnp.sum(prepared.mouth * error), jnp.sum(prepared.mouth))
        return jnp.mean(rows), {"loss_mouth": mouth, **_by_time(rows, prepared.t)}

    def _compare_codes(
        self, velocity: Float[Array, "B frames Dm"], prepared: FlowBatch
    ) -> Float[Array, " B"]:
        target, t = prepared.target.motion, prepared.conditions.code_time(prepared.t)
        error, weight = self._error(velocity, target, t), prepared.motion_weight
        return motion_stream.compare(velocity, target, error, t, weight)

    def _error(
        self,
        velocity: Float[Array, "B ..."],
        target: Float[Array, "B ..."],
        t: Float[Array, " B"],
    ) -> Float[Array, "B ..."]:
        """Return eq. 1 or 2."""
        error = jnp.square(velocity.astype(jnp.float32) - target)
        if self.config.loss_space == "velocity":
            return error
        scale = jnp.square(jnp.maximum(t, self.config.floor))
        return error * path.expand(scale, error)

    def count_tokens(self, batch: Clip) -> int:
        """Count generated tokens; condition rows are not counted."""
        return batch.target.latents[..., 0].size // self.patch**2


def _draw_noise(rng: PRNGKeyArray, x: VideoMotion) -> VideoMotion:
    video_rng, motion_rng = jax.random.split(rng)
    latents = jax.random.normal(video_rng, x.latents.shape, x.latents.dtype)
    if x.motion is None:
        return VideoMotion(latents)
    return VideoMotion(latents, jax.random.normal(motion_rng, x.motion.shape))


def _by_time(rows: Float[Array, " B"], t: Float[Array, " B"]) -> base.Metrics:
    """Split the loss by quarters of t: what is learnt at little and at much noise."""
    bucket = jnp.clip((t * TIME_BUCKETS).astype(int), 0, TIME_BUCKETS - 1)
    metrics = {}
    for i in range(TIME_BUCKETS):
        inside = (bucket == i).astype(rows.dtype)
        name = f"loss_t/{i / TIME_BUCKETS:.2f}-{(i + 1) / TIME_BUCKETS:.2f}"
        metrics[name] = base.Mean(jnp.sum(rows * inside), jnp.sum(inside))
    return metrics
