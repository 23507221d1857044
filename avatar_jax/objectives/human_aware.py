"""Human-aware losses: what frozen judges see of the clean estimate's face.

Four families (Avatar V 2.1, 3.3), each with a weight and a metric line, all on pictures
decoded from the clean estimate x^ and from the true latents x in the same way:

  (1) identity    1 - cos(E(x^), E(x))             E: face embedding
  (2) motion      mean |M(x^) - M(x)|              M: normalised motion codes
  (3) sync        |V(x^) - A(speech)|              distance of audio-visual embeddings
  (4) perceptual  mean w (Q(x^) - Q(x))^2          Q: unit feature maps, w: mouth

Only clips with t < `largest_time` count. Of these the first `clips` are decoded, of
each a short run of latent frames, of those only a square of cells around the face:
what a loss costs does not grow with the picture. Weights rise evenly over the first
`ramp_steps` steps.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from avatar_jax.flow import path
from avatar_jax.models import judges
from avatar_jax.models.codec import LatentCodec
from avatar_jax.objectives import base
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
      clips: of a batch that are decoded.
      latents: of each clip that are decoded; their frames are one window of sync.
      view: cells, side of the square that the judges see, a portrait of the face.
      crop: cells, side of the part of it that is decoded; beyond it edges repeat.
      mouth_weight: extra weight of the mouth in eq. 4.
    """

    identity: float = 0.05
    motion: float = 0.05
    sync: float = 0.03
    perceptual: float = 0.1
    ramp_steps: int = 1000
    largest_time: float = 0.8
    clips: int = 8
    latents: int = 2
    view: int = 8
    crop: int = 6
    mouth_weight: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.view or judges.VIEW * self.crop % self.view:
            raise ValueError(
                f"crop={self.crop} and view={self.view}; use a crop of at most the "
                f"view, and {judges.VIEW} crop / view a whole number."
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


@struct.dataclass
class _View:
    """Where the decoded square lies: cells of the latents, pixels of the view."""

    row: Leaf  # B int
    column: Leaf
    view_row: Leaf
    view_column: Leaf


def load_judges() -> dict:
    """Return the weights of the judges of role `training`, by kind."""
    return {kind: judges.load(judges.asset(kind, "training")).params for kind in KINDS}


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
      faces: of the whole batch.
    """
    batch = len(faces.t)
    faces = _choose(faces, min(config.clips, batch), config.largest_time)
    counts = (faces.t < config.largest_time).astype(jnp.float32)
    view = _locate(faces, config)
    made, true = (
        _decode(latents, faces, view, codec, config) for latents in _estimates(faces)
    )
    mouth = _look(faces.mouth_mask, faces, view, config)
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


def _choose(faces: Faces, count: int, largest_time: float) -> Faces:
    """Keep the first clips that count; where they are too few, also others."""
    order = jnp.argsort(faces.t >= largest_time)[:count]
    return jax.tree.map(lambda leaf: leaf[order], faces)


def _estimates(faces: Faces) -> tuple[Array, Array]:
    """Return the clean estimate and the true latents."""
    true = path.clean_estimate(faces.noisy, faces.target, faces.t)
    return path.clean_estimate(faces.noisy, faces.velocity, faces.t), true


def _locate(faces: Faces, config: HumanAwareConfig) -> _View:
    """Centre both squares on the face, inside the picture."""
    run = jax.vmap(functools.partial(_take_run, count=config.latents))
    mask = run(faces.face_mask, faces.first).sum(1)  # B H W
    sides, places = mask.shape[1:], []
    for axis, side in enumerate(sides):
        share = mask.sum(2 - axis)
        total = jnp.maximum(share.sum(1), 1e-6)
        centre = (share * (jnp.arange(side) + 0.5)[None]).sum(1) / total
        places += [
            _place(centre, side, extent) for extent in (config.view, config.crop)
        ]
    view_row, row, view_column, column = places
    inside = (row - view_row, column - view_column)
    pixels = (cells * judges.VIEW // config.view for cells in inside)
    return _View(row, column, *pixels)


def _place(centre: Float[Array, " B"], side: int, extent: int) -> Int[Array, " B"]:
    start = jnp.round(centre - extent / 2).astype(int)
    return jnp.clip(start, 0, max(side - extent, 0))


def _take_run(leaf: Float[Array, "F ..."], first: Int[Array, ""], count: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(leaf, first, count)


def _cut(
    leaf: Float[Array, "B F H W ..."],
    faces: Faces,
    view: _View,
    config: HumanAwareConfig,
) -> Float[Array, "B F2 Y X ..."]:
    """Cut the run of latents and the square of cells that is decoded."""
    crop = config.crop

    def one(leaf: Array, first: Array, row: Array, column: Array) -> Array:
        rest = (jnp.zeros((), int),) * (leaf.ndim - 3)
        sizes = (config.latents, crop, crop, *leaf.shape[3:])
        return jax.lax.dynamic_slice(leaf, (first, row, column, *rest), sizes)

    return jax.vmap(one)(leaf, faces.first, view.row, view.column)


def _decode(
    latents: Float[Array, "B F H W C"],
    faces: Faces,
    view: _View,
    codec: LatentCodec,
    config: HumanAwareConfig,
) -> Float[Array, "B frames 64 64 3"]:
    """Decode the face alone and show it as the judges see portraits."""
    video = codec.decode_clips(_cut(latents, faces, view, config))
    return _show(video, view, config)


def _look(
    mask: Float[Array, "B F H W"], faces: Faces, view: _View, config: HumanAwareConfig
) -> Float[Array, "B frames 64 64 1"]:
    """Show a mask of cells in the same way."""
    cells = jnp.repeat(_cut(mask, faces, view, config), FRAMES_PER_LATENT, axis=1)
    return _show(cells[..., None], view, config)


def _show(
    video: Float[Array, "B frames Y X c"], view: _View, config: HumanAwareConfig
) -> Float[Array, "B frames 64 64 c"]:
    """Scale the decoded square to the view and repeat its edges up to the view's."""
    side = judges.VIEW * config.crop // config.view
    batch, frames, *_, channels = video.shape
    small = jax.image.resize(video, (batch, frames, side, side, channels), "linear")
    index = jnp.arange(judges.VIEW)

    def one(video: Array, row: Array, column: Array) -> Array:
        rows = jnp.clip(index - row, 0, side - 1)
        columns = jnp.clip(index - column, 0, side - 1)
        return video[:, rows][:, :, columns]

    return jax.vmap(one)(small, view.view_row, view.view_column)


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
    rows = jax.vmap(functools.partial(_take_run, count=made.shape[1]))
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
