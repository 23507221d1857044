"""A person's reference for a training example: cut from other clips of that person.

Each segment is a run of latents of one clip. It begins at latent 1 or later, so that
none is the codec's single-frame latent (model.md asks to encode each segment after
copies of its first frame; Choice: codecs whose latents depend on earlier frames see the
clip's own past instead, which is stored already).

Motion codes are those that a network read off the frames, as it does at sampling: its
errors are in part the same for all of a person, which no noise on exact codes would be.
Records without them (`motion_read`) give their exact ones.

How much is shown is drawn anew for every example, from one latent to all: at sampling
people give short videos and long ones. Identity is the mean over the clips of which
something is shown; Choice: face crops are those of the first clip, however little of it
is shown, as one good frame is enough for them.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Shaped

from avatar_jax.data import transforms
from avatar_jax.data.transforms import Record
from avatar_jax.types import FRAMES_PER_LATENT, Reference


@dataclasses.dataclass(frozen=True)
class ReferenceConfig:
    """Which clips a reference comes from, and how much of them it shows.

    Attributes:
      segment_latents: latents of a segment; 0: no reference.
      segments: how many, for each bucket; one number serves all.
      whole: share of examples that show all segments; others, any number of latents.
      cross_scene_from: training step from which on all references come from other
        scenes; before, their share rises evenly from 0 (TAVR: same scene first).
    """

    segment_latents: int = 0
    segments: tuple[int, ...] = (1,)
    whole: float = 0.5
    cross_scene_from: int = 0

    def count_segments(self, bucket: int) -> int:
        """Return the segments of a bucket's references."""
        if not self.segment_latents:
            return 0
        return self.segments[bucket if len(self.segments) > 1 else 0]


class Mates:
    """Clips of the same person, by scene."""

    def __init__(self, people: Shaped[np.ndarray, "records 2"]):
        self._people = people
        self._of: dict[str, list[int]] = {}
        for index, (person, _) in enumerate(people.tolist()):
            self._of.setdefault(person, []).append(index)

    def find(
        self, index: int, *, cross_scene: bool, usable: Bool[np.ndarray, " records"]
    ) -> list[list[int]]:
        """Return groups of clips that may be a reference for clip `index`, best first.

        Those in the scenes asked for, other clips of the person, this clip.

        Args:
          usable: clips that are long enough for a segment.
        """
        person, scene = self._people[index].tolist()
        others = [i for i in self._of[person] if i != index and usable[i]]
        wanted = [i for i in others if (self._people[i, 1] != scene) == cross_scene]
        rest = [i for i in others if i not in wanted]
        return [group for group in (wanted, rest, [index]) if group]

    def share_scene(self, first: int, second: int) -> bool:
        """Say whether two clips of a person show the same scene."""
        return self._people[first, 1] == self._people[second, 1]


def is_cross_scene(step: float, config: ReferenceConfig, draw: float) -> bool:
    """Say whether a reference comes from other scenes; `draw` is uniform in [0, 1)."""
    return draw * config.cross_scene_from <= step


def make_reference(
    records: Sequence[Record],
    config: ReferenceConfig,
    rng: np.random.Generator,
    *,
    patch: int,
) -> Reference:
    """Cut a segment out of each record; arrays are float32 without a batch axis."""
    count = config.segment_latents
    starts = [int(rng.integers(1, len(r.latents) - count + 1)) for r in records]
    total = count * len(records)
    shown = total if rng.random() < config.whole else int(rng.integers(1, total + 1))
    pairs = list(zip(records, starts, strict=True))

    def join(cut: Callable[[Record, int], np.ndarray]) -> np.ndarray:
        return np.concatenate([cut(r, s) for r, s in pairs]).astype(np.float32)

    masks = join(lambda r, s: r.face_mask[s : s + count])
    valid = transforms.patch_cells(masks > 0, patch)
    valid &= (np.arange(total) < shown)[:, None, None]
    first, motion, motion_valid = records[0], None, None
    if first.motion is not None:
        motion = join(lambda r, s: cut_rows(_choose_codes(r), s, count))
        motion_valid = np.bool_(True)
    return Reference(
        latents=join(lambda r, s: r.latents[s : s + count]),
        valid=valid,
        segment_ids=np.repeat(np.arange(len(records), dtype=np.int32), count),
        audio=join(lambda r, s: cut_rows(r.speech, s, count)),
        audio_valid=np.bool_(True),
        motion=motion,
        motion_valid=motion_valid,
        identity=mean_identity(records[: -(-shown // count)]),
        faces=None if first.faces is None else first.faces.astype(np.float32),
        faces_valid=None if first.faces is None else np.ones(len(first.faces), bool),
    )


def tell(reference: Reference, *, shown: bool, heard: bool, moving: bool) -> Reference:
    """Drop a whole reference, its speech, or its motion."""
    moving = None if reference.motion is None else np.bool_(shown and moving)
    crops = reference.faces_valid
    return reference.replace(
        valid=reference.valid & shown,
        audio_valid=np.bool_(shown and heard),
        motion_valid=moving,
        identity=None if reference.identity is None else reference.identity * shown,
        faces_valid=None if crops is None else crops & shown,
    )


def cut_rows(
    rows: Float[np.ndarray, "frames D"], start: int, count: int
) -> Float[np.ndarray, "frames2 D"]:
    """Cut the frames of latents start .. start + count - 1, four each; start >= 1."""
    first = FRAMES_PER_LATENT * (start - 1) + 1
    return rows[first : first + FRAMES_PER_LATENT * count]


def _choose_codes(record: Record) -> Float[np.ndarray, "frames Dm"] | None:
    """Return the motion codes of a clip of a reference."""
    return record.motion if record.motion_read is None else record.motion_read


def mean_identity(records: Sequence[Record]) -> Float[np.ndarray, " I"] | None:
    """Average the clips' face embeddings."""
    if records[0].identity is None:
        return None
    return mean_direction(np.stack([record.identity for record in records]))


def mean_direction(
    rows: Float[np.ndarray, "*lead rows D"],
) -> Float[np.ndarray, "*lead D"]:
    """Return the mean of unit vectors, scaled to length 1 again."""
    mean = rows.mean(axis=-2)
    length = np.linalg.norm(mean, axis=-1, keepdims=True)
    return (mean / np.maximum(length, 1e-6)).astype(rows.dtype)
