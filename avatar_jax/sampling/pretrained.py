"""A weights file, ready to sample from: network, codec and encoders that it names."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding

from avatar_jax import checkpoint
from avatar_jax.flow import guidance
from avatar_jax.models import codec, dit, example_inputs, judges, speech, text
from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.sampling import chunk, encoders, placement
from avatar_jax.types import InputError

Protocol = Literal["avatar", "tavr"]

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
    protocol: Protocol = "avatar"  # of preparing and of cutting into chunks
    negative_prompt: str = ""  # for text guidance, where the user gives none

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
        if self.protocol not in get_args(Protocol):
            raise ValueError(
                f"protocol={self.protocol!r}; use one of {get_args(Protocol)}."
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
    reference_speech: speech.SpeechEncoder  # of the reference's own
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


def load(
    path: str | Path,
    card: Card | None = None,
    folder: str | Path | None = None,
    mesh: Mesh | None = None,
) -> Pretrained:
    """Load weights: a file written with a `Card`, or a folder of converted ones.

    Args:
      card: what the weights are, in place of what they say.
      folder: of encoders' weights (`encoders`); None: where the weights lie.
      mesh: to spread the network over (`placement`); None: one device.

    Raises:
      InputError: no weights file, one of another kind, or one whose arrays do not fit
        its own model config; names the first missing, unexpected and mis-shaped key.
        Or an encoder that is not known or does not fit.
    """
    spread = mesh is not None and checkpoint.is_converted(path)
    read = checkpoint.open_converted if spread else checkpoint.load_weights
    params, metadata = read(path)
    card = read_card(metadata, path) if card is None else card
    check_params(expected_shapes(dit.AvatarDiT(card.config), card), params, path)
    return assemble(card, params, path, folder, mesh)


def assemble(
    card: Card,
    params: dict,
    path: str | Path = "this card",
    folder: str | Path | None = None,
    mesh: Mesh | None = None,
) -> Pretrained:
    """Join a network and the encoders that its card names.

    Args:
      path: of the weights, for errors, and where encoders' weights lie beside.
      folder: of encoders' weights, where they lie elsewhere.
      mesh: to spread the network over; None: one device.
    """
    params = _place(card.config, params, mesh)
    beside = Path(path).parent if folder is None else Path(folder)
    speech = encoders.make_speech(card.speech, beside)
    null = None
    if card.config.reference_audio_width:
        null = np.asarray(params["embed"]["reference_audio"]["null"], np.float32)
    motion = encoders.load_judge("motion", card.motion)
    if motion is not None:
        _check_codes(card, motion, path)
    return Pretrained(
        card=card,
        model=dit.AvatarDiT(card.config),
        params=params,
        codec=encoders.make_codec(card.codec, beside),
        speech=speech,
        text=encoders.make_text(
            card.text, beside, length=card.text_length, width=card.config.text_width
        ),
        reference_speech=encoders.make_reference_speech(speech, null),
        identity=encoders.load_judge("identity", card.identity),
        motion=motion,
    )


def read_card(metadata: dict, path: str | Path) -> Card:
    """Build the card from metadata; unknown and missing fields are named."""
    config = encoders.build(DiTConfig, metadata.get("config", {}), path)
    return encoders.build(Card, {**metadata, "config": config}, path)


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
    inputs = jax.eval_shape(lambda: example_inputs.make(card.config))
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


def _place(cfg: DiTConfig, params: dict, mesh: Mesh | None) -> dict:
    """Put a network on its devices; bfloat16 stays so where activations are that."""

    def place(leaf: Any, sharding: NamedSharding | None) -> jax.Array:
        keep = leaf.dtype == jnp.bfloat16 and cfg.compute_dtype == jnp.bfloat16
        dtype = jnp.bfloat16 if keep else jnp.float32
        if isinstance(leaf, checkpoint.StoredLeaf):  # each device reads its own part
            return leaf.read(sharding, dtype)
        return jax.device_put(jnp.asarray(leaf, dtype), sharding)

    if mesh is None:
        return jax.tree.map(lambda leaf: place(leaf, None), params)
    return jax.tree.map(place, params, placement.parameters(params, mesh))


def _check_codes(card: Card, motion: judges.Judge, path: str | Path) -> None:
    """Raise InputError unless the codes that are read are those of the model."""
    came = len(motion.names), len(card.motion_mean), len(card.motion_std)
    width = card.config.motion_width
    if width is not None and set(came) != {width}:
        raise InputError(
            f"{path} has a model of {width} motion codes, an encoder of {came[0]}, and "
            f"{came[1]} means and {came[2]} deviations for them; give as many of each."
        )
