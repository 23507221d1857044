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
from typing import Protocol, runtime_checkable

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
COLOUR_MEAN = (-0.518, -0.862, 0.363)
# fmt: off
STD = (
    4.8248, 1.7634, 1.3201, 0.7338, 0.8640, 0.6914, 0.1320, 0.4866, 0.4097, 0.4814,
    0.4391, 2.4999, 3.3011, 0.0987, 0.1291, 0.3195, 0.3393, 0.2685, 0.3177, 0.3265,
    0.8410, 1.0728, 0.4764, 0.5843, 0.0840, 0.0782, 0.1108, 0.2429, 0.2136, 0.2324,
    0.1965, 0.2096, 0.1969, 0.0538, 0.2676, 0.3388, 0.3293, 0.4419, 0.1927, 0.2271,
    0.0693, 0.0759, 0.1740, 0.0638, 0.1005, 0.1875, 0.1573, 0.1716, 0.1427, 0.1463,
    0.1536, 0.0408, 0.0461, 0.0402, 0.0583, 0.1759, 0.2308, 0.1377, 0.1730, 0.0627,
    0.1704, 0.2358, 0.1037, 0.1369, 0.0592, 0.0694, 0.1446, 0.1341, 0.0532, 0.0823,
    0.1392, 0.1218, 0.1259, 0.1125, 0.1153, 0.1150, 0.0320, 0.0336, 0.0313, 0.0394,
    0.0381, 0.1018, 0.1315, 0.0352, 0.0549, 0.0998, 0.1310, 0.0766, 0.0929, 0.0523,
    0.0538, 0.0910, 0.1199, 0.0767, 0.0927, 0.1132,
)
# fmt: on


@struct.dataclass
class DecodeState:
    """What a streaming decoder carries from one call to the next."""

    cache: Leaf = None  # whatever the codec's layers remember; None: nothing
    # False: the next latent is a video's first, which is a single frame.
    started: bool = struct.field(pytree_node=False, default=False)


@runtime_checkable
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

    def decode_clips(
        self, latents: Float[Array, "B F H W C"]
    ) -> Float[Array, "B frames Y X 3"]:
        """Decode 4F frames of latents none of which is a single frame."""

    def init_decode(self) -> DecodeState:
        """Begin to decode a video in pieces."""

    def decode_next(
        self, state: DecodeState, latents: Float[Array, "B F H W C"]
    ) -> tuple[DecodeState, Float[Array, "B frames Y X 3"]]:
        """Decode the next piece: 4F frames, 3 fewer at the start of the video."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DCTCodec:
    """A space-time cosine transform: linear, no weights, 30-35 dB on 64x64 faces."""

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

    def decode_clips(
        self, latents: Float[Array, "B F H W C"]
    ) -> Float[Array, "B frames Y X 3"]:
        return jnp.clip(self._decode_blocks(latents), -1, 1)

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
