"""How the kernels multiply: what is contracted, and into what."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

LOG2_E = math.log2(math.e)  # kernels take powers of 2
PLAIN = (((1,), (0,)), ((), ()))
KEYS_LAST = (((1,), (1,)), ((), ()))  # contract the last axis of both
ROWS_FIRST = (((0,), (0,)), ((), ()))  # contract the first axis of both


def dot(a: Array, b: Array, dims: tuple) -> Array:
    """Multiply into float32; float32 operands in full precision."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a, b, dims, precision=precision, preferred_element_type=jnp.float32
    )
