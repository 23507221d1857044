"""What a training stage optimises, as the loop sees it.

A stage trains *players*: named parameter trees, `{"model": ...}` in the first stages,
also `critic`, `teacher` or `reference_policy` later. One gradient is taken for all of
them; `stop_gradient` inside the loss walls them off.
"""

from typing import Any, Protocol, runtime_checkable

from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from avatar_jax.types import Leaf

Tree = Any
Players = dict[str, Tree]


@struct.dataclass
class Mean:
    """A mean that adds up exactly over micro-batches, steps and uneven groups."""

    total: Leaf  # scalar
    count: Leaf  # scalar


Metrics = dict[str, Mean]


@runtime_checkable
class Objective(Protocol):
    """A stage: how players start, what needs no gradient, and the loss."""

    def init(self, rng: PRNGKeyArray, batch: Tree) -> tuple[Players, Players]:
        """Return the trained players and the frozen ones, freshly initialised."""

    def prepare(
        self, params: Players, frozen: Players, batch: Tree, *, rng: PRNGKeyArray
    ) -> Tree:
        """Return what the loss consumes: noise, teacher targets, rollouts, rewards.

        It runs once per step on the whole batch, without gradient. Every leaf has the
        batch axis first, so that the step can cut it into micro-batches.
        """

    def loss(
        self,
        params: Players,
        frozen: Players,
        prepared: Tree,
        *,
        rng: PRNGKeyArray,
        step: Int[Array, ""],
    ) -> tuple[Float[Array, ""], Metrics]:
        """Return the loss as a plain mean over the rows of `prepared`, and metrics.

        Being a plain mean, its average over equal micro-batches is that of the batch;
        a normaliser that spans the batch belongs in `prepare`.
        """

    def count_tokens(self, batch: Tree) -> int:
        """Count the tokens that the network sees for this (host) batch."""
