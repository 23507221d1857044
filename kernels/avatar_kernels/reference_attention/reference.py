"""Sparse Reference Attention in plain jnp: the specification and the CPU path.

Target rows (generated and still) attend to all valid rows, their own and the
reference's; reference rows attend to valid rows of their own segment. With scale
1 / sqrt(K), own keys and values (k, v) and reference keys and values (r, w):

  (1) target   o_t = sum_s p_ts v_s + sum_r p_tr w_r, one softmax p over both sources
  (2) segment  o_t = sum_s p_ts v_s, s in the segment of t

The sources of (1) meet in one softmax through their common maximum and sum; they are
never concatenated. Products accumulate in float32. A row that sees nothing is zero.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# Scores B N T S, mask B 1 S or B T S, values B S N K.
Source = tuple[Array, Array, Array]
MASKED = -1e30  # finite: an all-masked row must give zeros, not NaN


@dataclasses.dataclass(frozen=True)
class LocalWindow:
    """Which own rows a target row sees: those near in time and in height.

    Target rows are ordered (latent, row, column), stills last. A still stands at latent
    0 as a query and at every latent as a key, so its cost is that of any other.

    Attributes:
      latents: at most so far in time.
      rows: at most so many rows of the grid up or down; None: all.
      grid: rows and columns of the patch grid of one latent.
      stills: latents at the end that are stills.
    """

    latents: int
    rows: int | None
    grid: tuple[int, int]
    stills: int = 1

    @property
    def reach(self) -> tuple[int, int]:
        """How far a query sees along (latent, row)."""
        return self.latents, self.grid[0] if self.rows is None else self.rows

    def coordinates(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (latent, row) of each query and of each key, `2 rows`, int32.

        A negative coordinate of a key is near to all.

        Raises:
          ValueError: the rows are not whole latents.
        """
        cells = self.grid[0] * self.grid[1]
        if rows % cells or rows < cells * (self.stills + 1):
            raise ValueError(
                f"{rows} rows are not latents of a {self.grid} grid and "
                f"{self.stills} still; expected a multiple of {cells}, at least "
                f"{cells * (self.stills + 1)}."
            )
        index = np.arange(rows, dtype=np.int32)
        latent, row = index // cells, index // self.grid[1] % self.grid[0]
        still = latent >= rows // cells - self.stills
        query = np.stack([np.where(still, 0, latent), row])
        return query, np.stack([np.where(still, -1, latent), row])

    def lines(self, rows: int) -> np.ndarray:
        """Return which lines (rows of the grid, of all latents) see which: L L bool."""
        query, key = (c[:, :: self.grid[1]] for c in self.coordinates(rows))
        near = np.ones((query.shape[1],) * 2, bool)
        for q, k, reach in zip(query, key, self.reach, strict=True):
            near &= (np.abs(q[:, None] - k) <= reach) | (k < 0)
        return near

    def mask(self, rows: int) -> np.ndarray:
        """Return which rows see which, T T bool; for small T."""
        columns = self.grid[1]
        return self.lines(rows).repeat(columns, 0).repeat(columns, 1)


def scores(
    q: Float[Array, "B T N K"], k: Float[Array, "B S N K"]
) -> Float[Array, "B N T S"]:
    """Return scaled products in float32."""
    products = jnp.einsum("BTNK,BSNK->BNTS", q, k, preferred_element_type=jnp.float32)
    return products * q.shape[-1] ** -0.5


def weighted_sum(
    weights: Float[Array, "B N T S"], v: Float[Array, "B S N K"]
) -> Float[Array, "B T N K"]:
    """Sum values in float32, the weights rounded to the values' dtype."""
    return jnp.einsum(
        "BNTS,BSNK->BTNK",
        weights.astype(v.dtype),
        v,
        preferred_element_type=jnp.float32,
    )


def attend(
    sources: list[Source],
    dtype: jnp.dtype,
) -> tuple[Float[Array, "B T N K"], Float[Array, "B T N"]]:
    """Attend to several (scores, mask, values) in one softmax.

    Returns:
      the output, and the log of the sum of exponentials (-1e30 where nothing is seen).
    """
    masked = [jnp.where(mask[:, None], s, MASKED) for s, mask, _ in sources]
    # The peak cancels, so it carries no gradient.
    peak = jax.lax.stop_gradient(jnp.stack([s.max(-1) for s in masked]).max(0))
    weights = [
        jnp.where(mask[:, None], jnp.exp(s - peak[..., None]), 0.0)
        for s, (_, mask, _) in zip(masked, sources, strict=True)
    ]
    total = sum(w.sum(-1) for w in weights)  # B N T
    summed = sum(
        weighted_sum(w, v) for w, (_, _, v) in zip(weights, sources, strict=True)
    )
    safe = jnp.where(total > 0, total, 1.0)
    out = summed / jnp.swapaxes(safe, 1, 2)[..., None]
    lse = jnp.where(total > 0, peak + jnp.log(safe), MASKED)
    return out.astype(dtype), jnp.swapaxes(lse, 1, 2)


def target_attention(
    q: Float[Array, "B T N K"],
    k: Float[Array, "B S N K"],
    v: Float[Array, "B S N K"],
    reference_k: Float[Array, "B R N K"],
    reference_v: Float[Array, "B R N K"],
    *,
    valid: Bool[Array, "B S"],
    reference_valid: Bool[Array, "B R"],
    window: LocalWindow | None = None,
) -> tuple[Float[Array, "B T N K"], Float[Array, "B T N"]]:
    """Return the output and log-sum-exp of eq. 1; `window` narrows its first sum."""
    own = valid[:, None]
    if window is not None:
        own = own & window.mask(q.shape[1])[None]
    sources = [(scores(q, k), own, v)]
    if reference_k.shape[1]:
        sources.append((scores(q, reference_k), reference_valid[:, None], reference_v))
    return attend(sources, q.dtype)


def segment_attention(
    q: Float[Array, "B R N K"],
    k: Float[Array, "B R N K"],
    v: Float[Array, "B R N K"],
    *,
    valid: Bool[Array, "B R"],
    segment_ids: Int[Array, "B R"],
) -> tuple[Float[Array, "B R N K"], Float[Array, "B R N"]]:
    """Return the output and log-sum-exp of eq. 2."""
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return attend([(scores(q, k), same & valid[:, None], v)], q.dtype)
