"""Score generated cases against their truth; every picture is read back from mp4.

Per case these videos are compared: the truth, its round trip through the codec (what a
perfect model would show), the generated one, and controls: another case's speech, the
reference of another case, no reference. The mouth's true opening is the renderer's own,
exact; who is seen and whose manner it is, `personality_scores` finds out.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from avatar_jax.evaluation import personality_scores
from avatar_jax.evaluation.demo_cases import Case
from avatar_jax.evaluation.judge_frames import codec_round_trip
from avatar_jax.evaluation.metrics import bootstrap, sync, texture
from avatar_jax.evaluation.metrics.psnr import psnr
from avatar_jax.media import decode, encode
from avatar_jax.models import judges
from avatar_jax.models.codec import LatentCodec
from avatar_jax.sampling import chunk, delivery, request, video
from avatar_jax.sampling.pretrained import Pretrained
from avatar_jax.types import drop_reference

LEAST_FRAMES = 90  # of a case, 3.6 s
# Every utterance begins with silence: with it, unrelated truths correlate at 0.13, and
# without it at 0.01. So mouths are compared from here on.
LEAD_IN = 12  # frames

Row = Float[np.ndarray, " cases"]


@dataclasses.dataclass(frozen=True)
class Given:
    """Whose speech and whose reference case n is given: those of case n + offset."""

    speech: int = 0
    reference: int | None = 0  # None: no reference


SPEECH_SETS = {"generated": Given(), "wrong_speech": Given(speech=1)}
REFERENCE_SETS = {"swapped": Given(reference=1), "absent": Given(reference=None)}


@dataclasses.dataclass(frozen=True)
class Scores:
    """One number per case and metric, and the curves behind them."""

    per_case: dict[str, Row]
    seen: Float[np.ndarray, "cases frames"]  # mouth opening read from generated video
    truth: Float[np.ndarray, "cases frames"]
    lag: int  # frames by which the generated mouth is late

    def summary(self) -> dict:
        """Return each metric's mean, and `<name>_ci95` over cases."""
        numbers: dict = {"cases": len(self.truth)}
        for name, values in self.per_case.items():
            numbers[name] = float(values.mean())
            numbers[f"{name}_ci95"] = bootstrap.confidence_interval(values)
        return numbers | {"sync_lag_frames": self.lag}


def case_frames(chunk_latents: int) -> int:
    """Return a case length that fills whole chunks and lasts `LEAST_FRAMES` or more."""
    plan = video.Plan(LEAST_FRAMES, chunk_latents)
    return plan.padded_frames


def prepare_cases(
    cases: Sequence[Case], pretrained: Pretrained
) -> tuple[video.Prepared, video.Plan]:
    """Read and encode all cases as users' requests; return them as one batch."""
    batch, plan = [], None
    for case in cases:
        asked = case.request(blank_person=pretrained.card.blank_still)
        prepared, plan, _ = request.prepare(asked, pretrained)
        batch.append(prepared)
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *batch), plan


def generate_cases(
    cases: Sequence[Case],
    pretrained: Pretrained,
    prepared: video.Prepared,
    *,
    plan: video.Plan,
    settings: chunk.Settings,
    seed: int,
    name: str = "generated",
    given: Given = Given(),
) -> None:
    """Sample all cases as one batch and write `<name>.mp4` into their folders."""
    told = give(prepared, given)
    runs = video.generate(pretrained, told, plan=plan, settings=settings, seed=seed)
    frames = np.concatenate(list(runs), axis=1)
    for number, case in enumerate(cases):
        speech = cases[(number + given.speech) % len(cases)].speech
        path = case.folder / f"{name}.mp4"
        delivery.write_avatar(
            path, [frames[number, None]], speech, delivery=delivery.Delivery()
        )


def give(prepared: video.Prepared, given: Given) -> video.Prepared:
    """Pass speeches and references on within a batch, or leave references out."""

    def roll(offset: int):
        return lambda leaf: jnp.roll(jnp.asarray(leaf), -offset, axis=0)

    speech, reference = roll(given.speech)(prepared.speech), prepared.reference
    if reference is not None and given.reference is None:
        reference = drop_reference(reference, jnp.zeros(len(speech), bool))
    elif reference is not None:
        reference = jax.tree.map(roll(given.reference), reference)
    return prepared.replace(speech=speech, reference=reference)


