"""Everything a run carries from step to step, and how it starts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from avatar_jax import checkpoint, sharding
from avatar_jax.training.config import Run
from avatar_jax.types import Leaf

Tree = Any


@struct.dataclass
class TrainState:
    """A training state; players are named parameter trees, see `objectives.base`."""

    step: Leaf  # updates done
    params: Leaf  # players, master weights in f32
    frozen: Leaf  # players
    ema: Leaf  # players, running mean of `params`
    opt_state: Leaf


def create(run: Run, mesh: Mesh, batch: Tree) -> TrainState:
    """Initialise the state, sharded over the mesh; `init_from` replaces weights.

    Args:
      batch: any batch of the run; only its shapes matter.
    """
    rng = jax.random.key(run.train.seed)
    example = jax.tree.map(np.zeros_like, batch)  # the same on every process
    params, frozen = _init_sharded(run.objective.init, mesh, rng, example)
    if run.train.init_from:
        parent, metadata = checkpoint.load_parent(run.train.init_from)
        if metadata and run.check_parent:
            run.check_parent(metadata, run.train.init_from)
        params, frozen = (
            {
                name: tree
                if name in run.frozen_as_made
                else checkpoint.overlay(tree, parent)
                for name, tree in players.items()
            }
            for players in (params, frozen)
        )
    return TrainState(
        step=_init_sharded(lambda: jnp.zeros((), jnp.int32), mesh),
        params=params,
        frozen=frozen,
        ema=jax.tree.map(jnp.copy, params),  # a copy: the step donates both
        opt_state=_init_sharded(run.optimizer.init, mesh, params),
    )


def _init_sharded(init: Callable, mesh: Mesh, *arguments: Tree) -> Tree:
    """Run `init` so that every device makes only its own shards."""
    shardings = sharding.parameter_shardings(jax.eval_shape(init, *arguments), mesh)
    return jax.jit(init, out_shardings=shardings)(*arguments)
