"""How sure a mean over cases is."""

import numpy as np
from jaxtyping import Float


def confidence_interval(
    values: Float[np.ndarray, " cases"],
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean over cases."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(values), (draws, len(values)))
    tail = (1 - level) / 2
    low, high = np.quantile(values[picks].mean(axis=1), (tail, 1 - tail))
    return float(low), float(high)


def format_mean(values: Float[np.ndarray, " cases"]) -> str:
    """Return the mean and its interval in brackets."""
    low, high = confidence_interval(values)
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"
