"""Sparse Reference Attention in plain jnp: the specification and the CPU path.

Target rows (generated and still) attend to all valid rows, their own and the
reference's; reference rows attend to valid rows of their own segment. With scale
1 / sqrt(K), own keys and values (k, v) and reference keys and values (r, w):

  (1) target   o_t = sum_s p_ts v_s + sum_r p_tr w_r, one softmax p over both sources
  (2) segment  o_t = sum_s p_ts v_s, s in the segment of t

The sources of (1) meet in one softmax through their common maximum and sum; they are
never concatenated. Products accumulate in float32. A row that sees nothing is zero.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Scores B N T S, mask B 1 S or B T S, values B S N K.
Source = tuple[Array, Array, Array]
MASKED = -1e30  # finite: an all-masked row must give zeros, not NaN


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
) -> tuple[Float[Array, "B T N K"], Float[Array, "B T N"]]:
    """Return the output and log-sum-exp of eq. 1."""
    sources = [(scores(q, k), valid[:, None], v)]
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
