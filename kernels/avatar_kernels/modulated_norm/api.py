"""The public function of the modulated norm: pick the code, keep its gradient."""

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from avatar_kernels import names, tpu
from avatar_kernels.modulated_norm import pallas_tpu, reference

Implementation = Literal["xla", "mosaic_tpu", "mosaic_tpu_interpreted"]


def modulated_norm(
    x: Float[Array, "B T D"],
    shift: Float[Array, "b 1 D"],
    scale: Float[Array, "b 1 D"],
    *,
    added: Float[Array, "B T D"] | None = None,
    gate: Float[Array, "g 1 D"] | None = None,
    implementation: Implementation,
) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
    """Add a gated branch to rows, if one is given, then norm, scale and shift them.

    Args:
      x: rows.
      shift: float32; b is B or 1.
      scale: likewise; the normed rows are multiplied by 1 + scale.
      added: a branch that is added first, times `gate`.
      gate: likewise; g is B or 1.
      implementation: "xla" takes any width, the TPU kernel whole lanes of 128.

    Returns:
      the sum, and its normed rows.

    Raises:
      NotImplementedError: a width that the kernel is not made for, or another name.
    """
    names.check_name(implementation, get_args(Implementation))
    if implementation == "xla":
        if added is not None:
            x = reference.add_gated(x, added, gate)
        return x, reference.modulate(x, shift, scale)
    if x.shape[-1] % tpu.LANES:
        raise NotImplementedError(
            f"width {x.shape[-1]} is not a multiple of {tpu.LANES}."
        )
    parts = [shift, scale] + ([] if gate is None else [gate])
    shape = (max(map(len, parts)), 1, x.shape[-1])
    vectors = jnp.concatenate([jnp.broadcast_to(part, shape) for part in parts], 1)
    interpret = implementation.endswith("interpreted")
    out, summed = _kernel(interpret, x, vectors.astype(jnp.float32), added)
    return (x if summed is None else summed), out


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernel(interpret: bool, x, vectors, added):
    return _forward(interpret, x, vectors, added)[0]


def _forward(interpret: bool, x, vectors, added):
    with tpu.interpret_tpu(interpret):
        out, summed = pallas_tpu.forward(x, vectors, added)
    kept = (x if summed is None else summed), vectors, added
    return (out, summed), kept


def _backward(interpret: bool, kept, grads):
    with tpu.interpret_tpu(interpret):
        return pallas_tpu.backward(*kept, *grads)


_kernel.defvjp(_forward, _backward)
