"""Which parts of a person's clips become the reference.

The clips share a budget of latents evenly; what one cannot use goes to the others.
From each come windows of equal length, whole groups of four frames, in which the face
is seen in half of the frames or more. Where a clip offers a choice, its windows are
spread over it, and each is where the mouth moves most. Nothing is random.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from avatar_jax.types import FRAMES_PER_LATENT, InputError

LEAST_FRAMES = 12  # with a face, of all clips together
_SHOWN = 0.5  # of a window's frames
_NEARLY = 0.75  # of the frames with a face that short windows would show


@dataclasses.dataclass(frozen=True)
class Track:
    """What a clip's windows are chosen by."""

    found: Bool[np.ndarray, " frames"]  # the face is seen
    mouth: Float[np.ndarray, " frames"]  # its brightness, which speech moves

    @property
    def shown(self) -> Float[np.ndarray, " groups"]:
        """Share of frames that show the face, of each whole group of four."""
        groups = len(self.found) // FRAMES_PER_LATENT
        whole = self.found[: groups * FRAMES_PER_LATENT]
        return whole.reshape(groups, FRAMES_PER_LATENT).mean(axis=1)


def choose_windows(
    tracks: Sequence[Track], *, latents: int, longest: int
) -> list[list[slice]]:
    """Choose the windows of each clip, as slices of its frames.

    Args:
      latents: of all windows together, at most.
      longest: latents of one window, at most.

    Raises:
      InputError: fewer than `LEAST_FRAMES` frames with a face.
    """
    usable = [int((track.shown >= _SHOWN).sum()) for track in tracks]
    frames = FRAMES_PER_LATENT * sum(usable)
    if frames < LEAST_FRAMES:
        raise InputError(
            f"expected a reference of {LEAST_FRAMES} frames or more (25 fps) that show "
            f"the face, came {frames} of {sum(len(track.found) for track in tracks)}; "
            "give a longer video."
        )
    shares = share_budget(latents, usable)
    return [
        _track_windows(track, share, longest)
        for track, share in zip(tracks, shares, strict=True)
    ]


def share_budget(budget: int, wanted: Sequence[int]) -> list[int]:
    """Split a budget evenly; what one does not want goes to the others."""
    shares = [0] * len(wanted)
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    for place, index in enumerate(order):
        shares[index] = min(wanted[index], budget // (len(order) - place))
        budget -= shares[index]
    return shares


def _track_windows(track: Track, share: int, longest: int) -> list[slice]:
    """Choose windows of `share` latents together.

    They are as long as can be, and shorter where that shows much more of the face.
    """
    if not share:
        return []
    most = share // -(-share // longest)
    choices = [_equal_windows(track, n, share // n) for n in range(most, 0, -1)]
    shows = [sum(int(track.found[cut].sum()) for cut in cuts) for cuts in choices]
    enough = _NEARLY * max(shows)
    return next(c for c, show in zip(choices, shows, strict=True) if show >= enough)


def _equal_windows(track: Track, length: int, count: int) -> list[slice]:
    """Choose up to `count` windows of `length` latents."""
    shown = np.lib.stride_tricks.sliding_window_view(track.shown, length).mean(axis=1)
    edges = FRAMES_PER_LATENT * np.arange(len(shown) + length)
    cuts = [slice(*pair) for pair in zip(edges, edges[length:], strict=False)]
    moving = [_variance(track.mouth[cut], track.found[cut]) for cut in cuts]
    ranks = np.searchsorted(np.sort(moving), moving) / len(moving)
    scores = np.where(shown >= _SHOWN, shown * ranks, -np.inf)
    return [cuts[start] for start in _place(scores, length, count)]


def _variance(
    values: Float[np.ndarray, " frames"], known: Bool[np.ndarray, " frames"]
) -> float:
    return float(values[known].var()) if known.any() else 0.0


def _place(
    scores: Float[np.ndarray, " starts"], length: int, count: int
) -> tuple[int, ...]:
    """Choose up to `count` starts of windows that do not overlap: as many as fit.

    Of those the best sum of scores (0 to 1; -inf: never), where a window in its own
    part of the clip counts 1 more: spread first.
    """
    groups = len(scores) + length - 1
    best: list = [(0.0, ())] * (groups + 1)  # windows so far, by groups they may use
    for number in range(count):
        more: list = [None] * (groups + 1)
        for start, score in enumerate(scores):
            end = start + length
            more[end] = more[end - 1]
            if score == -np.inf or best[start] is None:
                continue
            middle = (2 * start + length) / (2 * groups)
            total = best[start][0] + score + (int(middle * count) == number)
            if more[end] is None or total > more[end][0]:
                more[end] = total, (*best[start][1], start)
        if more[-1] is None:
            break
        best = more
    return best[-1][1]
