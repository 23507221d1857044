"""Video codecs: what every codec offers, and one that needs no weights.

`DCTCodec` takes blocks of 4 frames x 8 rows x 8 columns x 3 colours (768 numbers).
Colours turn into YCbCr (BT.601, full range), the block into orthonormal cosine
coefficients, of which the cheapest are kept:

  cost(t, y, x, colour) = 3 t + y + x + 0.15 max(y, x) + 4 [colour is chroma]

The fixed cost keeps a share of temporal coefficients; the strongest 32 alone would
freeze a mouth inside each block. Everything is linear:

  (1) z = (A block - mean) / std        (2) block = S (std z + mean),   A S = 1

with A the kept rows of the transform and S its inverse where the others are zero. The
first latent of a video is one frame, held for a block: no temporal coefficients, the
others twice those of the frame alone.
"""

import dataclasses
import functools
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import struct
from jaxtyping import Array, Float, Int

from avatar_jax.types import FRAMES_PER_LATENT, InputError, Leaf

STRIDE = 8  # pixels
COLOURS = np.array(  # RGB -> Y, Cb, Cr
    [
        [0.299, 0.587, 0.114],
        [-0.299 / 1.772, -0.587 / 1.772, 0.886 / 1.772],
        [0.701 / 1.402, -0.587 / 1.402, -0.114 / 1.402],
    ]
)

# Mean of Y, Cb, Cr of a block and std of each coefficient, cheapest first, on
# procedural and real faces at 64x64: `python -m benchmarks.codec_statistics`.
COLOUR_MEAN = (-0.519, -0.86, 0.362)
# fmt: off
STD = (
    4.8259, 1.7750, 1.3274, 0.7344, 0.8689, 0.7012, 0.1351, 0.4863, 0.4133, 0.4836,
    0.4542, 2.5057, 3.3076, 0.1000, 0.1345, 0.3214, 0.3427, 0.2767, 0.3202, 0.3347,
    0.8426, 1.0745, 0.4800, 0.5897, 0.0868, 0.0803, 0.1180, 0.2479, 0.2166, 0.2366,
    0.2020, 0.2118, 0.2009, 0.0548, 0.2685, 0.3399, 0.3303, 0.4431, 0.1963, 0.2304,
    0.0726, 0.0795, 0.1771, 0.0663, 0.1055, 0.1930, 0.1618, 0.1747, 0.1470, 0.1497,
    0.1552, 0.0416, 0.0470, 0.0409, 0.0609, 0.1772, 0.2319, 0.1386, 0.1738, 0.0654,
    0.1712, 0.2364, 0.1072, 0.1406, 0.0629, 0.0730, 0.1481, 0.1380, 0.0553, 0.0848,
    0.1437, 0.1252, 0.1291, 0.1149, 0.1188, 0.1156, 0.0323, 0.0341, 0.0322, 0.0404,
    0.0397, 0.1030, 0.1331, 0.0364, 0.0587, 0.1015, 0.1323, 0.0783, 0.0947, 0.0560,
    0.0567, 0.0918, 0.1205, 0.0785, 0.0945, 0.1158,
)
# fmt: on


@struct.dataclass
class DecodeState:
    """What a streaming decoder carries from one call to the next."""

    cache: Leaf = None  # whatever the codec's layers remember; None: nothing
    # False: the next latent is a video's first, which is a single frame.
    started: bool = struct.field(pytree_node=False, default=False)


class LatentCodec(Protocol):
    """A video codec of stride (4, 8, 8) whose latents are near unit scale.

    Video is RGB in [-1, 1], its sides multiples of `spatial_stride`; decoders clip.
    """

    @property
    def name(self) -> str:
        """Name the folder of latents made with this codec."""

    @property
    def channels(self) -> int:
        """Count the latent channels C."""

    @property
    def spatial_stride(self) -> int:
        """Give the pixels per latent row and column."""

    @property
    def energy(self) -> Float[np.ndarray, " C"]:
        """Give each channel's std before scaling over the largest: loss weights."""

    def encode(
        self, video: Float[Array, "B frames Y X 3"]
    ) -> Float[Array, "B F H W C"]:
        """Encode 4(F-1)+1 frames; the first latent is the first frame alone."""

    def encode_clips(
        self, video: Float[Array, "B frames Y X 3"]
    ) -> Float[Array, "B F H W C"]:
        """Encode 4F frames of reference segments, without a single-frame latent."""

    def decode(
        self, latents: Float[Array, "B F H W C"]
    ) -> Float[Array, "B frames Y X 3"]:
        """Decode a whole video of 4(F-1)+1 frames."""

    def init_decode(self) -> DecodeState:
        """Begin to decode a video in pieces."""

    def decode_next(
        self, state: DecodeState, latents: Float[Array, "B F H W C"]
    ) -> tuple[DecodeState, Float[Array, "B frames Y X 3"]]:
        """Decode the next piece: 4F frames, 3 fewer at the start of the video."""


