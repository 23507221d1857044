"""What training every kind of judge shares: settings, the loop, a table of scores."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, UInt8
from tqdm import tqdm

from avatar_jax.models.judges import Role


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """How a judge is trained; each kind's `DEFAULTS` made the shipped ones."""

    people: int  # of the train split of the population `seed`
    num_steps: int
    batch_size: int  # what is counted is said by each kind
    role: Role = "evaluation"
    seed: int = 1
    learning_rate: float = 2e-3


Batch = tuple  # of arrays; frames are bytes until they are on the device
Loss = Callable[[dict, Batch, PRNGKeyArray], Float[Array, ""]]


def optimise(
    loss: Loss,
    params: dict,
    draw: Callable[[np.random.Generator], Batch],
    config: JudgeConfig,
) -> dict:
    """Return params after `config.num_steps` of AdamW, each on a batch just drawn."""
    rate = optax.cosine_onecycle_schedule(config.num_steps, config.learning_rate)
    optimizer = optax.adamw(rate, weight_decay=1e-3)

    @jax.jit
    def step(state: tuple, batch: Batch, rng: PRNGKeyArray) -> tuple:
        value, grads = jax.value_and_grad(loss)(state[0], batch, rng)
        updates, opt_state = optimizer.update(grads, state[1], state[0])
        return (optax.apply_updates(state[0], updates), opt_state), value

    state, rng = (params, optimizer.init(params)), jax.random.key(config.seed)
    dice = np.random.default_rng(config.seed)
    bar = tqdm(range(config.num_steps), desc=f"{config.role} judge", mininterval=5)
    for index in bar:
        key = jax.random.fold_in(rng, index)
        state, value = step(state, draw(dice), key)
        if index % 100 == 0:
            bar.set_postfix(loss=f"{float(value):.3f}")
    return state[0]


def contrast(
    x: Float[Array, "B D"], y: Float[Array, "B D"], temperature: float
) -> Float[Array, ""]:
    """Return InfoNCE both ways: row i of x belongs to row i of y and to no other.

    L = mean_i -log softmax_j(x_i . y_j / temperature)_i, and the same from y to x
    (arXiv:1807.03748, equation 4, with a scaled cosine as score).
    """
    logits = x @ y.T / temperature
    own = jnp.diagonal(logits)
    rows, columns = (jax.nn.logsumexp(logits, axis=axis) for axis in (0, 1))
    return jnp.mean(rows + columns - 2 * own) / 2


def to_unit(frames: UInt8[Array, "*lead Y X 3"]) -> Float[Array, "*lead Y X 3"]:
    """Scale bytes to [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1


def format_table(rows: list[dict]) -> str:
    """Return rows of equal keys as a Markdown table."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names)]
    for row in rows:
        lines.append([v if isinstance(v, str) else f"{v:.3f}" for v in row.values()])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
