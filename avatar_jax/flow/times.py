"""Times in training and in sampling; t in [0, 1], 1 is noise.

The shift (SD3, arXiv 2403.03206, eq. 23) moves times towards noise, as large pictures
need:

  (1) t' = s t / (1 + (s - 1) t)
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


def shift_times(
    t: Float[Array, "..."], shift: float | Float[Array, "..."]
) -> Float[Array, "..."]:
    """Apply eq. 1; `shift` 1 changes nothing, 5 is the choice for 480p and above."""
    return shift * t / (1 + (shift - 1) * t)


def sample_times(
    rng: PRNGKeyArray, batch: int, *, shift: float = 1.0, uniform: float = 0.0
) -> Float[Array, " B"]:
    """Draw one time per sample: logit-normal(0, 1), then shifted (Avatar V 3.1).

    Args:
      uniform: share of samples whose time is uniform in [0, 1] instead. Samplers of few
        steps start them where the others are rare.
    """
    normal_rng, uniform_rng, coin_rng = jax.random.split(rng, 3)
    drawn = jax.nn.sigmoid(jax.random.normal(normal_rng, (batch,)))
    others = jax.random.uniform(uniform_rng, (batch,))
    is_other = jax.random.bernoulli(coin_rng, uniform, (batch,))
    return jnp.where(is_other, others, shift_times(drawn, shift))


def schedule(num_steps: int, *, shift: float = 1.0) -> Float[Array, " times"]:
    """Return num_steps + 1 times from 1 to 0: shift(1 - i / num_steps)."""
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} is not positive; use 1 or more.")
    return shift_times(jnp.linspace(1.0, 0.0, num_steps + 1), shift)
