"""One training step: one gradient for all players, whatever the stage."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from avatar_jax.objectives import base
from avatar_jax.training.config import Run
from avatar_jax.training.state import TrainState

Tree = Any
Step = Callable[[TrainState, Tree], tuple[TrainState, base.Metrics]]


def make_step(run: Run) -> Step:
    """Return the pure function (state, batch) -> (state, metrics).

    Its randomness is the run's seed folded with the step, so a resumed run repeats it.
    """
    config, objective = run.train, run.objective

    def step(state: TrainState, batch: Tree) -> tuple[TrainState, base.Metrics]:
        rng = jax.random.fold_in(jax.random.key(config.seed), state.step)
        prepare_rng, loss_rng = jax.random.split(rng)
        prepared = jax.lax.stop_gradient(
            objective.prepare(state.params, state.frozen, batch, rng=prepare_rng)
        )
        metrics, grads = _accumulate(run, state, prepared, loss_rng)
        updates, opt_state = run.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = _ema_decay(config.ema_decay, state.step)
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema, params)
        metrics["grad_norm"] = base.Mean(optax.tree.norm(grads), jnp.ones(()))
        new = state.replace(
            step=state.step + 1, params=params, ema=ema, opt_state=opt_state
        )
        return new, metrics

    return step


def jit_step(run: Run, state: TrainState) -> Step:
    """Compile the step on the current mesh: the state is donated and stays in place."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(make_step(run), donate_argnums=0, out_shardings=(shardings, None))


def _accumulate(
    run: Run, state: TrainState, prepared: Tree, rng: PRNGKeyArray
) -> tuple[base.Metrics, base.Players]:
    """Average loss gradients over micro-batches; one is the whole batch."""
    parts = run.train.micro_batches

    def loss(params: base.Players, rows: Tree, rng: PRNGKeyArray):
        value, metrics = run.objective.loss(
            params, state.frozen, rows, rng=rng, step=state.step
        )
        return value, metrics | {"loss": base.Mean(value, jnp.ones(()))}

    grad = jax.grad(loss, has_aux=True)
    if parts == 1:
        grads, metrics = grad(state.params, prepared, rng)
        return metrics, grads

    def add_part(total: Tree, part: tuple[Tree, Int[Array, ""]]) -> tuple[Tree, None]:
        rows, i = part
        return jax.tree.map(
            jnp.add, total, grad(state.params, rows, jax.random.fold_in(rng, i))
        ), None

    stacked = jax.tree.map(lambda leaf: _split_rows(leaf, parts), prepared)
    first = jax.tree.map(lambda leaf: leaf[0], stacked)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(grad, state.params, first, rng),
    )
    (grads, metrics), _ = jax.lax.scan(add_part, zeros, (stacked, jnp.arange(parts)))
    return metrics, jax.tree.map(lambda g: g / parts, grads)


def _split_rows(leaf: Array, parts: int) -> Array:
    """Cut B rows into (parts, B / parts) so that each device keeps the rows it has."""
    rows = leaf.reshape(leaf.shape[0] // parts, parts, *leaf.shape[1:])
    return jnp.swapaxes(rows, 0, 1)


def _ema_decay(decay: float, step: Int[Array, ""]) -> Array:
    """Forget the random start faster than `decay` would: (1 + step) / (10 + step)."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))
