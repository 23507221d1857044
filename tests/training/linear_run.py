"""A run as small as it can be, in the form of a config file: a linear teacher, learnt.

Tests import it, and start it as `python -m avatar_jax.train --config <this file>`.
"""

import dataclasses
import time

import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from avatar_jax.objectives import base
from avatar_jax.training import config as config_module
from avatar_jax.training import optimizer

WIDTHS = (6, 4)  # in, out


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "steps": 12,
            "seed": 0,
            "micro_batches": 1,
            "ema_decay": 0.9,
            "init_from": "",
            "resume": True,
            "log_every": 1,
            "evaluate_every": 6,
            "checkpoint_every": 3,
            "keep_checkpoints": 2,
            "mesh": {"data": 1, "fsdp": 1, "context": 1, "tensor": 1},
            "optimizer": {"learning_rate": 0.05, "warmup_steps": 2},
            "data": {"batch": 8, "lengths": (1,), "pause": 0.0, "poison": -1},
        },
        type_safe=True,
    ).lock()


def get_run(config: ml_collections.ConfigDict) -> config_module.Run:
    values = config.to_dict()
    optimizer_config = config_module.build(
        optimizer.OptimizerConfig, values.pop("optimizer")
    )
    data = values.pop("data")
    train = config_module.build(config_module.TrainConfig, values)
    return config_module.Run(
        train=train,
        objective=Linear(),
        optimizer=optimizer.make_optimizer(optimizer_config, steps=train.steps),
        dataset=lambda index, count: make_dataset(index, count, **data),
        describe=lambda batch: {"config": {"widths": list(WIDTHS)}},
        evaluators=(preview,),
    )


def preview(step: int, players: base.Players):
    norm = float(jnp.linalg.norm(players["model"]["blocks"]["kernel"]))
    return {"norm": norm}, {"ramp": np.full((3, 16, 24, 3), step, np.uint8)}


def make_dataset(index, count, *, batch, lengths, pause, poison):
    """Endless batches {"x": (batch, length, in)}; batch `poison` holds a nan."""

    def make(i: int) -> dict[str, np.ndarray]:
        time.sleep(pause)
        rng = np.random.default_rng((7, i))
        length = lengths[i % len(lengths)]
        x = rng.standard_normal((batch * count, length, WIDTHS[0]), np.float32)
        if i == poison:
            x[0] = np.nan
        return {"x": x[index * batch : (index + 1) * batch]}

    numbers = grain.MapDataset.range(1000).shuffle(seed=3).repeat()
    if poison >= 0:
        numbers = grain.MapDataset.range(1000).repeat()
    return numbers.map(make).to_iter_dataset()


@dataclasses.dataclass(frozen=True)
class Linear:
    """Learn y = W x + noise from noise drawn in `prepare`."""

    def init(self, rng, batch):
        shape = (2, *WIDTHS)
        blocks = {
            "kernel": jax.random.normal(rng, shape) * 0.1,
            "scale": jnp.ones((2, WIDTHS[1])),
        }
        return {"model": {"blocks": blocks}}, {}

    def prepare(self, params, frozen, batch, *, rng):
        teacher = jnp.cos(jnp.arange(24.0)).reshape(WIDTHS)
        noise = jax.random.normal(rng, (*batch["x"].shape[:2], WIDTHS[1]))
        return {
            "x": batch["x"],
            "y": jnp.einsum("BTi,io->BTo", batch["x"], teacher) + 0.1 * noise,
        }

    def loss(self, params, frozen, prepared, *, rng, step):
        blocks = params["model"]["blocks"]
        guess = jnp.einsum(
            "BTi,lio,lo->BTo", prepared["x"], blocks["kernel"], blocks["scale"]
        )
        rows = jnp.mean(jnp.square(guess - prepared["y"]), axis=(1, 2))
        large = (rows > 1).astype(rows.dtype)
        return jnp.mean(rows), {
            "loss_large": base.Mean(jnp.sum(rows * large), jnp.sum(large))
        }

    def count_tokens(self, batch):
        return batch["x"].shape[0] * batch["x"].shape[1]
