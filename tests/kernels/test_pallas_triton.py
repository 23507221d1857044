"""The Triton kernels, interpreted, against the specification (~40 s)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from avatar_kernels import cuda_targets
from avatar_kernels.reference_attention import (
    pallas_triton,
    pallas_triton_vjp,
    reference,
    vjp,
)
from avatar_kernels.reference_attention.block_sizes import BlockSizes, KernelSizes

B, T, R, N = 2, 200, 150, 2
# Small and different, so that lists are long and a swapped size fails.
SIZES = KernelSizes(
    BlockSizes(128, 64, 64), BlockSizes(64, 128, 128), BlockSizes(128, 64, 64)
)
WINDOW = reference.LocalWindow(1, 1, (4, 10))
KERNELS = vjp.Kernels(
    *(
        functools.partial(kernel, interpret=True)
        for kernel in (
            pallas_triton.forward,
            pallas_triton_vjp.backward_q,
            pallas_triton_vjp.backward_kv,
        )
    )
)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def make_rows(width, dtype, references=R):
    lengths = T, T, T, references, references
    return [
        normal(i, B, rows, N, width).astype(dtype) for i, rows in enumerate(lengths)
    ]


def make_marks(references=R):
    """Own rows packed or at random, a packed reference that one sample lacks."""
    valid = jax.random.bernoulli(jax.random.key(5), 0.7, (B, T))
    valid = valid.at[0].set(jnp.arange(T) < 170)
    return valid, jnp.arange(references)[None] < jnp.array([[100], [0]])


def run(function, rows):
    """Return output, log-sum-exp and the gradients of all rows through both."""

    @jax.jit
    def both(*rows):
        (out, lse), pull = jax.vjp(function, *rows)
        grads = normal(7, *out.shape).astype(out.dtype), normal(8, *lse.shape)
        unseen = jnp.zeros_like(lse)  # the gradient of a constant
        return out, lse, *pull((grads[0], jnp.where(lse > -1e29, grads[1], unseen)))

    return both(*rows)


def compare(kernel, specification, rows):
    got = run(kernel, rows)
    assert all(a.dtype == b.dtype for a, b in zip(got[2:], rows, strict=True))
    want = run(specification, [row.astype(jnp.float32) for row in rows])
    # float32: another order of sums. bfloat16: 2^-9 for the result and as much for each
    # of the weights, of which a few count; the gradients reach about 10.
    tolerance = 2e-5 if rows[0].dtype == jnp.float32 else 4e-2
    for name, a, b in zip(("out", "lse", *"qkvrw"), got, want, strict=False):
        np.testing.assert_allclose(
            np.float32(a), b, rtol=tolerance, atol=tolerance, err_msg=name
        )
    return got[:2]


@pytest.mark.parametrize(
    "width, dtype, window",
    [(64, "float32", None), (128, "bfloat16", WINDOW)],
    ids=["all", "window"],
)
def test_target_attention_matches_its_specification(width, dtype, window):
    valid, reference_valid = make_marks()

    def kernel(*rows):
        marks = vjp.Marks(valid, reference_valid)
        return vjp.attend(vjp.Plan(KERNELS, SIZES, window), vjp.Rows(*rows), marks)

    def specification(*rows):
        return reference.target_attention(
            *rows, valid=valid, reference_valid=reference_valid, window=window
        )

    compare(kernel, specification, make_rows(width, dtype))


def test_an_empty_reference_is_plain_attention():
    valid, _ = make_marks()
    rows = make_rows(128, "float32", references=0)
    none = jnp.zeros((B, 0), bool)

    def kernel(*rows):
        marks = vjp.Marks(valid, none)
        return vjp.attend(vjp.Plan(KERNELS, SIZES), vjp.Rows(*rows), marks)

    def specification(*rows):
        return reference.target_attention(*rows, valid=valid, reference_valid=none)

    compare(kernel, specification, rows)


def test_segment_attention_matches_its_specification():
    valid, _ = make_marks()
    segment_ids = jnp.repeat(jnp.arange(5), T // 5)[None].repeat(B, 0) * 2 - 1
    valid = valid & (segment_ids != 3)  # a segment where nothing is seen

    def kernel(*rows):
        marks = vjp.Marks(valid, None, segment_ids)
        return vjp.attend(vjp.Plan(KERNELS, SIZES), vjp.Rows(*rows), marks)

    def specification(*rows):
        return reference.segment_attention(*rows, valid=valid, segment_ids=segment_ids)

    rows = make_rows(64, "bfloat16")[:3]
    out, lse = compare(kernel, specification, rows)
    unseen = np.asarray(segment_ids[0] == 3)
    np.testing.assert_array_equal(np.float32(out[:, unseen]), 0)
    np.testing.assert_array_equal(lse[:, unseen], np.float32(reference.MASKED))


def test_only_a_described_gpu_is_a_target():
    assert cuda_targets.names() == ["a100", "h100", "h200"]
    with pytest.raises(ValueError, match="expected one of"):
        cuda_targets.devices("v100")
