"""Held-out clips of a real person as cases: their speech, a still of another clip."""

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from avatar_jax.data import records
from avatar_jax.evaluation.judge_frames import codec_round_trip
from avatar_jax.media import decode, encode
from avatar_jax.models.codec import LatentCodec
from avatar_jax.sampling import chunk, delivery, person, pictures, request, video
from avatar_jax.sampling.pretrained import Pretrained
from avatar_jax.types import InputError, count_frames, count_latents

_log = logging.getLogger(__name__)

_BATCH = 32  # videos sampled at once
_FULL_SCALE = 32_767  # of PCM16


@dataclasses.dataclass(frozen=True)
class TrainClip:
    """A clip that training has seen; boxes as recorded, pixels."""

    key: str
    person: str
    wave: Float[np.ndarray, " samples"]
    frames: UInt8[np.ndarray, "frames Y X 3"]
    boxes: Float[np.ndarray, "frames 4"]  # of the face
    mouths: Float[np.ndarray, "frames 4"]
    best: int  # frame that makes the best still


@dataclasses.dataclass(frozen=True)
class ClipCase:
    """A held-out clip, and what else is given: a scene and who is in it.

    Both come from one train clip of the same person, unless references are swapped.
    """

    key: str
    folder: Path  # of the mp4 files made for it
    person: str
    caption: str
    wave: Float[np.ndarray, " samples"]
    truth: UInt8[np.ndarray, "frames Y X 3"]
    boxes: Float[np.ndarray, "frames 4"]  # of the face, as recorded, pixels
    mouths: Float[np.ndarray, "frames 4"]
    scene: TrainClip
    reference: TrainClip

    @property
    def still(self) -> UInt8[np.ndarray, "Y X 3"]:
        """The scene's best frame."""
        return self.scene.frames[self.scene.best]

    @property
    def still_box(self) -> Float[np.ndarray, " 4"]:
        """The face in the still, pixels."""
        return self.scene.boxes[self.scene.best]


