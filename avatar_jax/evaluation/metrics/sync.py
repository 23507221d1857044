"""Does the mouth follow the speech: Pearson correlations of mouth opening over time."""

import numpy as np
from jaxtyping import Float


def mouth_correlation(
    seen: Float[np.ndarray, " frames"], truth: Float[np.ndarray, " frames"]
) -> float:
    """Return Pearson's r of two openings; 0 where either never moves."""
    seen, truth = seen - seen.mean(), truth - truth.mean()
    scale = np.sqrt((seen**2).sum() * (truth**2).sum())
    return float((seen * truth).sum() / scale) if scale > 1e-9 else 0.0


def case_correlations(
    seen: Float[np.ndarray, "cases frames"], truth: Float[np.ndarray, "cases frames"]
) -> Float[np.ndarray, " cases"]:
    """Return `mouth_correlation` of each case with its own truth."""
    return np.array([mouth_correlation(s, t) for s, t in zip(seen, truth, strict=True)])


def shuffled_correlations(
    seen: Float[np.ndarray, "cases frames"], truth: Float[np.ndarray, "cases frames"]
) -> Float[np.ndarray, " cases"]:
    """Return each case's mean correlation with the truth of every *other* case.

    All the ways to shuffle at once, so that the control does not hang on one draw.
    """
    count = len(seen)
    if count < 2:
        raise ValueError(f"A shuffled control needs 2 cases or more; got {count}.")
    rolled = [case_correlations(seen, np.roll(truth, k, 0)) for k in range(1, count)]
    return np.mean(rolled, axis=0)


def best_lag(
    seen: Float[np.ndarray, "cases frames"],
    truth: Float[np.ndarray, "cases frames"],
    *,
    reach: int = 5,
) -> int:
    """Return the delay of the seen mouth, in frames, that correlates best."""

    def mean_at(lag: int) -> float:
        end = truth.shape[1] - abs(lag)
        late = seen[:, max(lag, 0) : max(lag, 0) + end]
        early = truth[:, max(-lag, 0) : max(-lag, 0) + end]
        return float(case_correlations(late, early).mean())

    return max(range(-reach, reach + 1), key=mean_at)
