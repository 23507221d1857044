"""A weights file, ready to sample from: network, codec and encoders that it names."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from avatar_jax import checkpoint
from avatar_jax.flow import guidance
from avatar_jax.models import codec, dit, judges, speech, text
from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.sampling import chunk, encoders
from avatar_jax.types import (
    Conditions,
    InputError,
    Reference,
    VideoMotion,
    count_frames,
)

TINY_WEIGHTS = Path(__file__).resolve().parents[1] / "assets" / "tiny.safetensors"


@dataclasses.dataclass(frozen=True)
class Card:
    """What the metadata of a weights file says; `to_metadata` is its written form."""

    config: DiTConfig
    size: int  # pixels, height of the picture
    chunk_latents: int  # F of one chunk
    width: int = 0  # pixels of the picture; 0: it is a square
    codec: str = "dct64"
    speech: str = "log_mel"
    text: str = "bytes"
    text_length: int = 64
    reference_latents: int = 0  # of the person's video, at most; 0: the still alone
    segment_latents: int = 12  # of one reference segment, at most
    face_crops: int = 0  # of the reference, encoded
    face_size: int = 64  # pixels, side of an encoded face crop
    identity: str = ""  # encoder of face embeddings; "procedural": the training judge
    motion: str = ""  # encoder of motion codes; "procedural": the training judge
    motion_mean: tuple[float, ...] = ()  # codes are given as (code - mean) / std
    motion_std: tuple[float, ...] = ()
    blank_still: bool = False  # trained on stills whose person is blanked
    # What these weights are best sampled with, as validation people showed.
    num_steps: int = 24
    overshoot: float = 0.0
    audio_guidance: float = 1.0
    shift: float = 1.0
    motion_lead: float = 1.0
    motion_guidance: float = 1.0
    text_guidance: float = 1.0
    solver: chunk.Solver = "overshoot"
    latent_dtype: chunk.Digits = "float32"

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.overshoot < 0 or self.audio_guidance < 1:
            raise ValueError(
                f"num_steps={self.num_steps}, overshoot={self.overshoot}, "
                f"audio_guidance={self.audio_guidance}; use at least 1, 0 and 1."
            )
        if not self.shift > 0 or min(self.motion_lead, self.motion_guidance) < 1:
            raise ValueError(
                f"shift={self.shift}, motion_lead={self.motion_lead}, motion_guidance="
                f"{self.motion_guidance}; use above 0, and at least 1 and 1."
            )
        chunk.Settings(  # refuses what does not go together
            solver=self.solver, overshoot=self.overshoot, latent_dtype=self.latent_dtype
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the picture, in pixels."""
        return self.size, self.width or self.size

    def to_metadata(self) -> dict:
        """Return plain values for `checkpoint.save_weights`."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Everything that turns prepared conditions into pixels."""

    card: Card
    model: dit.AvatarDiT
    params: dict
    codec: codec.LatentCodec
    speech: speech.SpeechEncoder
    text: text.TextEncoder
    identity: judges.Judge | None = None  # encoder of face embeddings, if any
    motion: judges.Judge | None = None  # encoder of motion codes, if any

    @property
    def patch_side(self) -> int:
        """Pixels of a side of the patch that is one row of the network."""
        return self.card.config.patch * self.codec.spatial_stride


def choose_settings(
    card: Card,
    *,
    num_steps: int | None = None,
    solver: chunk.Solver | None = None,
    overshoot: float | None = None,
    audio_guidance: float | None = None,
    text_guidance: float | None = None,
    shift: float | None = None,
    motion_lead: float | None = None,
    motion_guidance: float | None = None,
) -> chunk.Settings:
    """Return the sampler's settings; what is None is the weights' own choice.

    Raises:
      InputError: guidance by motion codes that the weights do not know, or overshoot
        of another solver.
    """
    if motion_guidance is None:
        motion_guidance = card.motion_guidance
    if motion_guidance != 1 and not card.motion:
        raise InputError(
            "expected a motion guidance of 1, since these weights know no motion "
            f"codes, came {motion_guidance}; leave it at 1."
        )
    own = solver is None or solver == card.solver
    solver = card.solver if solver is None else solver
    if solver != "overshoot" and overshoot:
        raise InputError(
            f"expected overshoot of the solver overshoot, came {overshoot} with "
            f"{solver}; leave it out, or choose the other solver."
        )
    if overshoot is None:
        overshoot = card.overshoot if own else 0.0
    return chunk.Settings(
        num_steps=card.num_steps if num_steps is None else num_steps,
        shift=card.shift if shift is None else shift,
        solver=solver,
        motion_lead=card.motion_lead if motion_lead is None else motion_lead,
        overshoot=overshoot,
        latent_dtype=card.latent_dtype if own else "float32",
        scales=guidance.Scales(
            audio=card.audio_guidance if audio_guidance is None else audio_guidance,
            text=card.text_guidance if text_guidance is None else text_guidance,
            motion=motion_guidance,
        ),
    )


def load(path: str | Path, card: Card | None = None) -> Pretrained:
    """Load a weights file written with a `Card`.

    Args:
      card: what the weights are, in place of what they say.

    Raises:
      InputError: no weights file, one of another kind, or one whose arrays do not fit
        its own model config; names the first missing, unexpected and mis-shaped key.
        Or an encoder that is not known or does not fit.
    """
    params, metadata = checkpoint.load_weights(path)
    card = read_card(metadata, path) if card is None else card
    check_params(expected_shapes(dit.AvatarDiT(card.config), card), params, path)
    return assemble(card, params, path)


