"""The configuration of the velocity network; each part beyond Wan can be off."""

import dataclasses
from typing import Literal, get_args, get_type_hints

import jax.numpy as jnp
from avatar_kernels.reference_attention import Implementation


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """Sizes and switches of `dit.AvatarDiT`; a width of None switches a part off.

    With `audio_width`, `reference` and `reference_audio_width` set and every other
    switch at its default it has exactly TAVR's layout; with all of them off, Wan2.1's.
    """

    width: int
    mlp_width: int
    heads: int
    layers: int
    channels: int  # of the latents
    patch: int = 2  # side of a patch in latent cells
    text_width: int = 4096
    time_features: int = 256
    audio_width: int | None = None  # driving speech, per 25 Hz row
    reference: bool = False
    reference_audio_width: int | None = None  # reference speech, per 25 Hz row
    adapter_rank: int = 256  # of the reference-audio adapters
    faces: bool = False  # face crops as reference rows with a role of their own
    identity_width: int | None = (
        None  # face embedding -> `identity_tokens` keys, values
    )
    identity_tokens: int = 4
    motion_width: int | None = None  # motion codes per frame; None: no motion stream
    guidance_scales: int = 0  # scales that a distilled student is told
    detail_width: int | None = None  # convolutional read-out; None: a linear head
    still_concat: bool = False  # the still's latents beside every generated row
    # "clean": the output is read as the clean sample, preconditioned (see `dit`).
    prediction: Literal["velocity", "clean"] = "velocity"
    time_floor: float = 0.02  # "clean": v = (x_t - x^) / max(t, floor)
    rotary_scale: float | None = None  # None: 720 / short side in pixels; TAVR: 1.5
    spatial_stride: int = 8  # of the codec, for `rotary_scale`
    # Of `avatar_kernels.reference_attention`; None: the best for the device.
    attention: Implementation | None = None
    remat: bool = False  # recompute blocks in the backward pass
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations

    def __post_init__(self) -> None:
        kinds = {n: get_type_hints(DiTConfig)[n] for n in ("prediction", "dtype")}
        if self.attention is not None:
            kinds["attention"] = Implementation
        for name, kind in kinds.items():
            allowed = get_args(kind)
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}; use one of {', '.join(allowed)}."
                )
        for name in ("width", "mlp_width", "heads", "layers", "channels", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; use 1 or more.")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(
                f"width={self.width} must divide into {self.heads} heads of even size; "
                "change width or heads."
            )
        if self.reference_audio_width and not self.audio_width:
            raise ValueError(
                "reference_audio_width needs audio_width: reference speech reuses the "
                "audio attention; set audio_width too."
            )
        if (self.faces or self.identity_width) and not self.reference:
            raise ValueError("faces and identity_width need reference=True.")

    @property
    def head_dim(self) -> int:
        """Channels per head."""
        return self.width // self.heads

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The dtype of activations."""
        return jnp.dtype(self.dtype)

    @property
    def input_channels(self) -> int:
        """Latent channels, two flags, and the still's channels where concatenated."""
        return self.channels * (2 if self.still_concat else 1) + 2
