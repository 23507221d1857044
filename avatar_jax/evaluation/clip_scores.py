"""Score generated videos of a real person against what the held-out clips show.

Openings are compared over the frames in which somebody speaks: in the silence around
them every mouth is shut, and any two clips agree (r = 0.4 between true clips that say
different things). The figures over whole clips are there as `<name>_whole_clip`.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from avatar_jax.evaluation import clip_cases, clip_identity, mouth
from avatar_jax.evaluation.clip_cases import ClipCase
from avatar_jax.evaluation.metrics import bootstrap, sync
from avatar_jax.evaluation.metrics.psnr import psnr
from avatar_jax.types import InputError

MEANING = {
    "mouth_correlation": "opening, generated against true, while speech is heard",
    "mouth_correlation_shuffled": "generated against the other clips' truths",
    "mouth_correlation_true_shuffled": "true against the others: what chance gives",
    "mouth_correlation_codec_ceiling": "true through the codec against true",
    "mouth_correlation_whole_clip": "as the first, silence included",
    "mouth_correlation_shuffled_whole_clip": "as the second, silence included",
    "mouth_correlation_true_shuffled_whole_clip": "as the third, silence included",
    "mouth_correlation_codec_ceiling_whole_clip": "as the fourth, silence included",
    "mouth_follows_loudness": "the measure on true clips against the sound's level",
    "psnr_generated": "dB, generated against true",
    "psnr_static": "dB, the still repeated against true: the control",
    "psnr_codec": "dB, true through the codec against true",
}
_SHORTEST = 10  # frames heard in both clips of a pair
_SHOWN, _COLUMNS, _SIDE = 4, 10, 96  # clips, frames and pixels of the contact sheet
_GAP = 6  # pixels


@dataclasses.dataclass(frozen=True)
class Openings:
    """Mouth openings of one case, and the frames in which its speech is heard."""

    true: Float[np.ndarray, " frames"]
    codec: Float[np.ndarray, " frames"]
    generated: Float[np.ndarray, " frames"]
    heard: Bool[np.ndarray, " frames"]
    untracked: tuple[str, ...]  # videos whose recorded mouth boxes were used instead


def score_cases(
    cases: Sequence[ClipCase],
    *,
    gallery: clip_identity.Gallery | None = None,
    swapped: Sequence[ClipCase] = (),
) -> dict:
    """Read the cases' mp4 files; return the mean of each figure and its interval.

    Args:
      gallery: people among whom those of the videos are sought; None: they are not.
      swapped: the same cases with the references of their `swapped.mp4`.

    Raises:
      InputError: no two clips are heard for long enough at the same time.
    """
    openings = [measure_case(case) for case in cases]
    rows = correlate(openings) | _psnr(cases)
    rows["mouth_follows_loudness"] = np.array(
        [
            sync.mouth_correlation(
                o.true, mouth.measure_loudness(case.wave, len(o.true))
            )
            for case, o in zip(cases, openings, strict=True)
        ]
    )
    numbers: dict = {"clips": len(cases)}
    if gallery is not None:
        rows |= clip_identity.find_people(cases, swapped, gallery)
        numbers["identity_chance"] = 1 / len(gallery.people)
    for name, values in rows.items():
        numbers[name] = float(values.mean())
        numbers[f"{name}_ci95"] = bootstrap.confidence_interval(values)
    for video in ("true", "codec", "generated"):
        lost = sum(video in o.untracked for o in openings)
        numbers[f"untracked_{video}"] = lost
    people = _by_person(rows, cases, swapped)
    for name in clip_identity.MEANING:
        own = [row[name] for row in people.values() if name in row]
        if own:
            numbers[f"{name}_over_people"] = float(np.mean(own))
    return numbers | {"people": people}


def measure_case(case: ClipCase) -> Openings:
    """Measure a case's three videos, each in mouth boxes tracked in itself."""
    videos = {
        "true": case.truth,
        "codec": clip_cases.read_video(case, "codec"),
        "generated": clip_cases.read_video(case, "generated"),
    }
    curves, untracked = {}, []
    for name, frames in videos.items():
        boxes = mouth.track_mouth(frames)
        if boxes is None:
            untracked.append(name)
            # A generated head rests where the still has it.
            own = case.scene.mouths if name == "generated" else case.mouths
            boxes = np.tile(own.mean(axis=0), (len(frames), 1))
        curves[name] = mouth.measure_opening(frames, boxes)
    heard = mouth.find_spoken(case.wave, len(case.truth))
    return Openings(**curves, heard=heard, untracked=tuple(untracked))


def correlate(openings: Sequence[Openings]) -> dict[str, Float[np.ndarray, " cases"]]:
    """Return the correlations of `MEANING` for each case."""
    rows = {}
    for ending, speaks in (("", True), ("_whole_clip", False)):
        for name, video, others in (
            ("mouth_correlation", "generated", False),
            ("mouth_correlation_shuffled", "generated", True),
            ("mouth_correlation_true_shuffled", "true", True),
            ("mouth_correlation_codec_ceiling", "codec", False),
        ):
            rows[name + ending] = np.array(
                [
                    _mean_with(openings, n, video, others=others, speaks=speaks)
                    for n in range(len(openings))
                ]
            )
    return rows


def format_scores(numbers: dict) -> str:
    """Return the figures as aligned lines."""
    lines = [f"{numbers['clips']} held-out clips; mean [95 % interval over clips]"]
    for name, what in (MEANING | clip_identity.MEANING).items():
        if name in numbers:
            low, high = numbers[f"{name}_ci95"]
            value = f"{numbers[name]:7.3f} [{low:6.3f}, {high:6.3f}]"
            lines.append(f"{name:43s} {value}  {what}")
    if "identity_chance" in numbers:
        lines.append(_format_people(numbers))
    lost = {v: numbers[f"untracked_{v}"] for v in ("true", "codec", "generated")}
    lines.append(f"no face tracked, recorded boxes used: {lost}")
    return "\n".join(lines)


