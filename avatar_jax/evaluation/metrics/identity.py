"""Who is found: videos as unit vectors, and the place of a person among others."""

import numpy as np
from jaxtyping import Float, Int


def mean_direction(
    rows: Float[np.ndarray, "*lead rows D"],
) -> Float[np.ndarray, "*lead D"]:
    """Return the mean of unit vectors, scaled to length 1 again."""
    mean = rows.mean(axis=-2)
    return mean / np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


def rank(
    distances: Float[np.ndarray, "videos people"],
    who: Int[np.ndarray, " videos"],
    *,
    among: int,
) -> Int[np.ndarray, " videos"]:
    """Return the place of person `who[n]` by distance from video n; 1 is the nearest.

    Each is sought among `among` people: `who[n]` and the neighbours in the list, half
    of them before and half after. Equal distances count against the person.

    Raises:
      ValueError: fewer people than that.
    """
    count = distances.shape[1]
    if count < among:
        raise ValueError(f"A place among {among} needs as many people; got {count}.")
    around = (who[:, None] + np.arange(among) - among // 2) % count
    near = np.take_along_axis(distances, around, axis=1)
    own = np.take_along_axis(distances, who[:, None], axis=1)
    return (near <= own).sum(axis=1)
