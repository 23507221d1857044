"""Flow matching: stages 1 (text, still) and 2 (speech, still, prefix).

With times t, noise e and the path and velocity u of `flow.path`:

  (1) error  = (v(x_t, t, conditions) - u)^2                       loss_space "velocity"
  (2) error  = max(t, floor)^2 (v - u)^2 = (x^ - x)^2              loss_space "clean"
  (3) weight = energy^p (1 + mouth_weight * mouth), 0 on prefix latents
  (4) loss   = sum(weight * error) / sum(weight)

(2) holds for t > floor where the network estimates x^ and returns the velocity
v = (x_t - x^) / max(t, floor). Small models learn lips with it in a fifth of the steps.
Dropped conditions arrive as such in the batch: which stage it is, the data decide.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from avatar_jax.flow import path, times
from avatar_jax.objectives import base
from avatar_jax.types import Clip, Conditions, Leaf, VideoMotion

TIME_BUCKETS = 4


@dataclasses.dataclass(frozen=True)
class FlowMatchingConfig:
    """Weights of eqs. 2-4.

    Attributes:
      shift: of the sampled times; 1 at TINY, 5 at 480p and above.
      loss_space: "velocity" (eq. 1) or "clean" (eq. 2).
      floor: of eq. 2; the model's own.
      energy_power: p of eq. 3; 0 weighs all (whitened) channels alike. Choice: 1, since
        whitening lifts faint, spiky channels to the variance of the strong ones.
      mouth_weight: extra weight of a latent cell that is all mouth.
    """

    shift: float = 1.0
    loss_space: str = "velocity"
    floor: float = 0.05
    energy_power: float = 1.0
    mouth_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.loss_space not in ("velocity", "clean"):
            raise ValueError(
                f"loss_space={self.loss_space!r}; use 'velocity' or 'clean'."
            )


@struct.dataclass
class FlowBatch:
    """What eq. 4 needs of a batch; weights already divided by their mean row sum."""

    noisy: VideoMotion
    target: Leaf  # B F H W C, velocity u
    t: Leaf  # B
    conditions: Conditions
    weight: Leaf  # B F H W C
    mouth: Leaf  # B F H W C, the part of `weight` that is mouth


@dataclasses.dataclass(frozen=True, eq=False)
class FlowMatching:
    """The objective of stages 1 and 2; its one player is `model`.

    Attributes:
      model: called as `model(noisy, t, conditions) -> VideoMotion`, a velocity.
      energy: the codec's standard deviation per channel, largest 1.
      patch: latent cells per token side, for counting tokens.
    """

    model: nn.Module
    energy: Float[np.ndarray, " C"]
    config: FlowMatchingConfig = FlowMatchingConfig()
    patch: int = 2

    def init(self, rng: PRNGKeyArray, batch: Clip) -> tuple[base.Players, base.Players]:
        """Initialise the network on one row of the batch; nothing is frozen."""
        row = jax.tree.map(lambda leaf: leaf[:1], batch)
        noisy = VideoMotion(latents=row.target.latents)
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
        time_rng, noise_rng = jax.random.split(rng)
        x = batch.target.latents
        t = times.sample_times(time_rng, x.shape[0], shift=self.config.shift)
        noise = jax.random.normal(noise_rng, x.shape, x.dtype)
        weight, mouth = self._weigh(batch)
        rows = jnp.mean(jnp.sum(weight, axis=(1, 2, 3, 4)))
        return FlowBatch(
            noisy=VideoMotion(latents=path.interpolate(x, noise, t)),
            target=path.velocity_target(x, noise),
            t=t,
            conditions=batch.conditions,
            weight=weight / rows,
            mouth=mouth / rows,
        )

    def _weigh(
        self, batch: Clip
    ) -> tuple[Float[Array, "B F H W C"], Float[Array, "B F H W C"]]:
        x = batch.target.latents
        energy = jnp.asarray(self.energy, jnp.float32) ** self.config.energy_power
        weight = jnp.broadcast_to(energy[None, None, None, None, :], x.shape)
        conditions = batch.conditions
        if conditions.prefix is not None:
            frames = jnp.arange(x.shape[1]) < conditions.prefix.shape[1]
            valid = conditions.prefix_valid
            valid = jnp.ones(x.shape[:1], bool) if valid is None else valid
            given = valid.astype(bool)[:, None] & frames[None, :]
            weight = weight * (1.0 - given[:, :, None, None, None])
        if batch.mouth_mask is None:
            return weight, jnp.zeros_like(weight)
        mask = batch.mouth_mask[..., None]
        return weight * (1 + self.config.mouth_weight * mask), weight * mask

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
        velocity = self.model.apply(
            {"params": params["model"]}, prepared.noisy, prepared.t, prepared.conditions
        )
        error = jnp.square(velocity.latents.astype(jnp.float32) - prepared.target)
        if self.config.loss_space == "clean":
            scale = jnp.square(jnp.maximum(prepared.t, self.config.floor))
            error = error * path.expand(scale, error)
        rows = jnp.sum(prepared.weight * error, axis=(1, 2, 3, 4))
        mouth = base.Mean(jnp.sum(prepared.mouth * error), jnp.sum(prepared.mouth))
        return jnp.mean(rows), {"loss_mouth": mouth, **_by_time(rows, prepared.t)}

    def count_tokens(self, batch: Clip) -> int:
        """Count generated tokens; condition rows are not counted."""
        return batch.target.latents[..., 0].size // self.patch**2


def _by_time(rows: Float[Array, " B"], t: Float[Array, " B"]) -> base.Metrics:
    """Split the loss by quarters of t: what is learnt at little and at much noise."""
    bucket = jnp.clip((t * TIME_BUCKETS).astype(int), 0, TIME_BUCKETS - 1)
    metrics = {}
    for i in range(TIME_BUCKETS):
        inside = (bucket == i).astype(rows.dtype)
        name = f"loss_t/{i / TIME_BUCKETS:.2f}-{(i + 1) / TIME_BUCKETS:.2f}"
        metrics[name] = base.Mean(jnp.sum(rows * inside), jnp.sum(inside))
    return metrics
