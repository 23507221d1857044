"""Put the videos of cases next to each other, labelled, one case after the other."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from avatar_jax.evaluation.demo_cases import Case
from avatar_jax.media import decode, encode
from avatar_jax.types import SAMPLES_PER_FRAME

PANEL = 192  # pixels
LABEL_ROWS = 28  # pixels
_COLUMNS = {"truth": "truth", "codec": "codec ceiling", "generated": "generated"}
_REFERENCE = {"reference": "reference"}


def write_side_by_side(
    path: Path, cases: Sequence[Case], *, with_reference: bool
) -> None:
    """Write truth, codec ceiling and generated video of some cases, with the speech.

    Args:
      with_reference: the person's own video comes first, repeated or cut to the length.
    """
    columns = _REFERENCE | _COLUMNS if with_reference else _COLUMNS
    speech = np.concatenate([_fit(case) for case in cases])
    width = PANEL * len(columns)
    with encode.VideoWriter(path, PANEL + LABEL_ROWS, width, audio=speech) as writer:
        for case in cases:
            panels = [
                _panel(decode.read_video(case.folder / f"{name}.mp4").frames, label)
                for name, label in columns.items()
            ]
            times = np.arange(len(case.truth))
            shown = [panel[times % len(panel)] for panel in panels]
            writer.write(np.concatenate(shown, axis=2))


def _fit(case: Case) -> Float[np.ndarray, " samples"]:
    """Return the case's speech, exactly as long as its frames."""
    samples = len(case.truth) * SAMPLES_PER_FRAME
    return np.append(case.speech, np.zeros(samples))[:samples]


def _panel(
    frames: UInt8[np.ndarray, "frames Y X 3"], label: str
) -> UInt8[np.ndarray, "frames Y2 X2 3"]:
    """Enlarge the frames and write the label above them."""
    head = np.full((LABEL_ROWS, PANEL, 3), 245, np.uint8)
    place, font = (8, LABEL_ROWS - 9), cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(head, label, place, font, 0.5, (40, 40, 40), 1, cv2.LINE_AA)
    return np.stack(
        [
            np.concatenate(
                [head, cv2.resize(f, (PANEL, PANEL), interpolation=cv2.INTER_CUBIC)]
            )
            for f in frames
        ]
    )
