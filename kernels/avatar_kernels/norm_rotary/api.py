"""The public function of norm and rotary: pick the code, keep its gradient."""

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from avatar_kernels import names, tpu
from avatar_kernels.norm_rotary import pallas_tpu, reference

Implementation = Literal["xla", "mosaic_tpu", "mosaic_tpu_interpreted"]


def norm_rotary(
    x: Float[Array, "B T D"],
    gain: Float[Array, " D"],
    turn: Float[Array, "b T pairs"],
    *,
    implementation: Implementation,
) -> Float[Array, "B T D"]:
    """Norm rows over their full width (RMS) and turn pairs of channels of each head.

    Args:
      x: projected queries or keys.
      gain: of the norm.
      turn: rotary angles of each pair of adjacent channels of a head, radians; b is B
        or 1. No gradient goes to them.
      implementation: "xla" takes any width, the TPU kernel whole lanes of 128.

    Raises:
      NotImplementedError: a width that the kernel is not made for, or another name.
    """
    names.check_name(implementation, get_args(Implementation))
    if implementation == "xla":
        return reference.norm_rotary(x, gain, jax.lax.stop_gradient(turn))
    width, head_dim = x.shape[-1], 2 * turn.shape[-1]
    if width % tpu.LANES or tpu.LANES % head_dim:
        raise NotImplementedError(
            f"width {width} of heads of {head_dim} is not whole lanes of {tpu.LANES}."
        )
    return _kernel(implementation.endswith("interpreted"), x, gain, turn)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernel(interpret: bool, x, gain, turn):
    return _forward(interpret, x, gain, turn)[0]


def _forward(interpret: bool, x, gain, turn):
    with tpu.interpret_tpu(interpret):
        return pallas_tpu.forward(x, gain, turn), (x, gain, turn)


def _backward(interpret: bool, kept, d_out):
    x, gain, turn = kept
    with tpu.interpret_tpu(interpret):
        dx, d_gain = pallas_tpu.backward(x, gain, turn, d_out)
    return dx, d_gain, jnp.zeros_like(turn)


_kernel.defvjp(_forward, _backward)
