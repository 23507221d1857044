"""Whom a video shows and whose manner it has, among twenty people never trained on.

The gallery is real clips of each person, in other scenes and with other sentences than
the video's, passed through the codec and H.264 as generated video is. Looks are
compared by the cosine of mean face embeddings, manner by `metrics.style`. Both judges
are those of the role `evaluation`.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from avatar_jax.data import references
from avatar_jax.evaluation import demo_cases
from avatar_jax.evaluation.judge_frames import codec_round_trip, people_of
from avatar_jax.evaluation.metrics import identity, style
from avatar_jax.media import decode, encode
from avatar_jax.models import judges
from avatar_jax.models.codec import LatentCodec

AMONG = 20  # people
CLIPS = 4  # of each person of a gallery
_WHITENING_PEOPLE, _WHITENING_CLIPS = 30, 3  # of the train split

Video = UInt8[np.ndarray, "frames Y X 3"]


@dataclasses.dataclass(frozen=True)
class Judges:
    """Who looks at the videos."""

    motion: judges.Judge
    identity: judges.Judge


def load_judges() -> Judges:
    """Load the judges that only grade."""
    motion, face = (
        judges.load(judges.asset(kind, "evaluation")) for kind in ("motion", "identity")
    )
    return Judges(motion, face)


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """What the judges see of some videos, or on average of some people's."""

    faces: Float[np.ndarray, "videos D"]  # unit vectors
    styles: Float[np.ndarray, "videos K"]


@dataclasses.dataclass(frozen=True, eq=False)
class Gallery:
    """People among whom one is sought."""

    people: tuple[int, ...]
    known: Seen  # a row for each
    whitening: style.Whitening


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """Places among `AMONG` of the people sought, 1 is first, and how close they are."""

    identity_rank: Int[np.ndarray, " videos"]
    identity_cosine: Float[np.ndarray, " videos"]
    style_rank: Int[np.ndarray, " videos"]
    style_distance: Float[np.ndarray, " videos"]

    @property
    def identity_first(self) -> Float[np.ndarray, " videos"]:
        """1 where the person is first by looks, else 0."""
        return (self.identity_rank == 1).astype(float)

    @property
    def style_over_chance(self) -> Float[np.ndarray, " videos"]:
        """`AMONG` where the person is first by manner, else 0: chance gives 1."""
        return AMONG * (self.style_rank == 1).astype(float)


def make_gallery(
    split: str,
    num_cases: int,
    by: Judges,
    *,
    codec: LatentCodec,
    num_frames: int,
    size: int,
) -> Gallery:
    """Film and look at the people of the first `num_cases` cases, and up to `AMONG`."""

    def film(indices: Sequence[int], count: int) -> list[list[Video]]:
        shape = {"num_frames": num_frames, "size": size}
        return [
            [show(v, codec) for v in demo_cases.film_others(index, count, **shape)]
            for index in indices
        ]

    chosen = people_of(split, max(AMONG, num_cases))
    looked = [look(clips, by) for clips in film(chosen, CLIPS)]
    others = film(people_of("train", _WHITENING_PEOPLE), _WHITENING_CLIPS)
    return Gallery(
        people=tuple(chosen),
        known=Seen(
            references.mean_direction(np.stack([seen.faces for seen in looked])),
            np.stack([seen.styles.mean(axis=0) for seen in looked]),
        ),
        whitening=style.fit_whitening(
            np.stack([look_at_styles(clips, by.motion) for clips in others])
        ),
    )


def look(videos: Sequence[Video], by: Judges) -> Seen:
    """Ask both judges about each video."""
    faces = [references.mean_direction(by.identity.embed(frames)) for frames in videos]
    return Seen(np.stack(faces), look_at_styles(videos, by.motion))


def look_at_styles(
    videos: Sequence[Video], judge: judges.Judge
) -> Float[np.ndarray, "videos K"]:
    """Describe how each video's person moves."""
    return np.stack([style.describe(judge.read(v), judge.names) for v in videos])


def show(frames: Video, codec: LatentCodec) -> Video:
    """Return a clip of 4n+1 frames as generated video is read: codec, mp4 file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shown.mp4"
        encode.write_video(path, codec_round_trip(frames, codec))
        return decode.read_video(path).frames


def find(seen: Seen, gallery: Gallery, who: Sequence[int]) -> Found:
    """Seek person `who[n]` of the gallery in what was seen of video n."""
    rows = np.array([gallery.people.index(person) for person in who])
    cosines = seen.faces @ gallery.known.faces.T
    apart = gallery.whitening.distances(seen.styles, gallery.known.styles)
    videos = np.arange(len(rows))
    return Found(
        identity_rank=identity.rank(-cosines, rows, among=AMONG),
        identity_cosine=cosines[videos, rows],
        style_rank=identity.rank(apart, rows, among=AMONG),
        style_distance=apart[videos, rows],
    )
