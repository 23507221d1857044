"""The judge of quality, whose layers are the frozen space of a perceptual loss.

Feature maps f_1 ... f_4 are compared after scaling each place to unit length over the
channels, as LPIPS does (arXiv:1801.03924, section 3). The score looks at each map's
mean and spread over places only: a fault counts wherever it is.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from avatar_jax.models.faces import to_unit_length

WIDTHS = (24, 40, 64, 64)  # of stages with stride 2


class QualityNetwork(nn.Module):
    """Small convolutional network: one 64x64 frame to the logit of its quality."""

    @nn.compact
    def __call__(
        self, frames: Float[Array, "B Y X 3"]
    ) -> tuple[Float[Array, " B"], list[Float[Array, "B y x c"]]]:
        """Return the logit (large is clean) and the feature maps, finest first.

        Args:
          frames: in [-1, 1].
        """
        x, maps, seen = frames, [], []
        for index, width in enumerate(WIDTHS):
            side = 5 if index == 0 else 3
            x = nn.gelu(nn.Conv(width, (side, side), (2, 2))(x))
            maps.append(to_unit_length(x))
            # Before the norm, which would hide how strong noise is.
            seen += [x.mean((1, 2)), jnp.sqrt(x.var((1, 2)) + 1e-6)]
            if index + 1 < len(WIDTHS):
                x = nn.GroupNorm(num_groups=4)(x)
        hidden = nn.gelu(nn.Dense(64, name="join")(jnp.concatenate(seen, -1)))
        return nn.Dense(1, name="logit")(hidden)[:, 0], maps
