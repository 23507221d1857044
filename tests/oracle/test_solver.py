"""The solver is the original's, step for step (~5 s; needs ../shared)."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.flow import unipc

ATOL = 1e-5  # float32 coefficients there, float64 here
# A value between two of bfloat16 may be rounded the other way, and stays off by that.
FLIPPED, FLIP_ATOL = 0.01, 0.05


def _read(case):
    told, tensors = cases.load(case)
    steps, shift = told["meta"]["steps"], told["meta"]["shift"]
    return unipc.schedule(steps, shift=shift), told["meta"]["bf16"], tensors


@pytest.mark.parametrize("case", cases.find("unipc"))
def test_levels_and_timesteps_are_the_originals(case):
    (sigmas, timesteps), _, tensors = _read(case)
    np.testing.assert_allclose(sigmas, tensors["out.sigmas"], atol=1e-6)
    np.testing.assert_array_equal(timesteps, tensors["out.timesteps"])


@pytest.mark.parametrize("case", cases.find("unipc"))
def test_steps_of_given_velocities_are_the_originals(case):
    (sigmas, _), bfloat16, tensors = _read(case)
    steps, made = unipc.make_steps(sigmas), []

    state = unipc.start(jnp.asarray(tensors["in.sample"]))
    for i, velocity in enumerate(jnp.asarray(tensors["in.model_outputs"])):
        row = jax.tree.map(lambda leaf, i=i: leaf[i], steps)
        state = unipc.step(state, velocity, row, bfloat16=bfloat16)
        made.append((state.sample, state.corrected, state.estimate))
    names = "out.samples", "out.corrected_samples", "out.x0_predictions"
    for name, came in zip(names, zip(*made, strict=True), strict=True):
        _assert_close(np.stack(came), tensors[name], bfloat16)
    whole = unipc.solve(
        _replay(tensors["in.model_outputs"]),
        jnp.asarray(tensors["in.sample"]),
        jnp.asarray(np.arange(len(sigmas)), jnp.float32),
        steps=steps,
        bfloat16=bfloat16,
    )
    _assert_close(np.asarray(whole), tensors["out.samples"][-1], bfloat16)


def _assert_close(came, expected, bfloat16):
    if bfloat16:
        np.testing.assert_allclose(came, expected, atol=FLIP_ATOL)
        assert np.mean(np.abs(came - expected) > ATOL) <= FLIPPED
    else:
        np.testing.assert_allclose(came, expected, atol=ATOL)


def _replay(velocities):
    """Answer "time" i with velocity i."""
    return lambda x, t, estimate: jnp.asarray(velocities)[t[0].astype(int)]