def write_contact_sheet(
    path: Path, cases: Sequence[ClipCase], swapped: Sequence[ClipCase] = ()
) -> None:
    """Draw some clips over time: true, through the codec, generated.

    With `swapped` also the other person's clip, and what was generated from it.
    """
    rows = []
    for number, case in enumerate(cases[:_SHOWN]):
        names = ("codec", "generated")
        videos = [case.truth, *(clip_cases.read_video(case, name) for name in names)]
        if swapped:
            videos.append(swapped[number].reference.frames)
            videos.append(clip_cases.read_video(case, "swapped"))
        rows += [_draw_times(frames) for frames in videos]
        rows.append(np.full((_GAP, rows[0].shape[1], 3), 255, np.uint8))
    _write_picture(path, np.concatenate(rows[:-1]))


def write_mouths(path: Path, cases: Sequence[ClipCase]) -> None:
    """Draw each true clip's most shut mouth above its most open one, as measured."""
    pairs = []
    for case in cases:
        boxes = mouth.track_mouth(case.truth)
        boxes = case.mouths if boxes is None else boxes
        opening = mouth.measure_opening(case.truth, boxes)
        cuts = mouth.cut_mouths(case.truth, boxes)
        ends = (cuts[opening.argmin()], cuts[opening.argmax()])
        pairs.append(np.concatenate([_enlarge(cut, 64, 96) for cut in ends]))
    _write_picture(path, _join(pairs))


def _by_person(
    rows: dict[str, Float[np.ndarray, " cases"]],
    cases: Sequence[ClipCase],
    swapped: Sequence[ClipCase],
) -> dict[str, dict]:
    """Return each figure's mean over the cases of each person.

    Cases of swapped references count for the person of the reference.
    """
    numbers = {}
    for person in sorted({case.person for case in cases}):
        own = np.array([case.person == person for case in cases])
        lent = np.array([case.reference.person == person for case in swapped])
        shown = {name: lent if name == "identity_swapped" else own for name in rows}
        numbers[person] = {"clips": int(own.sum())} | {
            name: float(values[shown[name]].mean())
            for name, values in rows.items()
            if shown[name].any()
        }
    return numbers


def _format_people(numbers: dict) -> str:
    """Return the identity figures of each person as lines, and their mean."""
    names = [name for name in clip_identity.MEANING if name in numbers]
    lines = ["clips of each person, " + ", ".join(names)]
    for person, own in numbers["people"].items():
        values = "  ".join(f"{own.get(name, np.nan):6.3f}" for name in names)
        lines.append(f"  {person:20s} {own['clips']:4d}  {values}")
    means = "  ".join(f"{numbers[f'{name}_over_people']:6.3f}" for name in names)
    chance = f"chance {numbers['identity_chance']:.3f}"
    return "\n".join([*lines, f"  {'mean over people':26s} {means}; {chance}"])


def _mean_with(
    openings: Sequence[Openings], n: int, video: str, *, others: bool, speaks: bool
) -> float:
    """Correlate a video of case n with its own truth, or with each other truth."""
    seen, values = getattr(openings[n], video), []
    partners = [k for k in range(len(openings)) if k != n] if others else [n]
    for k in partners:
        end = min(len(seen), len(openings[k].true))
        shown = np.ones(end, bool)
        if speaks:
            shown = openings[n].heard[:end] & openings[k].heard[:end]
        if shown.sum() >= _SHORTEST:
            true = openings[k].true[:end][shown]
            values.append(sync.mouth_correlation(seen[:end][shown], true))
    if not values:
        raise InputError(
            f"expected {_SHORTEST} frames or more of speech in every clip, but of "
            f"held-out clip {n} fewer can be compared with those of "
            f"{'other clips' if others else 'its truth'}; "
            "hold out clips with more speech"
        )
    return float(np.mean(values))


def _psnr(cases: Sequence[ClipCase]) -> dict[str, Float[np.ndarray, " cases"]]:
    rows: dict[str, list[float]] = {"generated": [], "static": [], "codec": []}
    for case in cases:
        still = np.broadcast_to(case.still, case.truth.shape)
        rows["static"].append(psnr(still, case.truth))
        for name in ("generated", "codec"):
            rows[name].append(psnr(clip_cases.read_video(case, name), case.truth))
    return {f"psnr_{name}": np.array(values) for name, values in rows.items()}


def _draw_times(
    frames: UInt8[np.ndarray, "frames Y X 3"],
) -> UInt8[np.ndarray, "Y2 X2 3"]:
    times = np.linspace(0, len(frames) - 1, _COLUMNS).round().astype(int)
    return _join([_enlarge(frames[t], _SIDE, _SIDE) for t in times])


def _enlarge(
    picture: UInt8[np.ndarray, "Y X 3"], height: int, width: int
) -> UInt8[np.ndarray, "Y2 X2 3"]:
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC)


def _join(pictures: list[UInt8[np.ndarray, "Y _ 3"]]) -> UInt8[np.ndarray, "Y X2 3"]:
    return np.concatenate(pictures, axis=1)


def _write_picture(path: Path, picture: UInt8[np.ndarray, "Y X 3"]) -> None:
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    cv2.imwrite(str(temporary), picture[..., ::-1])
    temporary.replace(path)
