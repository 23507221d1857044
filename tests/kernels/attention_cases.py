"""Cases that kernels must answer as the specification does, gradients too."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from avatar_kernels.reference_attention import (
    LocalWindow,
    segment_attention,
    target_attention,
)
from avatar_kernels.reference_attention.reference import MASKED

# Relative to the largest entry. float32: sums in another order. bfloat16 (float16):
# weights and results are rounded to 8 (11) bits, gradients pass two roundings more.
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 3e-2, jnp.float16: 4e-3}


class Case(NamedTuple):
    """No block of 128 divides the lengths; lists hold blocks seen whole and in part."""

    rows: int = 200
    reference: int | None = 200  # None: segments, without a second source
    heads: int = 1
    width: int = 128
    window: LocalWindow | None = None
    dtype: type = jnp.float32


CASES = {
    "head_dim 128": Case(),
    "head_dim 64, odd heads": Case(heads=3, width=64),
    "bfloat16, odd lengths": Case(203, 197, dtype=jnp.bfloat16),
    "empty reference": Case(rows=130, reference=0),
    "window": Case(window=LocalWindow(1, 1, (4, 10))),
    "fewer rows than a block": Case(rows=28, reference=12, width=64),
    "segments": Case(reference=None, heads=2, width=64),
}


def compare(case: Case, *, jit=jax.jit, **chosen) -> None:
    """Compare output, log-sum-exp and every gradient, that of the latter included.

    Rows that see nothing must give zeros and a log-sum-exp of -1e30.
    """
    arrays, call = make(case)
    got = _run(arrays, lambda *a: call(*a, **chosen), jit)
    full = [a.astype(jnp.float32) for a in arrays]
    expected = _run(full, lambda *a: call(*a, implementation="xla"), jax.jit)
    for ours, theirs in zip(got, expected, strict=True):
        scale = max(1.0, float(np.abs(theirs).max(initial=0)))
        np.testing.assert_allclose(
            np.asarray(ours, np.float32), theirs, atol=TOLERANCE[case.dtype] * scale
        )


def make(case: Case):
    """Return arrays, and the operator as a function of them and keywords."""
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def draw(rows: int):
        shape = (2, rows, case.heads, case.width)
        return jax.random.normal(next(keys), shape).astype(case.dtype)

    arrays = [draw(case.rows) for _ in range(3)]
    valid = jax.random.bernoulli(next(keys), 0.7, (2, case.rows))
    valid = valid.at[0].set(jnp.arange(case.rows) < case.rows * 17 // 20)
    if case.reference is None:
        # Unequal segments; one of the second sample has no valid row at all.
        ids = jnp.searchsorted(jnp.array([60, 70, 140]), jnp.arange(case.rows))
        valid = valid.at[1].set(valid[1] & (ids != 1))
        ids = jnp.stack([ids, 3 - ids[::-1]]) * 2 - 1

        def call(*arrays, **chosen):
            return segment_attention(
                *arrays, valid=valid, segment_ids=ids, return_lse=True, **chosen
            )

        return arrays, call
    arrays += [draw(case.reference) for _ in range(2)]
    # Packed to two thirds, and wholly invalid in the second sample.
    packed = jnp.arange(case.reference)[None] < jnp.array(
        [[case.reference * 2 // 3], [0]]
    )

    def call(*arrays, **chosen):
        return target_attention(
            *arrays,
            valid=valid,
            reference_valid=packed,
            window=case.window,
            return_lse=True,
            **chosen,
        )

    return arrays, call


def _run(arrays, call, jit):
    def run(*arrays):
        (out, lse), pull = jax.vjp(call, *arrays)
        seeds = jax.random.split(jax.random.key(1))
        d_out = jax.random.normal(seeds[0], out.shape).astype(out.dtype)
        seen = lse > MASKED / 2
        d_lse = jnp.where(seen, jax.random.normal(seeds[1], lse.shape), 0)
        return seen, lse, out, *pull((d_out, d_lse))

    seen, lse, out, *grads = jit(run)(*arrays)
    assert all(g.dtype == a.dtype for g, a in zip(grads, arrays, strict=True))
    assert (np.asarray(lse)[~np.asarray(seen)] == np.float32(MASKED)).all()
    results = seen, np.where(seen, lse, 0), out, *grads
    return [np.asarray(a, np.float32) for a in results]
