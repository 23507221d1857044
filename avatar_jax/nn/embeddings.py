"""Embeddings of times and of features."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

TIME_SCALE = 1000.0  # Wan counts its timesteps 0..1000
COARSE_BITS = 14  # of speeds: times a timestep below 1,024 it is exact in float32


def time_features(t: Float[Array, " B"], width: int) -> Float[Array, "B features"]:
    """Return sinusoids of 1000 t, cosine half first, base 10000, in float32.

    As exact as float32 can say it, for t in [0, 1]: the angle 999 w in float32 is off
    by 3e-5, so whole timesteps are turned by a coarse part of the speed whose product
    has no error, full turns are left out, and what is small is added:

      1000 t = n + f,  w = 2 pi (c + r),  a = 2 pi (n c - [n c] + (n r + f w / (2 pi)))
    """
    whole, fraction = _split_time(t.astype(jnp.float32))
    speeds = time_speeds(width) / (2 * np.pi)  # turns per timestep
    coarse = np.round(speeds * 2**COARSE_BITS) / 2**COARSE_BITS
    c, r, w = (a.astype(np.float32)[None] for a in (coarse, speeds - coarse, speeds))
    turns = whole * c
    turns = turns - jnp.round(turns) + (whole * r + fraction * w)
    angle = (2 * np.pi) * turns
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


def time_speeds(width: int) -> Float64[np.ndarray, " half"]:
    """Return the angle of each sinusoid per timestep, in radians: 10000^(-j / half)."""
    half = width // 2
    return 10_000.0 ** (-np.arange(half, dtype=np.float64) / half)


def _split_time(
    t: Float[Array, " B"],
) -> tuple[Float[Array, "B 1"], Float[Array, "B 1"]]:
    """Return the nearest whole timestep and the rest; k / 1000 in float32 means k.

    Devices multiply by 0.001 instead, so one unit in the last place is forgiven.
    """
    # Both products are exact: t has 24 bits, its halves 12, TIME_SCALE 7.
    high = jax.lax.reduce_precision(t, exponent_bits=8, mantissa_bits=11)
    product = TIME_SCALE * high
    whole = jnp.round(product)
    fraction = (product - whole) + TIME_SCALE * (t - high)
    # What rounding has put into k / 1000 is taken out; the slope in t stays.
    is_rounding = jnp.abs(fraction) <= TIME_SCALE * t * jnp.finfo(t.dtype).eps
    fraction = fraction - jax.lax.stop_gradient(jnp.where(is_rounding, fraction, 0))
    return whole[:, None], fraction[:, None]


class Mlp(nn.Module):
    """Two linear layers with a smooth gate between: features to model width."""

    width: int
    activation: Callable[[Array], Array] = jax.nn.gelu  # tanh form, as Wan's of text
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... M"]) -> Float[Array, "... D"]:
        y = nn.Dense(self.width, dtype=self.dtype, name="inner")(x)
        return nn.Dense(self.width, dtype=self.dtype, name="outer")(self.activation(y))
