"""Score generated cases against their truth; every picture is read back from mp4.

Per case four videos are compared: the truth, its round trip through the codec (what a
perfect model would show), the generated one, and a control that says another case's
speech. The mouth's true opening is the renderer's own, exact.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from avatar_jax.evaluation.demo_cases import Case
from avatar_jax.evaluation.judge_frames import codec_round_trip
from avatar_jax.evaluation.metrics import bootstrap, sync, texture
from avatar_jax.evaluation.metrics.psnr import psnr
from avatar_jax.media import decode, encode
from avatar_jax.models import judges
from avatar_jax.models.codec import LatentCodec
from avatar_jax.sampling import chunk, delivery, request, video
from avatar_jax.sampling.pretrained import Pretrained

LEAST_FRAMES = 90  # of a case, 3.6 s
# Every utterance begins with silence: with it, unrelated truths correlate at 0.13, and
# without it at 0.01. So mouths are compared from here on.
LEAD_IN = 12  # frames


@dataclasses.dataclass(frozen=True)
class Scores:
    """One number per case and metric, and the curves behind them."""

    per_case: dict[str, Float[np.ndarray, " cases"]]
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


def generate_cases(
    cases: Sequence[Case],
    pretrained: Pretrained,
    *,
    settings: chunk.Settings,
    seed: int,
    name: str = "generated",
    speech_from: int = 0,
) -> None:
    """Sample all cases as one batch and write `<name>.mp4` into their folders.

    Args:
      speech_from: case n says what case n + speech_from says; 0 is its own speech.
    """
    batch, plan = [], None
    for number, case in enumerate(cases):
        other = cases[(number + speech_from) % len(cases)]
        asked = case.request(speech_of=other)
        prepared, plan, _ = request.prepare(asked, pretrained)
        batch.append(prepared)
    stacked = jax.tree.map(lambda *rows: jnp.concatenate(rows), *batch)
    runs = video.generate(pretrained, stacked, plan=plan, settings=settings, seed=seed)
    frames = np.concatenate(list(runs), axis=1)
    for number, case in enumerate(cases):
        speech = cases[(number + speech_from) % len(cases)].speech
        path = case.folder / f"{name}.mp4"
        delivery.write_avatar(
            path, [frames[number, None]], speech, delivery=delivery.Delivery()
        )


def write_codec_cases(cases: Sequence[Case], codec: LatentCodec) -> None:
    """Write `codec.mp4`, the truth through the codec, into each case's folder."""
    for case in cases:
        encode.write_video(
            case.folder / "codec.mp4",
            codec_round_trip(case.truth, codec),
            case.speech,
        )


def score_cases(cases: Sequence[Case], judge: judges.Judge) -> Scores:
    """Read the cases' mp4 files and score them."""
    truth = np.stack([case.mouth_open for case in cases])
    made = [_read(case, "generated") for case in cases]
    codec = [_read(case, "codec") for case in cases]
    wrong = [_read(case, "wrong_speech") for case in cases]
    seen = np.stack([judge.mouth_open(frames) for frames in made])
    seen_codec = np.stack([judge.mouth_open(frames) for frames in codec])
    seen_wrong = np.stack([judge.mouth_open(frames) for frames in wrong])
    spoken = truth[:, LEAD_IN:]
    own, ceiling, other = (c[:, LEAD_IN:] for c in (seen, seen_codec, seen_wrong))
    return Scores(
        per_case={
            "sync_correlation": sync.case_correlations(own, spoken),
            "sync_correlation_shuffled": sync.shuffled_correlations(own, spoken),
            "sync_correlation_wrong_speech": sync.case_correlations(other, spoken),
            "sync_correlation_codec_ceiling": sync.case_correlations(ceiling, spoken),
            "psnr_codec": _each(psnr, codec, [case.truth for case in cases]),
            "sharpness_ratio": _ratio(texture.sharpness, made, codec),
            "motion_ratio": _ratio(texture.motion, made, codec),
        },
        seen=seen,
        truth=truth,
        lag=sync.best_lag(own, spoken),
    )


def _read(case: Case, name: str) -> UInt8[np.ndarray, "frames Y X 3"]:
    return decode.read_video(case.folder / f"{name}.mp4").frames[: len(case.truth)]


def _each(metric, ours: list, theirs: list) -> Float[np.ndarray, " cases"]:
    return np.array([metric(a, b) for a, b in zip(ours, theirs, strict=True)])


def _ratio(metric, ours: list, theirs: list) -> Float[np.ndarray, " cases"]:
    return np.array([metric(a) / metric(b) for a, b in zip(ours, theirs, strict=True)])
