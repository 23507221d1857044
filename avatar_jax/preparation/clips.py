"""Turn a folder of real clips into records: one face, cropped, with its sound.

Splits are test (held out), validation (a few, by which training shows how it does) and
train. Every file that cannot be used is skipped, named with its reason, and counted.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from avatar_jax.data import records
from avatar_jax.media import decode, faces
from avatar_jax.preparation import pool, tiers
from avatar_jax.types import FRAMES_PER_SECOND, InputError

ENDINGS = {
    *(".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi"),
    *(".mpg", ".mpeg", ".flv", ".wmv", ".3gp", ".ts"),
}
_SHORTEST, _LONGEST = 1, 60  # seconds
_VALIDATION_EVERY = 40  # clips that are not held out
_LEAST_FOUND = 0.5  # share of frames in which the face must be found


@dataclass(frozen=True)
class ClipsConfig:
    """Which clips, how they are cropped, and what is said of them.

    Args:
      size: pixels of the square crop.
      holdout: clips set apart as split `test`; None: one in twenty.
      holdout_names: files set apart instead, as paths inside `folder`.
      person: who is seen; None: the name of the folder that holds the clip.
      caption: of clips without a .txt file of the same name beside them.
      rights: the statement stored in every record.
    """

    folder: Path
    size: int = 96
    scale: float = faces.CROP_SCALE
    holdout: int | None = None
    holdout_names: tuple[str, ...] = ()
    person: str | None = None
    caption: str = "A person is talking."
    rights: str = "unstated"
    seed: int = 0
    workers: int = 2


@dataclass
class Report:
    """What became of the clips: counts by split, reasons by file."""

    kept: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        kept = ", ".join(f"{count} {split}" for split, count in self.kept.items())
        lines = [f"clips kept: {kept}; skipped: {len(self.skipped)}"]
        lines += [f"  {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


def write_media(directory: Path, config: ClipsConfig) -> Report:
    """Write the clips_media tier of a folder of clips; return what became of them.

    Raises InputError where there is no clip, or none that can be used.
    """
    report = Report()
    with pool.open_pool(config.workers, _start_worker) as run:
        for split, examples in _split(config, run, report).items():
            first = next(examples, None)
            if first is None:
                raise InputError(_explain(split, config, report))
            report.kept[split] = records.write_tier(
                records.tier_directory(directory, records.MEDIA),
                split,
                records.media_schema(),
                itertools.chain([first], examples),
            )
    return report


def find_clips(folder: Path) -> list[str]:
    """Return the paths of all videos inside a folder, relative to it, in order."""
    if not folder.is_dir():
        raise InputError(f"expected a folder of clips, but {folder} is none")
    names = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in ENDINGS and not path.name.startswith(".")
    ]
    if not names:
        raise InputError(
            f"expected clips in {folder}, but it has no file ending in "
            f"{', '.join(sorted(ENDINGS))}"
        )
    return sorted(names)


def make_record(config: ClipsConfig, name: str) -> tuple[str, dict[str, Any] | str]:
    """Make the media record of one clip, or say why there is none."""
    path = config.folder / name
    try:
        audio = decode.read_soundtrack(path)
        if audio is None:
            return name, "no audio track"
        longest = _LONGEST * FRAMES_PER_SECOND
        frames = itertools.islice(decode.iter_frames(path), longest + 1)
        boxes, found = faces.track_face(frames)
    except InputError as error:
        return name, str(error)
    if not _SHORTEST * FRAMES_PER_SECOND <= len(found) <= longest:
        return name, f"not between {_SHORTEST} and {_LONGEST} s long; cut it"
    if found.mean() < _LEAST_FOUND:
        return name, f"a face in only {found.mean():.0%} of the frames"
    try:
        return name, _crop(config, name, audio, boxes, found)
    except InputError as error:
        return name, str(error)


def _crop(config: ClipsConfig, name: str, audio, boxes, found) -> dict[str, Any]:
    """Decode a clip a second time and cut out the face; one frame is held at once."""
    path = config.folder / name
    box, crops = None, []
    for frame in decode.iter_frames(path):
        if box is None:
            box = faces.square_around(boxes, scale=config.scale, within=frame.shape[:2])
        crops.append(faces.crop_square(frame, box, config.size))
    inside = faces.boxes_in_crop(boxes, box, config.size)
    words = path.with_suffix(".txt")
    caption = (
        words.read_text(errors="replace").strip() if words.is_file() else config.caption
    )
    side = float(np.median(boxes[:, 2] - boxes[:, 0]))
    return tiers.make_media(
        np.stack(crops),
        audio,
        inside,
        faces.mouth_boxes(inside),
        names={
            "key": name,
            "person": config.person or path.parent.resolve().name,
            "scene": name,
            "source": config.folder.resolve().name,
            "caption": caption,
        },
        rights={"statement": config.rights},
        scores={"face_found": float(found.mean()), "face_pixels": side},
    )


def _split(config: ClipsConfig, run, report: Report) -> dict[str, Iterator]:
    """Give the usable records of each split, made while they are asked for."""

    def usable(names: list[str]) -> Iterator[dict[str, Any]]:
        made = run(partial(make_record, config), names)
        for name, record in tqdm(
            made, total=len(names), desc="clips", unit="clip", disable=None
        ):
            if isinstance(record, str):
                report.skipped[name] = record
            else:
                yield record

    names = find_clips(config.folder)
    held, rest = _shuffle(config, names)
    if config.holdout_names:
        test, rest = usable(held), usable(rest)
    else:
        # One stream, so that as many as were asked for are usable.
        rest = usable(held + rest)
        test = itertools.islice(rest, len(held))
    count = max(1, (len(names) - len(held)) // _VALIDATION_EVERY)
    splits = {"validation": itertools.islice(rest, count), "train": rest}
    return {"test": test, **splits} if held else splits


def _shuffle(config: ClipsConfig, names: list[str]) -> tuple[list[str], list[str]]:
    """Return the held-out clips, then the others as the seed shuffles them."""
    shuffled = np.random.default_rng(config.seed).permutation(names).tolist()[::-1]
    if config.holdout_names:
        held = _match(config.holdout_names, names)
        rest = [name for name in shuffled if name not in held]
    else:
        count = len(names) // 20 if config.holdout is None else config.holdout
        held, rest = shuffled[: max(count, 0)], shuffled[max(count, 0) :]
        if count < 0:
            raise InputError(f"expected --holdout of 0 or more, came {count}")
    if len(rest) < 2:
        raise InputError(
            f"expected 2 clips or more besides the {len(held)} held out, one to "
            f"validate and one to train on, but {config.folder} has {len(names)} in "
            "all; hold out fewer clips or add some"
        )
    return held, rest


def _match(wanted: tuple[str, ...], names: list[str]) -> list[str]:
    """Find the files of a list, which may leave out endings."""
    by_stem = {name.rsplit(".", 1)[0]: name for name in names}
    found = [name if name in names else by_stem.get(name) for name in wanted]
    if None in found:
        raise InputError(
            f"expected clips of the input folder in the holdout list, but "
            f"{wanted[found.index(None)]!r} is none"
        )
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise InputError(f"expected each clip once in the holdout list, {twice} is two")
    return found


def _explain(split: str, config: ClipsConfig, report: Report) -> str:
    reasons = [f"{name}: {reason}" for name, reason in report.skipped.items()]
    return (
        f"expected usable clips in {config.folder}, but none is left for {split!r}; "
        f"{len(reasons)} were skipped" + (f", first {reasons[0]}" if reasons else "")
    )


def _start_worker() -> None:
    cv2.setNumThreads(1)
