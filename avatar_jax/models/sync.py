"""Frozen judges of motion: what the face in a picture does.

`MotionRegressor` reads the motion codes of the procedural people from single frames. It
serves as a metric, as a frozen space for losses and as a reward, each time with weights
of the right role: a model is never graded by what it was optimised for.

It looks twice: a coarse pass over the picture finds eyes and mouth, then small networks
look at patches cut there, which resolves lips and pupils that are few pixels wide.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float

JUDGE_SIZE = 64  # pixels, side of the picture that the regressor reads
# Place -> (samples a side, side in distances from eyes to mouth)
PATCHES = {"eye_left": (20, 1.5), "eye_right": (20, 1.5), "mouth": (24, 1.7)}


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
