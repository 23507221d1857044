"""The lists that kernels walk, against the mask of every pair of rows (~5 s)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from avatar_kernels.reference_attention import LocalWindow, sources, visits

ROWS, Q, KV = 200, 32, 16  # the last blocks are short
WINDOWS = {
    "window": LocalWindow(2, None, (4, 5)),
    "narrow window": LocalWindow(1, 2, (4, 5)),
}
KINDS = ["plain", "segments", *WINDOWS]


def packed():
    return jnp.arange(ROWS)[None] < jnp.array([[100], [0]])


def make(kind):
    """Return a source, and who sees whom: B T S."""
    k = jnp.zeros((2, ROWS, 1, 8))
    valid = packed() | (jnp.arange(ROWS) == 150)[None]
    if kind == "plain":
        source = sources.plain(k, k, valid, queries=ROWS)
        mask = jnp.broadcast_to(valid[:, None], (2, ROWS, ROWS))
    elif kind in WINDOWS:
        valid = jnp.arange(ROWS)[None] != jnp.array([[3], [90]])
        source = sources.windowed(k, k, valid, WINDOWS[kind])
        mask = valid[:, None] & WINDOWS[kind].mask(ROWS)[None]
    else:
        valid = jnp.arange(ROWS)[None] < jnp.array([[190], [120]])
        ids = jnp.searchsorted(jnp.array([40, 41, 128]), jnp.arange(ROWS), side="right")
        ids = jnp.stack([ids, ids])
        source = sources.segments(k, k, valid, ids)
        mask = valid[:, None] & (ids[:, :, None] == ids[:, None])
    return source, np.asarray(mask)


def by_block(mask):
    """Return whether any, and whether all, pairs of two blocks see each other."""
    extra = (-ROWS % Q, -ROWS % KV)
    parts = [
        np.pad(mask, ((0, 0), (0, extra[0]), (0, extra[1])), constant_values=fill)
        for fill in (False, True)
    ]
    shape = (len(mask), -(-ROWS // Q), Q, -(-ROWS // KV), KV)
    return parts[0].reshape(shape).any((2, 4)), parts[1].reshape(shape).all((2, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_seen_is_visited_and_little_else(kind):
    source, mask = make(kind)
    some, full = (np.broadcast_to(m, (2, 7, 13)) for m in source.see(Q, KV))
    any_pair, all_pairs = by_block(mask)
    assert not (any_pair & ~some).any()  # nothing is missed
    assert not (full & ~all_pairs).any()  # nothing is seen that must not be
    assert (some & ~full).any() and full.any() == (kind != "narrow window")
    # Of what is not seen at most a tenth is visited: bounds of blocks are not exact.
    assert (some & ~any_pair).sum() <= 0.1 * (~any_pair).sum()
    assert not some.all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_integers_of_rows_say_who_sees_whom(kind):
    source, mask = make(kind)
    seen = np.asarray(source.key_meta)[:, None, 0] > 0
    for axis, reach in enumerate(source.reach):
        key = np.asarray(source.key_meta)[:, None, axis + 1]
        query = np.asarray(source.query_meta)[:, axis, :, None]
        seen = seen & ((np.abs(query - key) <= reach) | (key < 0))
    np.testing.assert_array_equal(np.broadcast_to(seen, mask.shape), mask)


def test_a_list_names_its_blocks_in_order_and_then_stands_still():
    some = jnp.array([[[False, True, False, True], [False] * 4]])
    full = jnp.array([[[False, False, False, True], [False] * 4]])
    count, block, is_full = jax.jit(
        lambda *masks: visits.list_visits(*masks, longest=4)
    )(some, full)
    np.testing.assert_array_equal(count, [[2, 0]])
    np.testing.assert_array_equal(block[0, 0], [1, 3, 3, 3])
    np.testing.assert_array_equal(is_full[0, 0], [0, 1, 1, 1])
