"""Residual, layer norm, scale and shift on TPU in one pass over memory (Mosaic TPU).

XLA reads the rows once each for mean, variance and result (`benchmarks.norms`: 1.5 to 4
times the least bytes). Here a block of whole rows lies in VMEM. Backward, with
n = (x' - mean) r, dn = do (1 + scale), and dx' also what flows into x' from elsewhere:

  dx     = dx' + r (dn - mean(dn) - n mean(dn n))      dy     = gate dx
  dshift = sum do    dscale = sum do n    dgate = sum dx y          sums over rows

VMEM (bytes): rows x D x (2 E per block of rows of E-byte numbers, which is double
buffered, and 4 x 4 on their way). Most takes the backward pass with residual, six
blocks: for 64 rows of 5,120 12.5 MiB in bfloat16, 20 MiB in float32.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from avatar_kernels.modulated_norm.reference import EPS

Ref = Any  # a block in VMEM: tracers of no public type
ROWS = 64
VMEM_LIMIT = 32 * 2**20  # bytes


def forward(
    x: Float[Array, "B T D"],
    vectors: Float[Array, "b n D"],
    added: Float[Array, "B T D"] | None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"] | None]:
    """Return o, and x' where something is added.

    Args:
      x: rows.
      vectors: shift, scale, and gate where something is added; float32.
      added: y of eq. 1.
    """
    rows = [x] if added is None else [x, added]
    out = pl.pallas_call(
        _forward_kernel,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype)] * len(rows),
        grid=(x.shape[0], pl.cdiv(x.shape[1], ROWS)),
        in_specs=[_vector_spec(vectors), *[_row_spec(x)] * len(rows)],
        out_specs=[_row_spec(x)] * len(rows),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=VMEM_LIMIT
        ),
        cost_estimate=_estimate(x, passes=2 * len(rows)),
        name="modulated_norm_forward",
    )(vectors, *rows)
    return out[0], None if added is None else out[1]


def _forward_kernel(vectors: Ref, x: Ref, *refs: Ref) -> None:
    shift, scale, *gate = (vectors[0, i : i + 1] for i in range(vectors.shape[1]))
    rows = x[0].astype(jnp.float32)
    if gate:
        added, out, summed = refs
        rows = (rows + gate[0] * added[0]).astype(x.dtype).astype(jnp.float32)
        summed[0] = rows.astype(summed.dtype)
    else:
        (out,) = refs
    normed, _ = _norm(rows)
    out[0] = (normed * (1 + scale) + shift).astype(out.dtype)


def _norm(rows: Float[Array, "T D"]) -> tuple[Array, Array]:
    """Return normed rows and what they were multiplied by."""
    centred = rows - rows.mean(-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + EPS)
    return centred * factor, factor


def backward(
    summed: Float[Array, "B T D"],
    vectors: Float[Array, "b n D"],
    added: Float[Array, "B T D"] | None,
    d_out: Float[Array, "B T D"],
    d_summed: Float[Array, "B T D"] | None,
) -> tuple[Float[Array, "B T D"], Float[Array, "b n D"], Float[Array, "B T D"] | None]:
    """Return the gradients of x, of the vectors and of what is added.

    Args:
      summed: x' (x where nothing is added).
      vectors: as in the forward pass.
      added: likewise.
      d_out: gradient of o.
      d_summed: gradient of x', where something is added.
    """
    batch, length, _ = summed.shape
    rows = [summed, d_out] + ([] if added is None else [added, d_summed])
    outs = 1 if added is None else 2
    dx, *dy, d_vectors = pl.pallas_call(
        functools.partial(_backward_kernel, length=length, shared=len(vectors) == 1),
        out_shape=[
            *[jax.ShapeDtypeStruct(summed.shape, summed.dtype)] * outs,
            jax.ShapeDtypeStruct(vectors.shape, jnp.float32),
        ],
        grid=(batch, pl.cdiv(length, ROWS)),
        in_specs=[_vector_spec(vectors), *[_row_spec(summed)] * len(rows)],
        out_specs=[*[_row_spec(summed)] * outs, _vector_spec(vectors)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
        cost_estimate=_estimate(summed, passes=len(rows) + outs),
        name="modulated_norm_backward",
    )(vectors, *rows)
    return dx, d_vectors, dy[0] if dy else None


def _backward_kernel(
    vectors: Ref, summed: Ref, d_out: Ref, *refs: Ref, length: int, shared: bool
) -> None:
    _, scale, *gate = (vectors[0, i : i + 1] for i in range(vectors.shape[1]))
    *refs, d_vectors = refs
    first = pl.program_id(1) == 0
    if shared:
        first = first & (pl.program_id(0) == 0)

    @pl.when(first)
    def _():
        d_vectors[...] = jnp.zeros_like(d_vectors)

    # Beyond the last row lies anything, NaN too.
    left = length - pl.program_id(1) * ROWS
    inside = jax.lax.broadcasted_iota(jnp.int32, summed.shape[1:], 0) < left

    def load(ref: Ref) -> Array:
        return jnp.where(inside, ref[0].astype(jnp.float32), 0.0)

    normed, factor = _norm(load(summed))
    d_rows = load(d_out)
    d_normed = d_rows * (1 + scale)
    dx = d_normed - d_normed.mean(-1, keepdims=True)
    dx = factor * (dx - normed * (d_normed * normed).mean(-1, keepdims=True))
    sums = [d_rows, d_rows * normed]
    if gate:
        added, d_summed, dx_ref, dy_ref = refs
        dx = dx + load(d_summed)
        sums.append(dx * load(added))
        dy_ref[0] = (gate[0] * dx).astype(dy_ref.dtype)
    else:
        (dx_ref,) = refs
    dx_ref[0] = dx.astype(dx_ref.dtype)
    for i, value in enumerate(sums):
        d_vectors[0, i : i + 1] += value.sum(0, keepdims=True)


def _row_spec(x: Float[Array, "B T D"]) -> pl.BlockSpec:
    return pl.BlockSpec((1, ROWS, x.shape[2]), lambda b, i: (b, i, 0))


def _vector_spec(vectors: Float[Array, "b n D"]) -> pl.BlockSpec:
    shared = len(vectors) == 1
    return pl.BlockSpec(
        (1, *vectors.shape[1:]), lambda b, i: (0 if shared else b, 0, 0)
    )


def _estimate(x: Float[Array, "B T D"], *, passes: int) -> pl.CostEstimate:
    """Tell the scheduler that this is a matter of memory."""
    bytes_accessed = passes * x.size * x.dtype.itemsize
    return pl.CostEstimate(
        flops=20 * x.size, transcendentals=0, bytes_accessed=bytes_accessed
    )
