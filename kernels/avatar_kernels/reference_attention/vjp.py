"""One differentiable function over all kernels: what the backward pass keeps and makes.

Kept are the inputs, the output and the log-sum-exp; kernels make the scores again.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from avatar_kernels.reference_attention import sources
from avatar_kernels.reference_attention.block_sizes import KernelSizes
from avatar_kernels.reference_attention.reference import MASKED, LocalWindow


class Kernels(NamedTuple):
    """The three kernels of an implementation.

    With queries q, their output `out` and its gradient `d_out` of `B T N K`, the
    log-sum-exp `lse` and its gradient `d_lse` of `B T N`, float32 (backward: lse 1e30
    where nothing is seen), and `sizes` the blocks of that kernel:

    Attributes:
      forward: (q, sources, sizes) -> out, lse (-1e30 where nothing is seen).
      backward_q: (q, sources, out, d_out, lse, d_lse, sizes) -> dq, and for each query
        and head D = sum(d_out * out) - d_lse, float32 `B T N`.
      backward_kv: (q, source, d_out, lse, D, sizes) -> dk, dv.
    """

    forward: Callable
    backward_q: Callable
    backward_kv: Callable


class Rows(NamedTuple):
    """Queries, own keys and values, the reference's where there is one."""

    q: Float[Array, "B T N K"]
    k: Float[Array, "B S N K"]
    v: Float[Array, "B S N K"]
    reference_k: Float[Array, "B R N K"] | None = None
    reference_v: Float[Array, "B R N K"] | None = None


class Marks(NamedTuple):
    """Who may be seen, and by whom."""

    valid: Bool[Array, "B S"]
    reference_valid: Bool[Array, "B R"] | None = None
    segment_ids: Int[Array, "B S"] | None = None


class Plan(NamedTuple):
    """What is known when the program is made; hashable."""

    kernels: Kernels
    sizes: KernelSizes
    window: LocalWindow | None = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
    plan: Plan, rows: Rows, marks: Marks
) -> tuple[Float[Array, "B T N K"], Float[Array, "B T N"]]:
    """Return the output and the log-sum-exp."""
    return _forward(plan, rows, marks)[0]


def _forward(plan: Plan, rows: Rows, marks: Marks):
    out, lse = plan.kernels.forward(
        rows.q, _sources(plan, rows, marks), plan.sizes.forward
    )
    return (out, lse), (rows, marks, out, lse)


def _backward(plan: Plan, kept: tuple, grads: tuple) -> tuple[Rows, None]:
    rows, marks, out, lse = kept
    d_out, d_lse = grads
    lse = jnp.where(lse > MASKED / 2, lse, -MASKED)  # rows that see nothing: p = 0
    kernels, sizes, seen = plan.kernels, plan.sizes, _sources(plan, rows, marks)
    dq, delta = kernels.backward_q(
        rows.q, seen, out, d_out, lse, d_lse, sizes.backward_q
    )
    pairs = [
        kernels.backward_kv(rows.q, source, d_out, lse, delta, sizes.backward_kv)
        for source in seen
    ]
    (dk, dv), *others = pairs
    if others:
        return Rows(dq, dk, dv, *others[0]), None
    none = [leaf if leaf is None else jnp.zeros_like(leaf) for leaf in rows[3:]]
    return Rows(dq, dk, dv, *none), None


attend.defvjp(_forward, _backward)


def _sources(plan: Plan, rows: Rows, marks: Marks) -> list[sources.Source]:
    if marks.segment_ids is not None:
        return [sources.segments(rows.k, rows.v, marks.valid, marks.segment_ids)]
    queries = rows.q.shape[1]
    if plan.window is None:
        own = sources.plain(rows.k, rows.v, marks.valid, queries=queries)
    else:
        own = sources.windowed(rows.k, rows.v, marks.valid, plan.window)
    if rows.reference_k is None or not rows.reference_k.shape[1]:
        return [own]
    return [
        own,
        sources.plain(
            rows.reference_k,
            rows.reference_v,
            marks.reference_valid,
            queries=queries,
        ),
    ]
