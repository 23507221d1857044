"""Who is found: the place of a person among others."""

import numpy as np
from jaxtyping import Float, Int


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
