"""Human-aware losses: what frozen judges see of the clean estimate's face.

Four families (Avatar V 2.1, 3.3), each with a weight and a metric line, all on pictures
decoded from the clean estimate x^ and from the true latents x in the same way:

  (1) identity    1 - cos(E(x^), E(x))             E: face embedding
  (2) motion      mean |M(x^) - M(x)|              M: normalised motion codes
  (3) sync        |V(x^) - A(speech)|              distance of audio-visual embeddings
  (4) perceptual  mean w (Q(x^) - Q(x))^2          Q: unit feature maps, w: mouth

Only clips with t < `largest_time` count. Of these the first `clips` are judged, of
each a short run of latent frames, of those only a square of cells around the face:
what a loss costs does not grow with the picture. Pictures of up to 32 cells are taken
for portraits; larger ones need `view` and `crop`. Weights rise evenly over the first
`ramp_steps` steps.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from avatar_jax.flow import path
from avatar_jax.models import judges
from avatar_jax.models.codec import LatentCodec
from avatar_jax.objectives import base, portraits
from avatar_jax.types import FRAMES_PER_LATENT, Leaf

KINDS = ("identity", "motion", "sync", "quality")
EVERY = 2  # frames; only sync looks at each


@dataclasses.dataclass(frozen=True)
class HumanAwareConfig:
    """Weights of eqs. 1-4, and what is decoded.

    Attributes:
      ramp_steps: over which the weights rise; the first third of the stage.
      largest_time: beyond it clips do not count. Choice: 0.8, not the 0.5 of the
        design: where pictures hardly show the pose they learn to obey the codes.
      clips: of a batch that are judged.
      latents: of each clip that are decoded; their frames are one window of sync.
      view: cells, side of the square that the judges see, a portrait of the face; 0:
        the picture is the portrait, and its shorter side is meant.
      crop: cells, side of the part of it that is decoded; beyond it edges repeat. 0:
        the largest that scales to whole pixels, of three quarters of the view.
      mouth_weight: extra weight of the mouth in eq. 4. Choice: of the mouth alone, as
        eyes have a judge of their own in the motion codes.
    """

    identity: float = 0.05
    motion: float = 0.05
    sync: float = 0.03
    perceptual: float = 0.1
    ramp_steps: int = 1000
    largest_time: float = 0.8
    clips: int = 8
    latents: int = 2
    view: int = 0
    crop: int = 0
    mouth_weight: float = 2.0

    def __post_init__(self) -> None:
        if self.view == 0 and self.crop == 0:
            return
        if not 1 <= self.crop <= self.view or judges.VIEW * self.crop % self.view:
            raise ValueError(
                f"crop={self.crop} and view={self.view}; use a crop of at most the "
                f"view, and {judges.VIEW} crop / view a whole number, or 0 for both."
            )


@struct.dataclass
class Faces:
    """What the judges look at: clips, each one run of latents with its speech."""

    noisy: Leaf  # B F H W C
    velocity: Leaf  # B F H W C, the network's
    target: Leaf  # B F H W C, the true velocity
    t: Leaf  # B
    speech: Leaf  # B frames Da, driving speech
    speech_valid: Leaf  # B bool
    mouth_mask: Leaf  # B F H W
    face_mask: Leaf  # B F H W
    first: Leaf  # B int, first latent that is decoded
    judged: Leaf  # B bool, of `choose`


def load_judges() -> dict:
    """Return the weights of the judges of role `training`, by kind."""
    return {kind: judges.load(judges.asset(kind, "training")).params for kind in KINDS}


def choose(t: Float[Array, " B"], config: HumanAwareConfig) -> Bool[Array, " B"]:
    """Say which clips of a whole batch are judged: the first that are clear enough."""
    clear = t < config.largest_time
    return clear & (jnp.cumsum(clear) <= config.clips)


def compare(
    params: dict,
    faces: Faces,
    codec: LatentCodec,
    config: HumanAwareConfig,
    step: Int[Array, ""],
) -> tuple[Float[Array, ""], base.Metrics]:
    """Return the weighted sum of eqs. 1-4 as a mean over all clips, and metrics.

    Args:
      params: judges' weights by kind.
      faces: of the whole batch, or of a part of it.
    """
    batch, *_, height, width = faces.face_mask.shape
    side, crop = portraits.choose_sides(config.view, config.crop, (height, width))
    faces = _gather(faces, min(config.clips, batch))
    counts = faces.judged.astype(jnp.float32)
    view = portraits.locate(
        faces.face_mask, faces.first, latents=config.latents, side=side, crop=crop
    )
    made, true = (
        portraits.show(codec.decode_clips(portraits.cut(latents, view)), view)
        for latents in _estimates(faces)
    )
    cells = portraits.cut(faces.mouth_mask, view)[..., None]
    mouth = portraits.show(jnp.repeat(cells, FRAMES_PER_LATENT, axis=1), view)
    terms = _judge(params, made, true, mouth, faces, config)
    ramp = jnp.minimum(step / max(config.ramp_steps, 1), 1.0)
    total, metrics = jnp.zeros(()), {}
    for name, (values, present) in terms.items():
        present = present * counts
        total = total + getattr(config, name) * jnp.sum(values * present)
        metrics[f"human/{name}"] = base.Mean(
            jnp.sum(values * present), jnp.sum(present)
        )
    return ramp * total / batch, metrics


def _gather(faces: Faces, count: int) -> Faces:
    """Keep so many clips, those first that are judged."""
    order = jnp.argsort(~faces.judged, stable=True)[:count]
    return jax.tree.map(lambda leaf: leaf[order], faces)


def _estimates(faces: Faces) -> tuple[Array, Array]:
    """Return the clean estimate and the true latents."""
    true = path.clean_estimate(faces.noisy, faces.target, faces.t)
    return path.clean_estimate(faces.noisy, faces.velocity, faces.t), true


def _judge(
    params: dict,
    made: Float[Array, "B frames 64 64 3"],
    true: Float[Array, "B frames 64 64 3"],
    mouth: Float[Array, "B frames 64 64 1"],
    faces: Faces,
    config: HumanAwareConfig,
) -> dict[str, tuple[Float[Array, " B"], Array]]:
    """Return each loss of each clip, and whether it is there."""
    always = jnp.ones(made.shape[:1])
    few, few_true, few_mouth = (v[:, ::EVERY] for v in (made, true, mouth))
    shape = few.shape[:2]
    flat, flat_true, flat_mouth = (
        v.reshape(-1, *v.shape[2:]) for v in (few, few_true, few_mouth)
    )

    def per_clip(values: Float[Array, " BF"]) -> Float[Array, " B"]:
        return values.reshape(shape).mean(1)

    embed = functools.partial(judges.embed_faces, params["identity"])
    read = functools.partial(judges.read_motion, params["motion"])
    cosine = jnp.sum(embed(flat) * jax.lax.stop_gradient(embed(flat_true)), -1)
    codes = jnp.abs(read(flat) - jax.lax.stop_gradient(read(flat_true))).mean(-1)
    seen = _perceive(params["quality"], flat, flat_true, flat_mouth, config)
    start = FRAMES_PER_LATENT * faces.first - FRAMES_PER_LATENT + 1
    rows = jax.vmap(functools.partial(portraits.take_run, count=made.shape[1]))
    distance = judges.sync_distance(params["sync"], made, rows(faces.speech, start))
    return {
        "identity": (per_clip(1 - cosine), always),
        "motion": (per_clip(codes), always),
        "sync": (distance, faces.speech_valid.astype(jnp.float32)),
        "perceptual": (per_clip(seen), always),
    }


def _perceive(
    params: dict,
    made: Float[Array, "B 64 64 3"],
    true: Float[Array, "B 64 64 3"],
    mouth: Float[Array, "B 64 64 1"],
    config: HumanAwareConfig,
) -> Float[Array, " B"]:
    """Return eq. 4 over all feature maps."""
    losses = []
    for ours, theirs in zip(
        judges.quality_features(params, made),
        judges.quality_features(params, true),
        strict=True,
    ):
        shape = (len(mouth), *ours.shape[1:3], 1)
        weight = 1 + config.mouth_weight * jax.image.resize(mouth, shape, "linear")
        off = jnp.square(ours - jax.lax.stop_gradient(theirs)) * weight
        losses.append(off.mean((1, 2, 3)) / weight.mean((1, 2, 3)))
    return jnp.stack(losses).mean(0)
