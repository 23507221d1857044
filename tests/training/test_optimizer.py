"""Who is Muon's, and what Muon does to it (~15 s on 2 cores)."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from avatar_jax.training import optimizer


def make_params():
    keys = iter(jax.random.split(jax.random.key(0), 20))

    def draw(*shape):
        return jax.random.normal(next(keys), shape)

    return {
        "model": {
            "blocks": {
                "attention": {"q": {"kernel": draw(2, 5, 7), "bias": draw(2, 7)}},
                "modulation": draw(2, 6, 7),
                "convolution": {"kernel": draw(2, 3, 5, 7)},
            },
            "time_embedding": {"inner": {"kernel": draw(4, 6), "bias": draw(6)}},
            "patch_embedding": {"kernel": draw(4, 6)},
            "head": {"kernel": draw(6, 4)},
            "motion_head": {
                "pooled": {"kernel": draw(6, 24), "bias": draw(24)},
                "block_0": {"near": {"kernel": draw(5, 6, 6)}},
                "codes": {"kernel": draw(6, 2), "bias": draw(2)},
            },
            "slots": draw(3, 6),
        }
    }


def muon_names(params):
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in flat
        if optimizer.is_muon(path, leaf)
    }


def test_muon_takes_hidden_matrices_only():
    assert muon_names(make_params()) == {
        "model/blocks/attention/q/kernel",
        "model/time_embedding/inner/kernel",
        "model/motion_head/pooled/kernel",
    }


def test_every_block_matrix_is_in_muons_partition_of_the_state():
    params = make_params()
    config = optimizer.OptimizerConfig()
    state = optimizer.make_optimizer(config, steps=10).init(params)
    momenta = optax.tree_utils.tree_get_all_with_path(state, "mu")
    muon = next(tree for path, tree in momenta if "muon" in str(path))
    held = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_flatten_with_path(muon)[0]
    }
    assert held == muon_names(params)


def test_muon_updates_have_nearly_equal_singular_values_per_layer():
    params = make_params()
    config = optimizer.OptimizerConfig(learning_rate=1.0, warmup_steps=0)
    transform = optimizer.make_optimizer(config, steps=10)
    grads = jax.tree.map(jnp.sin, params)
    # A gradient dominated by one direction: Adam would keep it dominant.
    kernel = grads["model"]["blocks"]["attention"]["q"]["kernel"]
    dominated = kernel.at[:, 0].multiply(50.0)
    grads["model"]["blocks"]["attention"]["q"]["kernel"] = dominated
    state = transform.init(params)
    _, state = transform.update(grads, state, params)  # warm-up starts at 0
    updates, _ = transform.update(grads, state, params)
    update = updates["model"]["blocks"]["attention"]["q"]["kernel"]
    before = np.linalg.svd(dominated, compute_uv=False)
    after = np.linalg.svd(update, compute_uv=False)
    assert (before[:, 0] / before[:, -1] > 20).all()
    assert (after[:, 0] / after[:, -1] < 2.5).all()
    # Scaled to AdamW's size: root mean square about 0.2.
    rms = np.sqrt(np.mean(np.square(update)))
    assert 0.1 < rms < 0.3
    chex.assert_tree_all_finite(updates)


def test_schedule_warms_up_holds_and_decays_in_the_last_share():
    config = optimizer.OptimizerConfig(
        learning_rate=2.0, warmup_steps=10, decay_fraction=0.4, final_fraction=0.1
    )
    rate = optimizer.make_schedule(config, steps=100)
    np.testing.assert_allclose([rate(0), rate(5), rate(10)], [0.0, 1.0, 2.0])
    np.testing.assert_allclose([rate(59), rate(80), rate(100)], [2.0, 1.1, 0.2])


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_schedule_of_very_few_steps_is_finite(steps):
    rate = optimizer.make_schedule(optimizer.OptimizerConfig(), steps=steps)
    assert all(np.isfinite(rate(step)) for step in range(steps + 1))