def write_codec_cases(cases: Sequence[Case], codec: LatentCodec) -> None:
    """Write `codec.mp4`, the truth through the codec, into each case's folder."""
    for case in cases:
        encode.write_video(
            case.folder / "codec.mp4",
            codec_round_trip(case.truth, codec),
            case.speech,
        )


def score_cases(cases: Sequence[Case], judge: judges.Judge) -> Scores:
    """Read the cases' mp4 files; score pictures and lips."""
    truth = np.stack([case.mouth_open for case in cases])
    made, codec, wrong = (
        read_cases(cases, name) for name in ("generated", "codec", "wrong_speech")
    )
    seen, seen_codec, seen_wrong = (
        np.stack([judge.mouth_open(frames) for frames in videos])
        for videos in (made, codec, wrong)
    )
    spoken = truth[:, LEAD_IN:]
    own, ceiling, other = (c[:, LEAD_IN:] for c in (seen, seen_codec, seen_wrong))
    return Scores(
        per_case={
            "sync_correlation": sync.case_correlations(own, spoken),
            "sync_correlation_shuffled": sync.shuffled_correlations(own, spoken),
            "sync_correlation_wrong_speech": sync.case_correlations(other, spoken),
            "sync_correlation_codec_ceiling": sync.case_correlations(ceiling, spoken),
            "psnr_codec": _each(psnr, codec, [case.truth for case in cases]),
            "sharpness_ratio": compare(texture.sharpness, made, codec),
            "motion_ratio": compare(texture.motion, made, codec),
        },
        seen=seen,
        truth=truth,
        lag=sync.best_lag(own, spoken),
    )


def correlate_lips(
    cases: Sequence[Case],
    videos: Sequence[UInt8[np.ndarray, "frames Y X 3"]],
    judge: judges.Judge,
) -> Row:
    """Return `sync_correlation` of videos that are in no file."""
    seen = np.stack([judge.mouth_open(frames) for frames in videos])
    truth = np.stack([case.mouth_open for case in cases])
    return sync.case_correlations(seen[:, LEAD_IN:], truth[:, LEAD_IN:])


def score_personality(
    cases: Sequence[Case],
    by: personality_scores.Judges,
    gallery: personality_scores.Gallery,
) -> dict[str, Row]:
    """Read the sets that a reference tells apart; return rows of `Scores.per_case`.

    `swapped` seeks the owner of the reference, all others the case's own person.
    """
    own = [case.person for case in cases]
    owner = np.roll(own, -REFERENCE_SETS["swapped"].reference).tolist()
    found = {
        name: personality_scores.find(
            personality_scores.look(read_cases(cases, name), by), gallery, who
        )
        for name, who in (
            ("generated", own),
            ("swapped", owner),
            ("absent", own),
            ("codec", own),
        )
    }
    return {
        "identity_top1_of_20": found["generated"].identity_first,
        "identity_reference_swapped": found["swapped"].identity_first,
        "identity_reference_absent": found["absent"].identity_first,
        "identity_ceiling": found["codec"].identity_first,
        "style_nearest_over_chance": found["generated"].style_over_chance,
        "style_nearest_swapped_over_chance": found["swapped"].style_over_chance,
        "style_nearest_absent_over_chance": found["absent"].style_over_chance,
        "style_ceiling_over_chance": found["codec"].style_over_chance,
        "style_distance": found["generated"].style_distance,
        "style_distance_absent": found["absent"].style_distance,
        "style_distance_ceiling": found["codec"].style_distance,
    }


def read_cases(
    cases: Sequence[Case], name: str
) -> list[UInt8[np.ndarray, "frames Y X 3"]]:
    """Read `<name>.mp4` of each case back, as long as its truth."""
    return [
        decode.read_video(case.folder / f"{name}.mp4").frames[: len(case.truth)]
        for case in cases
    ]


def _each(metric, ours: list, theirs: list) -> Row:
    return np.array([metric(a, b) for a, b in zip(ours, theirs, strict=True)])


def compare(
    metric: Callable[[UInt8[np.ndarray, "frames Y X 3"]], float],
    ours: Sequence[UInt8[np.ndarray, "frames Y X 3"]],
    theirs: Sequence[UInt8[np.ndarray, "frames Y X 3"]],
) -> Row:
    """Return each metric over that of the other video (here: the codec's); no unit."""
    return np.array([metric(a) / metric(b) for a, b in zip(ours, theirs, strict=True)])
