"""The convolutional read-out: from rows of patches back to every latent cell.

A small network's rows are narrower than the patches they stand for, so a linear head
leaves seams between patches and cannot even copy its input at small t. This head also
sees the cells themselves (noisy latents, flags, the still beside them), and mixes them
in by gates of each cell: where nothing moves, the still is the answer.

  (1) h = W_f y + W_c c        y: modulated rows, unfolded to cells; c: the cells
  (2) h = h + conv(m(h, t))    3 x 3 cells, within a latent frame, `DEPTH` times
  (3) o = conv(m(h, t)) + sum_i (g_i(t) + W_i m(h, t)) c_i    c_i: noisy latents, still

m is GELU of the layer norm, scaled and shifted by t.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from avatar_kernels.modulated_norm import modulate
from einops import rearrange
from jaxtyping import Array, Float

from avatar_jax.models import tokens

DEPTH = 2
KERNEL = (3, 3)


class DetailHead(nn.Module):
    """Eqs. 1-3; last convolution and gates start at zero, so o = 0 at step 0."""

    width: int  # of h
    channels: int  # of the latents
    patch: int
    still_concat: bool  # the still's latents are the last channels of the cells
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(
        self,
        rows: Float[Array, "B T D"],
        cells: Float[Array, "B F H W I"],
        time: Float[Array, "B D"],
    ) -> Float[Array, "B F H W C"]:
        """Return o; the first `channels` of the cells are the noisy latents."""
        frames, height = cells.shape[1:3]
        dense, zeros = nn.Dense, nn.initializers.zeros
        folded = dense(self.patch**2 * self.width, dtype=self.dtype, name="rows")(rows)
        folded = rearrange(
            folded, "B (F h w) P -> B F h w P", F=frames, h=height // self.patch
        )
        h = tokens.unpatchify(folded, self.patch)
        h = h + dense(self.width, dtype=self.dtype, use_bias=False, name="cells")(cells)
        time = jax.nn.silu(time)
        modulation = dense(
            (DEPTH + 1) * 2 * self.width, kernel_init=zeros, name="modulation"
        )(time)
        modulation = rearrange(
            modulation, "B (i two D) -> i two B 1 1 1 D", two=2, D=self.width
        )
        for i in range(DEPTH):
            conv = nn.Conv(self.width, KERNEL, dtype=self.dtype, name=f"conv_{i}")
            h = h + conv(_activate(h, modulation[i]))
        h = _activate(h, modulation[DEPTH])
        last = nn.Conv(
            self.channels, KERNEL, dtype=self.dtype, kernel_init=zeros, name="last"
        )
        out = last(h)
        sources = [cells[..., : self.channels]]
        if self.still_concat:
            sources.append(cells[..., -self.channels :])
        wide = len(sources) * self.channels
        gates = dense(wide, dtype=self.dtype, kernel_init=zeros, name="cell_gates")(h)
        by_time = dense(wide, dtype=self.dtype, kernel_init=zeros, name="gates")(time)
        gates = gates + by_time[:, None, None, None]
        for gate, source in zip(
            jnp.split(gates, len(sources), -1), sources, strict=True
        ):
            out = out + gate * source
        return out


def _activate(
    h: Float[Array, "B F H W D"], modulation: Float[Array, "two B 1 1 1 D"]
) -> Float[Array, "B F H W D"]:
    shift, scale = modulation
    return jax.nn.gelu(modulate(h, shift, scale)).astype(h.dtype)
