"""Muon for matrices, AdamW for the rest, one schedule for both.

Muon (arXiv 2502.16982) orthogonalises the momentum of each matrix. Its update is
scaled to the root mean square of AdamW's (their eq. 4, factor 0.2), so one learning
rate serves both. Stacked blocks are ndim 3 (layers, in, out); without dimension numbers
optax would hand them to AdamW in silence.
"""

import dataclasses
import re
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers

Tree = Any

# The first and last maps, whose one side is the data's own channels; all of the head
# that makes latents counts as last.
_INPUT_OR_OUTPUT = re.compile(
    r"(^|/)(patch|head)[^/]*/|(^|/)motion_head/codes/|embedding/kernel$"
)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Attributes:
    warmup_steps: linear, from 0.
    decay_fraction: share of all steps, the last ones, spent in cosine decay; 1 is the
      plain cosine after warm-up.
    final_fraction: of the learning rate, at the end.
    """

    learning_rate: float = 2e-3
    warmup_steps: int = 100
    decay_fraction: float = 1.0
    final_fraction: float = 0.0
    clip_norm: float = 1.0
    weight_decay: float = 0.0
    muon_momentum: float = 0.95
    adam_b1: float = 0.9
    adam_b2: float = 0.99

    def __post_init__(self) -> None:
        if not 0 <= self.decay_fraction <= 1:
            raise ValueError(
                f"decay_fraction={self.decay_fraction}; use a share from 0 to 1."
            )


def make_optimizer(
    config: OptimizerConfig, *, steps: int
) -> optax.GradientTransformation:
    """Build the clipped Muon + AdamW optimiser of a run of `steps` steps."""
    muon = optax.contrib.muon(
        make_schedule(config, steps=steps),
        beta=config.muon_momentum,
        weight_decay=config.weight_decay,
        adam_b1=config.adam_b1,
        adam_b2=config.adam_b2,
        adam_weight_decay=config.weight_decay,
        muon_weight_dimension_numbers=dimension_numbers,
        consistent_rms=0.2,
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), muon)


def make_schedule(config: OptimizerConfig, *, steps: int) -> optax.Schedule:
    """Return the learning rate by step: linear warm-up, constant, cosine decay."""
    warmup = min(config.warmup_steps, steps // 2)
    decay = min(max(round(steps * config.decay_fraction), 1), steps - warmup)
    rate = config.learning_rate
    pieces = (
        optax.linear_schedule(0.0, rate, max(warmup, 1)),
        optax.constant_schedule(rate),
        optax.cosine_decay_schedule(rate, decay, alpha=config.final_fraction),
    )
    return optax.join_schedules(pieces, [warmup, steps - decay])


def dimension_numbers(params: Tree) -> Tree:
    """Give Muon's axes per leaf; None leaves it to AdamW."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)
            if is_muon(path, leaf)
            else None
        ),
        params,
    )


def is_muon(path: tuple, leaf: Any) -> bool:
    """Say whether a leaf is a hidden matrix: a stacked block kernel or a 2-D kernel.

    Args:
      path: of `jax.tree_util`; only kernels count, so that stacked bias vectors and
        tables (layers, rows, D), which look like matrices, stay with AdamW.
    """
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if not name.endswith("kernel"):
        return False
    if "/blocks/" in f"/{name}":
        return leaf.ndim == 3
    return leaf.ndim == 2 and not _INPUT_OR_OUTPUT.search(name)