def assemble(card: Card, params: dict, path: str | Path = "this card") -> Pretrained:
    """Join a network and the encoders that its card names; `path` is for errors."""
    motion = encoders.load_judge("motion", card.motion)
    if motion is not None:
        _check_codes(card, motion, path)
    return Pretrained(
        card=card,
        model=dit.AvatarDiT(card.config),
        params=jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params),
        codec=encoders.make_codec(card.codec),
        speech=encoders.make_speech(card.speech),
        text=encoders.make_text(
            card.text, length=card.text_length, width=card.config.text_width
        ),
        identity=encoders.load_judge("identity", card.identity),
        motion=motion,
    )


def read_card(metadata: dict, path: str | Path) -> Card:
    """Build the card from metadata; unknown and missing fields are named."""
    config = _build(DiTConfig, metadata.get("config", {}), path)
    return _build(Card, {**metadata, "config": config}, path)


def check_parent(config: DiTConfig, metadata: dict, path: str | Path) -> None:
    """Raise InputError where weights to start from belong to another kind of model.

    Only fields that no shape shows are compared; parts may be new.
    """
    parent = metadata.get("config", {})
    for name in ("heads", "patch", "prediction", "rotary_scale", "spatial_stride"):
        if name in parent and parent[name] != getattr(config, name):
            raise InputError(
                f"{path} was trained with model.{name}={parent[name]!r}, this run has "
                f"{getattr(config, name)!r}; use the same, or other weights."
            )


def expected_shapes(model: dit.AvatarDiT, card: Card) -> dict:
    """Return the parameter tree that the model config asks for, as shapes."""
    inputs = jax.eval_shape(lambda: _example_inputs(card))
    return jax.eval_shape(
        lambda rng, *args: model.init(rng, *args)["params"], jax.random.key(0), *inputs
    )


def check_params(expected: dict, params: dict, path: str | Path) -> None:
    """Raise InputError unless both trees have the same keys and shapes."""
    want = traverse_util.flatten_dict(expected, sep="/")
    have = traverse_util.flatten_dict(params, sep="/")
    missing = next((key for key in want if key not in have), None)
    unexpected = next((key for key in have if key not in want), None)
    shaped = next((k for k in want if k in have and want[k].shape != have[k].shape), "")
    wrong = [f"first missing {missing}"] if missing else []
    wrong += [f"first unexpected {unexpected}"] if unexpected else []
    if shaped:
        wrong += [
            f"first mis-shaped {shaped}: {want[shaped].shape} expected, "
            f"{have[shaped].shape} came"
        ]
    if wrong:
        raise InputError(
            f"{path} does not fit the model config that it names ({'; '.join(wrong)}); "
            "give a file that `python -m avatar_jax.train` wrote."
        )


def _example_inputs(card: Card) -> tuple[VideoMotion, jax.Array, Conditions]:
    """Make inputs of the smallest shape in which every part of the model is used."""
    cfg, side = card.config, card.config.patch
    latents = jnp.zeros((1, 1, side, side, cfg.channels))
    prompt = jnp.zeros((1, 1, cfg.text_width))
    motion = None
    if cfg.motion_width:
        motion = jnp.zeros((1, count_frames(1), cfg.motion_width))
    conditions = Conditions(
        text=prompt,
        null_text=prompt,
        audio=jnp.zeros((1, 1, cfg.audio_width)) if cfg.audio_width else None,
        still=latents,
        reference=_example_reference(cfg, latents) if cfg.reference else None,
    )
    return VideoMotion(latents, motion), jnp.ones((1,)), conditions


def _example_reference(cfg: DiTConfig, latents: jax.Array) -> Reference:
    rows = jnp.zeros((1, 4, 1))
    return Reference(
        latents=latents,
        valid=jnp.ones((1, 1, 1, 1), bool),
        segment_ids=jnp.zeros((1, 1), jnp.int32),
        audio=rows.repeat(cfg.reference_audio_width, -1)
        if cfg.reference_audio_width
        else None,
        motion=rows.repeat(cfg.motion_width, -1) if cfg.motion_width else None,
        identity=jnp.zeros((1, cfg.identity_width)) if cfg.identity_width else None,
        faces=latents if cfg.faces else None,
    )


def _build(kind: type, fields: dict, path: str | Path) -> Any:
    """Build a frozen dataclass from metadata, or say which field is in the way."""
    known = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(fields) - set(known))
    absent = [
        name
        for name, field in known.items()
        if name not in fields and field.default is dataclasses.MISSING
    ]
    if unknown or absent:
        problem = f"unknown {unknown[0]}" if unknown else f"no {absent[0]}"
        raise InputError(
            f"the metadata of {path} has {problem} in {kind.__name__}; give weights "
            "that `python -m avatar_jax.train` of this version wrote."
        )
    # JSON knows no tuples, and a config must be hashable.
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return kind(**fields)


def _check_codes(card: Card, motion: judges.Judge, path: str | Path) -> None:
    """Raise InputError unless the codes that are read are those of the model."""
    came = len(motion.names), len(card.motion_mean), len(card.motion_std)
    width = card.config.motion_width
    if width is not None and set(came) != {width}:
        raise InputError(
            f"{path} has a model of {width} motion codes, an encoder of {came[0]}, and "
            f"{came[1]} means and {came[2]} deviations for them; give as many of each."
        )
