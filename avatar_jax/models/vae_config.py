"""The configuration of the Wan2.1 video autoencoder, with its published scale."""

import dataclasses
from typing import Literal, get_args

from avatar_jax.types import FRAMES_PER_LATENT

# fmt: off
MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)
STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)
# fmt: on

DType = Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True)
class WanVAEConfig:
    """Sizes of `WanVAE`; the defaults are Wan2.1's, with 126,892,531 parameters.

    Attributes:
      width: channels of the finest level.
      multipliers: of `width`, a level each, finest first.
      residual_blocks: of a level of the encoder; the decoder's have one more.
      time_down: whether frames are halved below a level, the last excepted.
      mean, std: of eq. 1, one for each channel.
      encode_dtype, decode_dtype: of activations, as TAVR has them. TPUs, which have no
        float16 units, want "bfloat16".
      remat: recompute a piece in the backward pass; its caches alone are kept.
    """

    width: int = 96
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    residual_blocks: int = 2
    time_down: tuple[bool, ...] = (False, True, True)
    channels: int = 16
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    encode_dtype: DType = "float32"
    decode_dtype: DType = "float16"
    remat: bool = False

    def __post_init__(self) -> None:
        if len(self.time_down) != len(self.multipliers) - 1:
            raise ValueError(
                f"time_down={self.time_down} came for {len(self.multipliers)} levels; "
                "give one value fewer than levels."
            )
        if 2 ** sum(self.time_down) != FRAMES_PER_LATENT:
            raise ValueError(
                f"time_down={self.time_down}; latents have {FRAMES_PER_LATENT} frames: "
                "set two of these."
            )
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"{len(self.mean)} means and {len(self.std)} stds came for "
                f"{self.channels} channels; give one for each."
            )
        for dtype in (self.encode_dtype, self.decode_dtype):
            if dtype not in get_args(DType):
                raise ValueError(
                    f"dtype {dtype!r}; use one of {', '.join(get_args(DType))}."
                )
        if any(self.width * m % 2 for m in self.multipliers[1:]):
            raise ValueError(
                f"width={self.width} times {self.multipliers[1:]} must be even, for "
                "upsampling halves them; use an even width."
            )

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent row and column."""
        return 2 ** len(self.time_down)
