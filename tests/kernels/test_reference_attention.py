"""The specification of Sparse Reference Attention against its definition (~15 s)."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from avatar_kernels.reference_attention import segment_attention, target_attention

B, T, S, R, N, K = 2, 3, 5, 7, 2, 8


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def dense(q, k, v, mask):
    """Softmax in float64 NumPy; the definition. mask: B T S."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    scores = np.einsum("btnk,bsnk->bnts", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(np.asarray(mask)[:, None], scores, -np.inf)
    peak = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(peak), peak, 0))
    total = weights.sum(-1, keepdims=True)
    out = np.einsum("bnts,bsnk->btnk", weights / np.where(total > 0, total, 1), v)
    return out, total[..., 0], peak[..., 0]


@pytest.fixture
def inputs():
    q, k, v = normal(0, B, T, N, K), normal(1, B, S, N, K), normal(2, B, S, N, K)
    rk, rv = normal(3, B, R, N, K), normal(4, B, R, N, K)
    valid = jnp.array([[1, 1, 0, 1, 1], [1, 0, 1, 1, 1]], bool)
    reference_valid = jnp.array([[1, 0, 1, 1, 0, 1, 1], [0, 0, 0, 0, 0, 0, 0]], bool)
    return (q, k, v, rk, rv), dict(valid=valid, reference_valid=reference_valid)


def test_two_sources_share_one_softmax(inputs):
    (q, k, v, rk, rv), masks = inputs
    out, lse = target_attention(q, k, v, rk, rv, **masks, return_lse=True)
    mask = np.concatenate([masks["valid"], masks["reference_valid"]], 1)[:, None]
    mask = np.broadcast_to(mask, (B, T, S + R))
    both = (np.concatenate([a, b], 1) for a, b in ((k, rk), (v, rv)))
    expected, total, peak = dense(q, *both, mask)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(lse, np.swapaxes(np.log(total) + peak, 1, 2), atol=1e-5)


def test_an_empty_reference_is_plain_attention(inputs):
    (q, k, v, rk, rv), masks = inputs
    none = jnp.zeros((B, 0), bool)
    out = target_attention(
        q, k, v, rk[:, :0], rv[:, :0], valid=masks["valid"], reference_valid=none
    )
    mask = np.broadcast_to(np.asarray(masks["valid"])[:, None], (B, T, S))
    np.testing.assert_allclose(out, dense(q, k, v, mask)[0], atol=1e-5)


def test_invalid_rows_have_neither_value_nor_gradient(inputs):
    arrays, masks = inputs

    def loss(*arrays):
        return jnp.sum(target_attention(*arrays, **masks) ** 2)

    _, dk, dv, drk, drv = jax.grad(loss, argnums=tuple(range(5)))(*arrays)
    for grad, valid in (
        (dk, masks["valid"]),
        (dv, masks["valid"]),
        (drk, masks["reference_valid"]),
        (drv, masks["reference_valid"]),
    ):
        np.testing.assert_array_equal(grad[~valid], 0)
        assert bool(jnp.all(jnp.any(grad[valid] != 0, axis=(1, 2))))


def test_segments_do_not_see_each_other():
    q, k, v = (normal(i, B, R, N, K) for i in range(3))
    segments = jnp.array([[0, 0, 1, 1, 1, 4, 4]] * B, jnp.int32)
    valid = jnp.array([[1, 1, 1, 0, 1, 0, 0], [1] * 7], bool)
    out = segment_attention(q, k, v, valid=valid, segment_ids=segments)
    mask = (segments[:, :, None] == segments[:, None]) & valid[:, None]
    np.testing.assert_allclose(out, dense(q, k, v, mask)[0], atol=1e-5)
    # Sample 0, segment 4 has no valid row: zeros, not NaN.
    np.testing.assert_array_equal(out[0, 5:], 0)


def test_gradients_match_finite_differences(inputs):
    arrays, masks = inputs
    direction = [normal(10 + i, *a.shape) for i, a in enumerate(arrays)]

    def loss(*arrays):
        out, lse = target_attention(*arrays, **masks, return_lse=True)
        return jnp.sum(out**2) + jnp.sum(lse)

    grads = jax.grad(loss, argnums=tuple(range(5)))(*arrays)
    slope = sum(jnp.vdot(g, d) for g, d in zip(grads, direction, strict=True))
    eps = 1e-2
    ends = [
        loss(*(a + s * eps * d for a, d in zip(arrays, direction, strict=True)))
        for s in (1, -1)
    ]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * eps), rtol=2e-2)


def test_bfloat16_accumulates_in_float32(inputs):
    arrays, masks = inputs
    half = [a.astype(jnp.bfloat16) for a in arrays]
    out = target_attention(*half, **masks)
    assert out.dtype == jnp.bfloat16
    full = target_attention(*(a.astype(jnp.float32) for a in half), **masks)
    # Two roundings to 8 bits: of the weights and of the result.
    chex.assert_trees_all_close(out.astype(jnp.float32), full, atol=2e-2, rtol=2e-2)