def read_cases(
    dataset: Path, folder: Path, *, size: int, limit: int | None = None
) -> list[ClipCase]:
    """Read the clips of split `test`, each with a `train` clip of the same person.

    Raises:
      InputError: fewer than two, of another size, or somebody who is in no train clip.
    """
    tier = records.tier_directory(dataset, records.MEDIA)
    held_out, train = (records.read_tier(tier, split) for split in ("test", "train"))
    count = len(held_out) if limit is None else min(limit, len(held_out))
    if count < 2:
        raise InputError(
            f"expected 2 held-out clips or more, came {count} of the {len(held_out)} "
            f"in {dataset}; hold out more, or ask for more --cases"
        )
    by_person: dict[str, list[int]] = {}
    for index, record in readable(train, len(train)):
        by_person.setdefault(record["person"], []).append(index)
    cases = []
    for number, record in readable(held_out, count):
        known = by_person.get(record["person"])
        if known is None:
            raise InputError(
                f"expected a train clip of {record['person']!r}, whom {record['key']} "
                f"shows, but {dataset} has none; prepare it with more clips of each"
            )
        other = train[known[number * len(known) // count]]
        cases.append(_make_case(folder / f"case_{number:02d}", record, other, size))
    if len(cases) < 2:
        raise InputError(
            f"expected 2 held-out clips or more of {dataset} that can be read, came "
            f"{len(cases)}; prepare it again"
        )
    return cases


def readable(tier: records.TierSource, count: int) -> Iterator[tuple[int, dict]]:
    """Yield the first `count` records with their index; name and skip corrupt ones."""
    skipped = 0
    for index in range(count):
        try:
            record = tier[index]
        except records.CorruptRecord as error:
            skipped += 1
            _log.warning("skipped (%d so far): %s", skipped, error)
            continue
        yield index, record


def swap_references(cases: Sequence[ClipCase]) -> list[ClipCase]:
    """Give each case the reference of a case of another person, all others in turn.

    Empty where all cases are of one person.
    """
    by_person: dict[str, list[ClipCase]] = {}
    for case in cases:
        by_person.setdefault(case.person, []).append(case)
    if len(by_person) < 2:
        return []
    turn = {
        person: itertools.cycle([other for other in by_person if other != person])
        for person in by_person
    }
    lent = {person: itertools.cycle(own) for person, own in by_person.items()}
    return [
        dataclasses.replace(
            case, reference=next(lent[next(turn[case.person])]).reference
        )
        for case in cases
    ]


def generate_cases(
    cases: Sequence[ClipCase],
    pretrained: Pretrained,
    *,
    settings: chunk.Settings,
    seed: int,
    name: str = "generated",
    blank_person: bool = False,
) -> None:
    """Sample all cases in batches and write each one's `<name>.mp4`.

    Args:
      blank_person: in the still; the person is known from the reference alone.
    """
    for start in range(0, len(cases), _BATCH):
        some = cases[start : start + _BATCH]
        made = _generate(some, pretrained, settings, seed + start, blank_person)
        for frames, case in zip(made, some, strict=True):
            case.folder.mkdir(parents=True, exist_ok=True)
            delivery.write_avatar(
                case.folder / f"{name}.mp4",
                [frames[None, : len(case.truth)]],
                case.wave,
                delivery=delivery.Delivery(),
            )


def write_codec_cases(cases: Sequence[ClipCase], codec: LatentCodec) -> None:
    """Write each truth through the codec as `codec.mp4`: the best a model can show."""
    for case in cases:
        count = len(case.truth)
        missing = count_frames(count_latents(count + 3)) - count  # to 4n+1 frames
        longer = np.pad(case.truth, ((0, missing), *[(0, 0)] * 3), "edge")
        shown = codec_round_trip(longer, codec)[:count]
        case.folder.mkdir(parents=True, exist_ok=True)
        encode.write_video(case.folder / "codec.mp4", shown, case.wave)


def read_video(case: ClipCase, name: str) -> UInt8[np.ndarray, "frames Y X 3"]:
    """Read `<name>.mp4` of a case back."""
    return decode.read_video(case.folder / f"{name}.mp4").frames[: len(case.truth)]


def _generate(
    cases: Sequence[ClipCase],
    pretrained: Pretrained,
    settings: chunk.Settings,
    seed: int,
    blank_person: bool,
) -> UInt8[np.ndarray, "cases frames Y X 3"]:
    longest = max(len(case.truth) for case in cases)
    plan = video.Plan(longest, pretrained.card.chunk_latents)
    prepared = [_prepare(case, pretrained, plan, blank_person) for case in cases]
    batch = jax.tree.map(lambda *rows: jnp.concatenate(rows), *prepared)
    runs = video.generate(pretrained, batch, plan=plan, settings=settings, seed=seed)
    return np.concatenate(list(runs), axis=1)


def _prepare(
    case: ClipCase, pretrained: Pretrained, plan: video.Plan, blank_person: bool
) -> video.Prepared:
    still, valid, known = case.still, None, case.reference
    if blank_person:
        cell = pretrained.patch_side
        still, valid = pictures.blank_person(still, case.still_box, cell=cell)
    found = np.ones(len(known.frames), bool)  # records do not say where it was not
    shown = person.PersonClip(known.frames, known.boxes, found, known.wave)
    return request.encode(
        pretrained,
        still=still,
        still_valid=valid,
        person=[shown],
        wave=case.wave,
        plan=plan,
        prompt=case.caption,
    )


def _make_case(folder: Path, record: dict, other: dict, size: int) -> ClipCase:
    truth, known = _decode(record, size), _make_train_clip(other, size)
    return ClipCase(
        key=record["key"],
        folder=folder,
        person=record["person"],
        caption=record["caption"],
        wave=_read_wave(record),
        truth=truth,
        boxes=record["face_boxes"],
        mouths=record["mouth_boxes"],
        scene=known,
        reference=known,
    )


def _make_train_clip(record: dict, size: int) -> TrainClip:
    frames, boxes = _decode(record, size), record["face_boxes"]
    return TrainClip(
        key=record["key"],
        person=record["person"],
        wave=_read_wave(record),
        frames=frames,
        boxes=boxes,
        mouths=record["mouth_boxes"],
        best=pictures.choose_still(frames, boxes, np.ones(len(frames), bool)),
    )


def _decode(record: dict, size: int) -> UInt8[np.ndarray, "frames size size 3"]:
    frames = decode.decode_bytes(record["video"])
    if frames.shape[1:3] != (size, size):
        raise InputError(
            f"expected clips of {size}x{size} pixels, the size of the weights, but "
            f"{record['key']} is {frames.shape[2]}x{frames.shape[1]}; prepare them "
            f"with --size {size}"
        )
    return frames


def _read_wave(record: dict) -> Float[np.ndarray, " samples"]:
    return record["audio"].astype(np.float32) / _FULL_SCALE