@dataclasses.dataclass(frozen=True)
class DCTCodec:
    """A space-time cosine transform: linear, no weights, 33-34 dB on 64x64 faces."""

    channels: int = 64

    def __post_init__(self):
        most = len(STD)
        if not 3 <= self.channels <= most:
            raise InputError(
                f"DCTCodec takes 3 to {most} channels, came {self.channels}; use 64."
            )

    @property
    def name(self) -> str:
        return f"dct{self.channels}"

    @property
    def spatial_stride(self) -> int:
        return STRIDE

    @functools.cached_property
    def energy(self) -> Float[np.ndarray, " C"]:
        return (self.std / self.std.max()).astype(np.float32)

    @property
    def std(self) -> Float[np.ndarray, " C"]:
        return np.array(STD[: self.channels])

    @property
    def mean(self) -> Float[np.ndarray, " C"]:
        t, y, x, c = kept_coefficients(self.channels)
        return np.where((t == 0) & (y == 0) & (x == 0), np.array(COLOUR_MEAN)[c], 0)

    @jax.named_scope("dct_encode")
    def encode(
        self, video: Float[Array, "B frames Y X 3"]
    ) -> Float[Array, "B F H W C"]:
        if video.shape[1] % FRAMES_PER_LATENT != 1:
            raise InputError(
                f"encode expects 4n+1 frames, came {video.shape[1]}; "
                f"cut to {(video.shape[1] - 1) // 4 * 4 + 1}."
            )
        held = jnp.repeat(video[:, :1], FRAMES_PER_LATENT - 1, axis=1)
        return self.encode_clips(jnp.concatenate([held, video], axis=1))

    def encode_clips(
        self, video: Float[Array, "B frames Y X 3"]
    ) -> Float[Array, "B F H W C"]:
        _, frames, rows, columns, _ = video.shape
        if frames % FRAMES_PER_LATENT or rows % STRIDE or columns % STRIDE:
            raise InputError(
                f"the codec expects blocks of 4x8x8, came {frames} frames of "
                f"{rows}x{columns}; cut or resize."
            )
        blocks = rearrange(
            video,
            "B (F t) (H y) (W x) c -> B F H W (t y x c)",
            t=FRAMES_PER_LATENT,
            y=STRIDE,
            x=STRIDE,
        )
        analysis = analysis_rows(self.channels)
        scale = jnp.asarray((analysis / self.std[:, None]).T, video.dtype)
        shift = jnp.asarray(self.mean / self.std, video.dtype)
        return (
            jnp.matmul(blocks, scale, precision="highest")
            - shift[None, None, None, None]
        )

    def decode(
        self, latents: Float[Array, "B F H W C"]
    ) -> Float[Array, "B frames Y X 3"]:
        return self.decode_next(self.init_decode(), latents)[1]

    def init_decode(self) -> DecodeState:
        return DecodeState()

    def decode_next(
        self, state: DecodeState, latents: Float[Array, "B F H W C"]
    ) -> tuple[DecodeState, Float[Array, "B frames Y X 3"]]:
        blocks = self._decode_blocks(latents)
        if not state.started:
            # One frame is the mean of its block: temporal coefficients say nothing.
            first = jnp.mean(blocks[:, :FRAMES_PER_LATENT], axis=1, keepdims=True)
            blocks = jnp.concatenate([first, blocks[:, FRAMES_PER_LATENT:]], axis=1)
        return state.replace(started=True), jnp.clip(blocks, -1, 1)

    def _decode_blocks(
        self, latents: Float[Array, "B F H W C"]
    ) -> Float[Array, "B frames Y X 3"]:
        synthesis = synthesis_rows(self.channels).T
        scale = jnp.asarray((synthesis * self.std).T, latents.dtype)
        shift = jnp.asarray(synthesis @ self.mean, latents.dtype)
        return rearrange(
            jnp.matmul(latents, scale, precision="highest")
            + shift[None, None, None, None],
            "B F H W (t y x c) -> B (F t) (H y) (W x) c",
            t=FRAMES_PER_LATENT,
            y=STRIDE,
            x=STRIDE,
        )


@functools.cache
def kept_coefficients(channels: int) -> Int[np.ndarray, "4 C"]:
    """Return (t, y, x, colour) of the cheapest coefficients, in order of their cost."""
    t, y, x, c = np.indices((FRAMES_PER_LATENT, STRIDE, STRIDE, 3)).reshape(4, -1)
    cost = 3 * t + y + x + 0.15 * np.maximum(y, x) + 4 * (c > 0)
    return np.stack([t, y, x, c])[:, np.argsort(cost, kind="stable")[:channels]]


def analysis_rows(channels: int) -> Float[np.ndarray, "C block"]:
    """Build A: what turns a block of RGB into the kept coefficients."""
    return coefficient_rows(channels, COLOURS)


def synthesis_rows(channels: int) -> Float[np.ndarray, "C block"]:
    """Build the transpose of S: the block of RGB that each coefficient stands for."""
    return coefficient_rows(channels, np.linalg.inv(COLOURS).T)


def coefficient_rows(
    channels: int, colours: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "C block"]:
    """Combine cosines over time, rows and columns with one colour vector per row."""
    t, y, x, c = kept_coefficients(channels)
    time, space = cosine_rows(FRAMES_PER_LATENT), cosine_rows(STRIDE)
    rows = np.einsum(
        "Ct,Cy,Cx,Cc->Ctyxc", time[t], space[y], space[x], colours[c], optimize=True
    )
    return rearrange(rows, "C t y x c -> C (t y x c)")


def cosine_rows(length: int) -> Float[np.ndarray, "length length"]:
    """Build the orthonormal cosine transform (DCT-II): one row per frequency."""
    k, n = np.indices((length, length))
    rows = np.cos(np.pi * k * (2 * n + 1) / (2 * length)) * np.sqrt(2 / length)
    rows[0] /= np.sqrt(2)
    return rows
