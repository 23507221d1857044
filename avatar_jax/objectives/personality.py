"""Stage 3: flow matching on pairs, and human-aware losses on its clean estimate.

One forward pass serves both. The frozen player `judges` holds the weights of the
judges of role `training`; no evaluation judge is ever seen here.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from avatar_jax.models.codec import LatentCodec
from avatar_jax.objectives import base, flow_matching, human_aware
from avatar_jax.types import Clip, Leaf


@struct.dataclass
class PersonalityBatch:
    """A batch of flow matching, and where the judges shall look."""

    flow: flow_matching.FlowBatch
    mouth_mask: Leaf  # B F H W
    face_mask: Leaf  # B F H W
    first: Leaf  # B int, first of the latents that are decoded
    judged: Leaf  # B bool, clips whose face is judged


@dataclasses.dataclass(frozen=True, eq=False)
class Personality:
    """The objective of stage 3; its one trained player is `model`."""

    flow: flow_matching.FlowMatching
    codec: LatentCodec
    config: human_aware.HumanAwareConfig

    def init(self, rng: PRNGKeyArray, batch: Clip) -> tuple[base.Players, base.Players]:
        """Initialise the network; the judges are frozen."""
        players, _ = self.flow.init(rng, batch)
        loaded = jax.tree.map(jnp.asarray, human_aware.load_judges())
        return players, {"judges": loaded}

    def prepare(
        self,
        params: base.Players,
        frozen: base.Players,
        batch: Clip,
        *,
        rng: PRNGKeyArray,
    ) -> PersonalityBatch:
        """Draw times and noise; choose the clips and latents that are judged.

        The first two may be a given prefix, on which nothing is learnt.
        """
        flow_rng, first_rng = jax.random.split(rng)
        rows, frames = batch.target.latents.shape[:2]
        last = frames - self.config.latents
        if last < 2:
            raise ValueError(
                f"Clips of {frames} latents are too short to decode "
                f"{self.config.latents} after a prefix; use longer buckets."
            )
        flow = self.flow.prepare(params, frozen, batch, rng=flow_rng)
        return PersonalityBatch(
            flow=flow,
            mouth_mask=batch.mouth_mask,
            face_mask=batch.face_mask,
            first=jax.random.randint(first_rng, (rows,), 2, last + 1),
            judged=human_aware.choose(flow.t, self.config),
        )

    def loss(
        self,
        params: base.Players,
        frozen: base.Players,
        prepared: PersonalityBatch,
        *,
        rng: PRNGKeyArray,
        step: Int[Array, ""],
    ) -> tuple[Float[Array, ""], base.Metrics]:
        """Return the sum of the flow loss and the ramped human-aware losses."""
        flow = prepared.flow
        velocity = self.flow.predict(params, flow)
        loss, metrics = self.flow.compare(velocity, flow)
        faces = human_aware.Faces(
            noisy=flow.noisy.latents,
            velocity=velocity.latents.astype(jnp.float32),
            target=flow.target.latents,
            t=flow.t,
            speech=flow.conditions.audio,
            speech_valid=flow.conditions.audio_valid,
            mouth_mask=prepared.mouth_mask,
            face_mask=prepared.face_mask,
            first=prepared.first,
            judged=prepared.judged,
        )
        human, seen = human_aware.compare(
            frozen["judges"], faces, self.codec, self.config, step
        )
        return loss + human, {"loss_flow": _one(loss), **metrics, **seen}

    def count_tokens(self, batch: Clip) -> int:
        """Count generated tokens; condition rows are not counted."""
        return self.flow.count_tokens(batch)


def _one(value: Float[Array, ""]) -> base.Mean:
    return base.Mean(value, jnp.ones(()))
