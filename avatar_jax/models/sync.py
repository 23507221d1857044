"""Frozen judges of motion: what the face in a picture does, and whether it fits speech.

`MotionRegressor` reads the motion codes of the procedural people from single frames. It
looks twice: a coarse pass over the picture finds eyes and mouth, then small networks
look at patches cut there, which resolves lips and pupils that are few pixels wide.

`SyncNetwork` embeds eight frames of a mouth and the speech of the same time; what
belongs together lies close by (SyncNet: Chung and Zisserman, ACCV 2016 workshops).
"""

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Shaped

JUDGE_SIZE = 64  # pixels, side of the picture that the regressor reads
# Place -> (samples a side, side in distances from eyes to mouth)
PATCHES = {"eye_left": (20, 1.5), "eye_right": (20, 1.5), "mouth": (24, 1.7)}
SYNC_FRAMES = 8  # of a window, 0.32 s
SYNC_WIDTH = 64
SPOKEN = ("mouth_open", "mouth_width")  # codes that speech determines
_MOUTH_ROWS, _MOUTH_COLUMNS = slice(26, 58), slice(8, 56)  # of a portrait of 64 pixels


class MotionRegressor(nn.Module):
    """Small convolutional networks: one 64x64 frame to normalised motion codes."""

    codes: int = 12

    @nn.compact
    def __call__(
        self,
        frames: Float[Array, "B Y X 3"],
        places: Float[Array, "B places 2"] | None = None,
    ) -> tuple[Float[Array, "B codes"], Float[Array, "B places 2"]]:
        """Return the codes (mean 0, variance 1 in training) and the places found.

        Args:
          frames: in [-1, 1].
          places: (x, y) of left eye, right eye and mouth in pixels, given in training;
            None: the places that the coarse pass finds.
        """
        coarse = Tower((12, 24, 32, 40), side=5, name="coarse")(frames)
        found = nn.Dense(2 * len(PATCHES), name="places")(coarse)
        found = JUDGE_SIZE * (0.5 + 0.1 * found.reshape(-1, len(PATCHES), 2))
        places = jax.lax.stop_gradient(found) if places is None else places
        unit = jnp.linalg.norm(places[:, :2].mean(1) - places[:, 2], axis=-1)
        eye = Tower((24, 32, 32), name="eye")  # one for both eyes
        mouth = Tower((24, 32, 32), name="mouth")
        looks = [coarse, (places - JUDGE_SIZE / 2).reshape(-1, 6) / JUDGE_SIZE]
        for index, (name, (samples, extent)) in enumerate(PATCHES.items()):
            patch = jax.vmap(_cut, in_axes=(0, 0, 0, None))(
                frames, places[:, index], extent * unit, samples
            )
            looks.append((mouth if name == "mouth" else eye)(patch))
        x = nn.gelu(nn.Dense(96, name="join")(jnp.concatenate(looks, -1)))
        return nn.Dense(self.codes, name="codes_out")(x), found


class SyncNetwork(nn.Module):
    """Two networks: windows of mouths and of speech to vectors of one space."""

    @nn.compact
    def __call__(
        self, mouths: Float[Array, "B F Y X 3"], speech: Float[Array, "B F A"]
    ) -> tuple[
        Float[Array, "B windows D"], Float[Array, "B windows D"], Float[Array, "B F c"]
    ]:
        """Return both embeddings of the window from each frame on, not scaled.

        The third result is `SPOKEN` as read from each frame, which training uses.

        Args:
          mouths: `crop_mouth` of `SYNC_FRAMES` or more frames in [-1, 1].
          speech: their rows of `speech.LogMel`.
        """
        seen = _Mouth(name="see")(einops.rearrange(mouths, "b f y x c -> (b f) y x c"))
        seen = einops.rearrange(seen, "(b f) c -> b f c", b=mouths.shape[0])
        codes = nn.Dense(len(SPOKEN), name="spoken")(seen)
        heard = nn.gelu(nn.Dense(40, name="row")(speech))
        ends = []
        for name, x in (("mouth", seen), ("speech", heard)):
            window = nn.Conv(96, (SYNC_FRAMES,), padding="VALID", name=f"join_{name}")
            ends.append(nn.Dense(SYNC_WIDTH, name=name)(nn.gelu(window(x))))
        return ends[0], ends[1], codes


class _Mouth(nn.Module):
    """Patches of 4x4 pixels, one convolution, one dense layer; places matter."""

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X 3"]) -> Float[Array, "B hidden"]:
        x = einops.rearrange(x, "b (y i) (x j) c -> b y x (i j c)", i=4, j=4)
        x = nn.gelu(nn.GroupNorm(num_groups=4)(nn.Dense(40, use_bias=False)(x)))
        x = nn.Conv(56, (3, 3), (2, 2), use_bias=False)(x)
        x = nn.gelu(nn.GroupNorm(num_groups=4)(x))
        return nn.gelu(nn.Dense(40)(x.reshape(x.shape[0], -1)))


def crop_mouth(
    frames: Shaped[Array | np.ndarray, "*lead 64 64 3"],
) -> Shaped[Array | np.ndarray, "*lead Y X 3"]:
    """Cut the part of a portrait of 64 pixels in which the mouth moves."""
    return frames[..., _MOUTH_ROWS, _MOUTH_COLUMNS, :]


class Tower(nn.Module):
    """Convolutions of stride 2, then one dense layer; places matter: no pooling."""

    widths: tuple[int, ...]
    side: int = 3  # of the first convolution
    hidden: int = 64

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B hidden"]:
        for index, width in enumerate(self.widths):
            side = self.side if index == 0 else 3
            x = nn.Conv(width, (side, side), (2, 2), use_bias=False)(x)
            x = nn.gelu(nn.GroupNorm(num_groups=4)(x))
        return nn.gelu(nn.Dense(self.hidden)(x.reshape(x.shape[0], -1)))


def _cut(
    frame: Float[Array, "Y X 3"],
    centre: Float[Array, " 2"],
    extent: Float[Array, ""],
    samples: int,
) -> Float[Array, "samples samples 3"]:
    """Sample a square patch of `extent` pixels around (x, y), bilinearly."""
    offsets = extent * ((jnp.arange(samples) + 0.5) / samples - 0.5)
    x, y = centre[0] - 0.5 + offsets, centre[1] - 0.5 + offsets
    grid = jnp.meshgrid(y, x, indexing="ij")

    def sample(channel: Float[Array, "Y X"]) -> Float[Array, "samples samples"]:
        return map_coordinates(channel, grid, order=1, mode="nearest")

    return jax.vmap(sample, in_axes=2, out_axes=2)(frame)
