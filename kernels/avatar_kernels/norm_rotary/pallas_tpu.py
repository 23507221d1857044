"""RMS norm and rotary turns on TPU in one pass over memory (Mosaic TPU).

Left to XLA this costs about ten times the bytes of reading and writing the rows once:
channels of a pair are neighbouring lanes, and taking every second lane apart goes
through memory in padded layouts (`python -m benchmarks.norms`). Here a block of
whole rows lies in VMEM; pairs are swapped by turning lanes by one, one way for even and
the other for odd lanes.

Backward: a turn is undone by the opposite turn, so that with dz = turn(dy, -a),
n = x r, r = 1 / sqrt(mean(x^2) + eps):

  dx = r (g dz - n mean(g dz n))       dg = sum_rows dz n

VMEM (bytes): rows x D x (2 E per block of rows of E-byte numbers, which is double
buffered, and 4 x 4 on their way). Most takes the backward pass, three blocks: for 64
rows of 5,120 9 MiB in bfloat16, 13 MiB in float32.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from avatar_kernels.norm_rotary.reference import EPS
from avatar_kernels.tpu import LANES

Ref = Any  # a block in VMEM: tracers of no public type
ROWS = 64
VMEM_LIMIT = 32 * 2**20  # bytes


def forward(
    x: Float[Array, "B T D"],
    gain: Float[Array, " D"],
    turn: Float[Array, "b T pairs"],
) -> Float[Array, "B T D"]:
    """Return the rows, normed and turned."""
    batch, rows, width = x.shape
    block = pl.BlockSpec((1, ROWS, width), lambda b, i: (b, i, 0))
    return pl.pallas_call(
        _forward_kernel,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(batch, pl.cdiv(rows, ROWS)),
        in_specs=[block, _gain_spec(width), _turn_spec(turn)],
        out_specs=block,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=VMEM_LIMIT
        ),
        cost_estimate=_estimate(x, passes=2),
        name="norm_rotary_forward",
    )(x, gain[None].astype(jnp.float32), _lay_out(turn))


def _forward_kernel(x: Ref, gain: Ref, turn: Ref, out: Ref) -> None:
    rows = x[0].astype(jnp.float32)
    rows = rows * jax.lax.rsqrt(jnp.square(rows).mean(-1, keepdims=True) + EPS)
    rows = (rows * gain[...]).astype(x.dtype).astype(jnp.float32)
    cos, sin = _cosines(turn, 1.0)
    for start in range(0, x.shape[2], LANES):
        out[0, :, start : start + LANES] = _turn(
            rows[:, start : start + LANES], cos, sin
        ).astype(out.dtype)


def backward(
    x: Float[Array, "B T D"],
    gain: Float[Array, " D"],
    turn: Float[Array, "b T pairs"],
    d_out: Float[Array, "B T D"],
) -> tuple[Float[Array, "B T D"], Float[Array, " D"]]:
    """Return the gradients of rows and gain."""
    batch, rows, width = x.shape
    block = pl.BlockSpec((1, ROWS, width), lambda b, i: (b, i, 0))
    dx, d_gain = pl.pallas_call(
        functools.partial(_backward_kernel, rows=rows),
        out_shape=(
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct((1, width), jnp.float32),
        ),
        grid=(batch, pl.cdiv(rows, ROWS)),
        in_specs=[block, _gain_spec(width), _turn_spec(turn), block],
        out_specs=(block, _gain_spec(width)),
        scratch_shapes=[pltpu.VMEM((ROWS, width), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
        cost_estimate=_estimate(x, passes=3),
        name="norm_rotary_backward",
    )(x, gain[None].astype(jnp.float32), _lay_out(turn), d_out)
    return dx, d_gain[0].astype(gain.dtype)


def _backward_kernel(
    x: Ref, gain: Ref, turn: Ref, d_out: Ref, dx: Ref, d_gain: Ref, back: Ref, *, rows
) -> None:
    @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
    def _():
        d_gain[...] = jnp.zeros_like(d_gain)

    cos, sin = _cosines(turn, -1.0)
    for start in range(0, x.shape[2], LANES):
        lanes = pl.ds(start, LANES)
        back[:, lanes] = _turn(d_out[0, :, lanes].astype(jnp.float32), cos, sin)
    # Beyond the last row lies anything, NaN too.
    left = rows - pl.program_id(1) * ROWS
    inside = jax.lax.broadcasted_iota(jnp.int32, back.shape, 0) < left
    dz = jnp.where(inside, back[...], 0.0)
    value = jnp.where(inside, x[0].astype(jnp.float32), 0.0)
    scale = jax.lax.rsqrt(jnp.square(value).mean(-1, keepdims=True) + EPS)
    normed, d_normed = value * scale, dz * gain[...]
    shared = (d_normed * normed).mean(-1, keepdims=True)
    dx[0] = (scale * (d_normed - normed * shared)).astype(dx.dtype)
    d_gain[...] += (dz * normed).sum(0, keepdims=True)


def _turn(rows: Array, cos: Array, sin: Array) -> Array:
    """Turn pairs of neighbouring lanes; `sin` is negative on even lanes."""
    lane = jax.lax.broadcasted_iota(jnp.int32, rows.shape, 1)
    after, before = pltpu.roll(rows, LANES - 1, 1), pltpu.roll(rows, 1, 1)
    other = jnp.where(lane % 2 == 0, after, before)
    return rows * cos + other * sin


def _cosines(turn: Ref, direction: float) -> tuple[Array, Array]:
    angle = turn[0]
    lane = jax.lax.broadcasted_iota(jnp.int32, angle.shape, 1)
    sign = jnp.where(lane % 2 == 0, -direction, direction)
    return jnp.cos(angle), jnp.sin(angle) * sign


def _lay_out(turn: Float[Array, "b T pairs"]) -> Float[Array, "b T lanes"]:
    """Give each lane the angle of its pair; heads of 64 share 128 lanes."""
    lanes = jnp.repeat(turn.astype(jnp.float32), 2, -1)
    return jnp.tile(lanes, (1, 1, LANES // lanes.shape[-1]))


def _turn_spec(turn: Float[Array, "b T pairs"]) -> pl.BlockSpec:
    shared = turn.shape[0] == 1
    return pl.BlockSpec((1, ROWS, LANES), lambda b, i: (0 if shared else b, i, 0))


def _gain_spec(width: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, width), lambda b, i: (0, 0))


def _estimate(x: Float[Array, "B T D"], *, passes: int) -> pl.CostEstimate:
    """Tell the scheduler that this is a matter of memory."""
    rows, turns = x.size * x.dtype.itemsize, 4 * LANES * x.shape[0] * x.shape[1]
    bytes_accessed = passes * rows + turns
    return pl.CostEstimate(
        flops=20 * x.size, transcendentals=0, bytes_accessed=bytes_accessed
    )
