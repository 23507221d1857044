"""Held-out clips of a real person as cases: their speech, a still of another clip."""

import dataclasses
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
class ClipCase:
    """A held-out clip, and a clip of the same person that training has seen."""

    key: str
    folder: Path  # of the mp4 files made for it
    caption: str
    wave: Float[np.ndarray, " samples"]
    truth: UInt8[np.ndarray, "frames Y X 3"]
    mouths: Float[np.ndarray, "frames 4"]  # as recorded, pixels
    reference: UInt8[np.ndarray, "frames2 Y X 3"]
    reference_mouths: Float[np.ndarray, "frames2 4"]
    still: UInt8[np.ndarray, "Y X 3"]  # of the reference


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
    for index, record in _readable(train, len(train)):
        by_person.setdefault(record["person"], []).append(index)
    cases = []
    for number, record in _readable(held_out, count):
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


def _readable(tier: records.TierSource, count: int) -> Iterator[tuple[int, dict]]:
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


def generate_cases(
    cases: Sequence[ClipCase],
    pretrained: Pretrained,
    *,
    settings: chunk.Settings,
    seed: int,
) -> None:
    """Sample all cases in batches and write each one's `generated.mp4`."""
    for start in range(0, len(cases), _BATCH):
        _generate(cases[start : start + _BATCH], pretrained, settings, seed + start)


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
) -> None:
    longest = max(len(case.truth) for case in cases)
    plan = video.Plan(longest, pretrained.card.chunk_latents)
    prepared = [
        request.encode(
            pretrained,
            still=case.still,
            person=[person.portrait_clip(case.reference)],
            wave=case.wave,
            plan=plan,
            prompt=case.caption,
        )
        for case in cases
    ]
    batch = jax.tree.map(lambda *rows: jnp.concatenate(rows), *prepared)
    runs = video.generate(pretrained, batch, plan=plan, settings=settings, seed=seed)
    frames = np.concatenate(list(runs), axis=1)
    for made, case in zip(frames, cases, strict=True):
        case.folder.mkdir(parents=True, exist_ok=True)
        delivery.write_avatar(
            case.folder / "generated.mp4",
            [made[None, : len(case.truth)]],
            case.wave,
            delivery=delivery.Delivery(),
        )


def _make_case(folder: Path, record: dict, other: dict, size: int) -> ClipCase:
    truth = decode.decode_bytes(record["video"])
    reference = decode.decode_bytes(other["video"])
    for key, frames in ((record["key"], truth), (other["key"], reference)):
        if frames.shape[1:3] != (size, size):
            raise InputError(
                f"expected clips of {size}x{size} pixels, the size of the weights, but "
                f"{key} is {frames.shape[2]}x{frames.shape[1]}; prepare them with "
                f"--size {size}"
            )
    shown = np.ones(len(reference), bool)
    best = pictures.choose_still(reference, other["face_boxes"], shown)
    return ClipCase(
        key=record["key"],
        folder=folder,
        caption=record["caption"],
        wave=record["audio"].astype(np.float32) / _FULL_SCALE,
        truth=truth,
        mouths=record["mouth_boxes"],
        reference=reference,
        reference_mouths=other["mouth_boxes"],
        still=reference[best],
    )
