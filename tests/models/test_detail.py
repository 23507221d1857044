"""The convolutional read-out (~10 s on 2 cores)."""

import jax
import jax.numpy as jnp
import numpy as np
from dit_cases import normal

from avatar_jax.models import detail, tokens

B, F, H, W, C, D = 2, 3, 8, 6, 5, 12
HEAD = detail.DetailHead(
    width=7, channels=C, patch=2, still_concat=True, dtype=jnp.dtype("float32")
)


def make_inputs(channels=2 * C + 2):
    rows = normal(0, B, F * (H // 2) * (W // 2), D)
    return rows, normal(1, B, F, H, W, channels), normal(2, B, D)


def make_params(inputs, scale=0.3):
    params = HEAD.init(jax.random.key(0), *inputs)["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten(
        [
            scale * jax.random.normal(k, a.shape)
            for k, a in zip(keys, leaves, strict=True)
        ]
    )


def test_at_step_0_it_says_nothing():
    inputs = make_inputs()
    out = HEAD.apply(HEAD.init(jax.random.key(0), *inputs), *inputs)
    assert out.shape == (B, F, H, W, C)
    np.testing.assert_array_equal(out, 0)


def test_it_sees_its_neighbourhood_within_the_frame_and_no_further():
    inputs = make_inputs()
    params = make_params(inputs)
    rows, cells, time = inputs
    far = HEAD.apply(
        {"params": params}, rows, cells.at[:, 1, 0, 0].add(1.0), time
    ) - HEAD.apply({"params": params}, rows, cells, time)
    touched = np.abs(far).max((0, 4)) > 1e-6
    reach = detail.DEPTH + 1  # convolutions of 3 x 3
    expected = np.zeros((F, H, W), bool)
    expected[1, : reach + 1, : reach + 1] = True
    np.testing.assert_array_equal(touched, expected)


def test_each_row_speaks_for_the_cells_of_its_patch():
    """Without convolutions, changing one row changes its own patch alone."""
    inputs = make_inputs()
    params = make_params(inputs)
    for name in ("conv_0", "conv_1", "last"):
        params[name] = jax.tree.map(jnp.zeros_like, params[name])
    rows, cells, time = inputs
    changed = HEAD.apply({"params": params}, rows.at[:, 1].add(1.0), cells, time)
    moved = np.abs(changed - HEAD.apply({"params": params}, *inputs)).max((0, 4)) > 1e-6
    patches = np.zeros((1, F, H // 2, W // 2, 1))
    patches[0, 0, 0, 1] = 1
    cell = tokens.unpatchify(jnp.asarray(np.repeat(patches, 4, -1)), 2)[0, ..., 0]
    np.testing.assert_array_equal(moved, np.asarray(cell) > 0)


def test_gates_alone_can_copy_the_noisy_latents_or_the_still():
    inputs = make_inputs()
    rows, cells, time = inputs
    for offset, source in ((0, cells[..., :C]), (C, cells[..., -C:])):
        params = jax.tree.map(jnp.zeros_like, make_params(inputs))
        params["gates"]["bias"] = params["gates"]["bias"].at[offset : offset + C].set(1)
        out = HEAD.apply({"params": params}, rows, cells, time)
        np.testing.assert_allclose(out, source, rtol=1e-6)


def test_without_a_still_beside_there_is_one_source():
    alone = HEAD.clone(still_concat=False)
    params = alone.init(jax.random.key(0), *make_inputs(channels=C + 2))["params"]
    assert params["gates"]["bias"].shape == (C,)
