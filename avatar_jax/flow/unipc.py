"""UniPC, a predictor-corrector of second order (arXiv 2302.04867), as TAVR runs it.

With sigma the noise level, alpha = 1 - sigma, lambda = log(alpha / sigma), step i has
the sample x_i and its velocity v_i, and predicts data:

  (1) X_i = x_i - sigma_i v_i

From i to j it moves, with h = lambda_j - lambda_i and B = e^-h - 1 (variant B2), by

  (2) base = sigma_j / sigma_i c_i - alpha_j B X_i

The corrector takes the step into i once more, now that X_i is known, and the predictor
goes on from what it gave; c_0 = x_0:

  (3) c_i     = base - alpha_i B (rho_1 (X_i-2 - X_i-1) / r + rho_2 (X_i - X_i-1))
  (4) x_i+1   = base - alpha_i+1 B (X_i-1 - X_i) / (2 r)

r = (lambda before - lambda) / h, lambdas of the two steps behind; rho solves
[[1, 1], [r, 1]] rho = [b_1, b_2], b_1 = p / B, b_2 = 2 (p / -h - 1/2) / B with
p = B / -h - 1. Without a step further behind, eq. 3 has rho_1 = 0 and rho_2 = 1/2 and
eq. 4 ends with its base. The last step goes to sigma 0 and returns X. All of it is
linear in c, x and X, so a step is two rows of weights, made once in float64.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Float32, Int64

from avatar_jax.flow import solver

Tree = Any

TIMESTEPS = 1000  # that a network counts from data to noise


@struct.dataclass
class Steps:
    """What N steps multiply, one row for each: eqs. 1, 3 and 4."""

    sigma: Array  # N
    corrector: Array  # N 5: of x_i, c_i-1, X_i-1, X_i-2, X_i
    predictor: Array  # N 3: of c_i, X_i, X_i-1


@struct.dataclass
class State:
    """What one step leaves to the next; trees like the sample."""

    sample: Tree  # x_i+1
    corrected: Tree  # c_i
    estimate: Tree  # X_i
    estimate_before: Tree  # X_i-1


def schedule(
    num_steps: int, *, shift: float = 1.0
) -> tuple[Float32[np.ndarray, " sigmas"], Int64[np.ndarray, " steps"]]:
    """Return num_steps + 1 noise levels, the last 0, and the steps' whole timesteps.

    Those are floor(1000 sigma). The levels are those of one step more, but its last.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} is not positive; use 1 or more.")
    levels = 1 - np.linspace(1.0, 1 / TIMESTEPS, num_steps + 2)
    levels = (shift * levels / (1 + (shift - 1) * levels))[:1:-1]
    sigmas = np.append(levels, 0.0).astype(np.float32)
    if not 0 < sigmas[0] < 1:
        raise ValueError(f"shift={shift} leaves no data in the first step; use less.")
    return sigmas, np.floor(TIMESTEPS * levels).astype(np.int64)


def told_times(num_steps: int, *, shift: float = 1.0) -> Float[Array, " times"]:
    """Return the times that the network is told at each step, then 0."""
    _, timesteps = schedule(num_steps, shift=shift)
    return jnp.asarray(np.append(timesteps, 0) / TIMESTEPS, jnp.float32)


def make_steps(sigmas: Float32[np.ndarray, " sigmas"]) -> Steps:
    """Return the weights of the steps along falling noise levels, the last 0."""
    sigmas = sigmas.astype(np.float64)
    with np.errstate(divide="ignore"):
        lambdas = np.log1p(-sigmas) - np.log(sigmas)
    rows = range(len(sigmas) - 1)
    return Steps(
        sigma=jnp.float32(sigmas[:-1]),
        corrector=jnp.float32([_corrector(sigmas, lambdas, i) for i in rows]),
        predictor=jnp.float32([_predictor(sigmas, lambdas, i) for i in rows]),
    )


