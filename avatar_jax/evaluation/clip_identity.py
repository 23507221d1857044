"""Whom generated videos show, among the people whose clips training has seen.

People are compared by `metrics.likeness`, in face boxes that are tracked in every video
in the same way. The clip that a video was given as its reference is not among the clips
it is compared with, where the person has others.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from avatar_jax.data import records
from avatar_jax.evaluation import clip_cases, mouth
from avatar_jax.evaluation.clip_cases import ClipCase
from avatar_jax.evaluation.metrics import likeness
from avatar_jax.media import decode

MEANING = {
    "identity_top1": "share of generated videos most like their own person",
    "identity_ceiling": "the same of the true clips",
    "identity_swapped": "given another's reference: share most like that other",
    "identity_distance": "generated to its own person, as `metrics.likeness`",
    "identity_distance_ceiling": "the same of the true clips",
    "identity_distance_others": "the true clips to the nearest other person",
}
_CLIPS = 24  # of each person, at most
_LOOKED_AT = np.s_[:75:3]  # frames of a clip: tracking takes its time

Row = Float[np.ndarray, " cases"]


@dataclasses.dataclass(frozen=True, eq=False)
class Gallery:
    """Train clips as `metrics.likeness` describes them, by person and by key."""

    clips: Mapping[str, Mapping[str, Float[np.ndarray, " D"]]]

    @property
    def people(self) -> tuple[str, ...]:
        """The people, in order."""
        return tuple(sorted(self.clips))

    def describe(self, *, without: str) -> Float[np.ndarray, "people D"]:
        """Describe each person by the mean of their clips; one key may not count."""
        rows = []
        for person in self.people:
            own = self.clips[person]
            others = [looks for key, looks in own.items() if key != without]
            rows.append(np.mean(others or list(own.values()), axis=0))
        return np.stack(rows)


def read_gallery(dataset: Path) -> Gallery | None:
    """Describe up to `_CLIPS` train clips of each person; None: there is one alone."""
    tier = records.read_tier(records.tier_directory(dataset, records.MEDIA), "train")
    by_person: dict[str, list[int]] = {}
    for index, record in clip_cases.readable(tier, len(tier)):
        by_person.setdefault(record["person"], []).append(index)
    if len(by_person) < 2:
        return None
    clips = {}
    for person, own in by_person.items():
        spread = np.unique(np.linspace(0, len(own) - 1, _CLIPS).round().astype(int))
        chosen = (tier[own[place]] for place in spread)  # one in memory at a time
        clips[person] = {
            record["key"]: _look(
                decode.decode_bytes(record["video"]), record["face_boxes"]
            )
            for record in chosen
        }
    return Gallery(clips)


def find_people(
    cases: Sequence[ClipCase], swapped: Sequence[ClipCase], gallery: Gallery
) -> dict[str, Row]:
    """Return for each case whether the right person is found, 1 or 0, as `MEANING`.

    Args:
      swapped: the same cases with the references of their `swapped.mp4`; may be empty.
    """
    own, other = _compare(cases, gallery, "generated")
    own_true, other_true = _compare(cases, gallery, None)
    rows = {
        "identity_top1": (own < other).astype(float),
        "identity_ceiling": (own_true < other_true).astype(float),
        "identity_distance": own,
        "identity_distance_ceiling": own_true,
        "identity_distance_others": other_true,
    }
    if swapped:
        lent, other = _compare(swapped, gallery, "swapped")
        rows["identity_swapped"] = (lent < other).astype(float)
    return rows


def _compare(
    cases: Sequence[ClipCase], gallery: Gallery, name: str | None
) -> tuple[Row, Row]:
    """Return how far videos are from their reference's person, and the nearest other.

    Args:
      name: of the video; None: the truth.
    """
    rows = []
    for case in cases:
        if name is None:
            looks = _look(case.truth, case.boxes)
        else:
            # A generated head rests where the still has it.
            looks = _look(clip_cases.read_video(case, name), case.still_box)
        known = gallery.describe(without=case.reference.key)
        apart = likeness.distances(looks[None], known)[0]
        own = gallery.people.index(case.reference.person)
        rows.append((apart[own], np.delete(apart, own).min()))
    return tuple(np.array(rows).T)


def _look(
    frames: UInt8[np.ndarray, "frames Y X 3"],
    recorded: Float[np.ndarray, "... 4"],
) -> Float[np.ndarray, " D"]:
    """Describe a video in boxes tracked in it, or in those recorded."""
    recorded = np.broadcast_to(recorded, (len(frames), 4))[_LOOKED_AT]
    frames = frames[_LOOKED_AT]
    boxes = mouth.track_face(frames)
    return likeness.describe(frames, recorded if boxes is None else boxes)