def solve(
    velocity_fn: solver.VelocityFn,
    noise: Tree,
    times: Tree,
    *,
    steps: Tree,
    bfloat16: bool = False,
) -> Tree:
    """Integrate from `noise` and return the clean sample.

    Args:
      velocity_fn: as in `solver.solve`.
      noise: leaves with a leading batch axis.
      times: told to velocity_fn, N + 1 of them, the last unused; one run for all
        leaves, or a tree of runs.
      steps: of `make_steps`; one for all leaves, or a tree of them.
      bfloat16: round the sample after each step, as the released TAVR does; c and X
        keep their digits.
    """
    batch = jax.tree.leaves(noise)[0].shape[0]

    def body(state: State, row: tuple[Tree, Tree]) -> tuple[State, None]:
        t, weights = row
        t = jax.tree.map(lambda t: jnp.full((batch,), t), t)
        velocity = velocity_fn(state.sample, t, state.estimate)
        return step(state, velocity, weights, bfloat16=bfloat16), None

    told = jax.tree.map(lambda t: t[:-1], times)
    state, _ = jax.lax.scan(body, start(noise), (told, steps))
    return state.sample


def start(noise: Tree) -> State:
    """Return the state before the first step."""
    zero = jax.tree.map(jnp.zeros_like, noise)
    return State(noise, zero, zero, zero)


def step(
    state: State, velocity: Tree, weights: Tree, *, bfloat16: bool = False
) -> State:
    """Take one step of eqs. 1, 3 and 4.

    Args:
      state: of `start`, or of the step before.
      velocity: at `state.sample`.
      weights: one row of `Steps` for all leaves, or a tree of them.
      bfloat16: as in `solve`.
    """
    x = state.sample
    if isinstance(weights, Steps):
        weights = jax.tree.map(lambda _: weights, x)
    estimate = jax.tree.map(lambda x, v, w: x - w.sigma * v, x, velocity, weights)
    before = state.estimate
    corrected = jax.tree.map(
        lambda x, w, *others: _combine(w.corrector, x, *others),
        *(x, weights, state.corrected, before, state.estimate_before, estimate),
    )
    moved = jax.tree.map(
        lambda c, w, *others: _combine(w.predictor, c, *others),
        *(corrected, weights, estimate, before),
    )
    if bfloat16:
        moved = jax.tree.map(_round, moved)
    return State(moved, corrected, estimate, before)


def _combine(weights: Float[Array, " n"], *leaves: Float[Array, "B ..."]) -> Array:
    return functools.reduce(
        jnp.add, (w * x for w, x in zip(weights, leaves, strict=True))
    )


def _round(x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """Drop the digits that bfloat16 lacks; a pair of casts might be optimised away."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def _corrector(sigmas: np.ndarray, lambdas: np.ndarray, i: int) -> tuple[float, ...]:
    """Return the weights of x_i, c_i-1, X_i-1, X_i-2 and X_i in c_i."""
    if i == 0:
        return 1.0, 0.0, 0.0, 0.0, 0.0
    h, kept, gain = _base(sigmas, lambdas, i - 1)
    if i == 1:
        return 0.0, kept, gain / 2, 0.0, gain / 2
    ratio = (lambdas[i - 2] - lambdas[i - 1]) / h
    b = np.expm1(-h)
    p = b / -h - 1
    b1, b2 = p / b, 2 * (p / -h - 0.5) / b
    rho1 = (b1 - b2) / (1 - ratio)
    rho2, rho1 = b1 - rho1, rho1 / ratio
    return 0.0, kept, gain * (1 - rho1 - rho2), gain * rho1, gain * rho2


def _predictor(sigmas: np.ndarray, lambdas: np.ndarray, i: int) -> tuple[float, ...]:
    """Return the weights of c_i, X_i and X_i-1 in x_i+1."""
    if i == len(sigmas) - 2:
        return 0.0, 1.0, 0.0
    h, kept, gain = _base(sigmas, lambdas, i)
    if i == 0:
        return kept, gain, 0.0
    slope = h / (2 * (lambdas[i - 1] - lambdas[i]))
    return kept, gain * (1 - slope), gain * slope


def _base(
    sigmas: np.ndarray, lambdas: np.ndarray, i: int
) -> tuple[float, float, float]:
    """Return h and the weights of c_i and X_i in eq. 2, from i to i + 1."""
    h = lambdas[i + 1] - lambdas[i]
    kept, gain = sigmas[i + 1] / sigmas[i], -(1 - sigmas[i + 1]) * np.expm1(-h)
    return h, kept, gain
