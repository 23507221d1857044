"""One self-contained HTML page: numbers, videos, a table and the mouth curves."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from avatar_jax.evaluation.demo_scores import Scores

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; color: #222; background: #fff }
h1, h2 { font-weight: 600 } video { max-width: 100%; border-radius: 6px }
table { border-collapse: collapse; margin: 1rem 0; font-size: 14px }
th, td { padding: .25rem .5rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left } figure { margin: .6rem 0 }
figcaption { font-size: 13px; color: #555 } .wide { overflow-x: auto }
.beside { display: flex; gap: 1rem; align-items: end } .truth { stroke: #999 }
.seen { stroke: #0a62c4 } polyline { fill: none; stroke-width: 1.6 }
"""
# Metric -> (what it is, what to hope for).
MEANING = {
    "sync_correlation": ("mouth opening seen against the truth", "0.75 or more"),
    "sync_correlation_shuffled": ("against the other cases' truths", "within 0.15"),
    "sync_correlation_wrong_speech": (
        "another case's speech given, this one's truth",
        "within 0.15",
    ),
    "sync_correlation_codec_ceiling": ("the truth through the codec", "the ceiling"),
    "psnr_codec": ("the codec's own round trip, dB", "the ceiling"),
    "sharpness_ratio": ("gradients, generated to codec", "0.7 to 1.4"),
    "motion_ratio": ("change per frame, generated to codec", "0.7 to 1.4"),
    # Of weights that take a reference.
    "identity_top1_of_20": ("the true person is first", "0.6 or more; chance 0.05"),
    "identity_reference_swapped": (
        "another's reference given: that one is first",
        "0.6 or more; chance 0.05",
    ),
    "identity_reference_absent": (
        "no reference given: the true person is first",
        "0.05, chance",
    ),
    "identity_ceiling": ("the truth through the codec", "the ceiling"),
    "style_nearest_over_chance": (
        "the true person's manner is nearest, times chance",
        "3 or more",
    ),
    "style_nearest_swapped_over_chance": (
        "another's reference given: that one's manner is nearest",
        "3 or more",
    ),
    "style_nearest_absent_over_chance": (
        "no reference given; the speech alone tells a little",
        "lower",
    ),
    "style_ceiling_over_chance": ("the truth through the codec", "the ceiling"),
    "style_distance": ("to the true person's manner, in clips' own spread", "low"),
    "style_distance_absent": ("the same with no reference", "higher"),
    "style_distance_ceiling": ("the truth through the codec", "the ceiling"),
}


def write_report(
    path: Path,
    *,
    metrics: Mapping,
    scores: Scores,
    videos: Sequence[Mapping[str, Path]],
    notes: Sequence[str] = (),
) -> None:
    """Write the page, complete or not at all.

    Args:
      videos: rows of title -> mp4 beside each other, embedded in the page.
      notes: lines under the title.
    """
    body = [
        "<h1>Talking people, scored</h1>",
        *(f"<p>{html.escape(note)}</p>" for note in notes),
        *(_row(beside) for beside in videos),
        "<h2>Figures</h2>",
        _summary(metrics),
        "<h2>Mouth opening over time</h2>",
        "<p>Grey: the truth for the given speech. Blue: what the judge reads from the "
        "generated mp4. Correlations leave out the first half second, which is silent "
        "in every case.</p>",
        *(_curves(n, scores) for n in range(len(scores.truth))),
        "<h2>Each case</h2>",
        _table(scores),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>Talking people, scored</title><style>{STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(page)
    temporary.replace(path)


def _row(beside: Mapping[str, Path]) -> str:
    figures = "".join(_video(title, path) for title, path in beside.items())
    return f"<div class='beside'>{figures}</div>"


def _video(title: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f"<figure><video controls loop src='data:video/mp4;base64,{data}'></video>"
        f"<figcaption>{html.escape(title)}</figcaption></figure>"
    )


def _summary(metrics: Mapping) -> str:
    rows = []
    for name, (what, hope) in MEANING.items():
        if name not in metrics:
            continue
        low, high = metrics[f"{name}_ci95"]
        rows.append(
            f"<tr><td>{name}</td><td>{metrics[name]:.3f}</td>"
            f"<td>{low:.3f} to {high:.3f}</td><td>{what}</td><td>{hope}</td></tr>"
        )
    head = "<tr><th>metric</th><th>mean</th><th>95%</th><th>what</th><th>want</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _table(scores: Scores) -> str:
    """Lay out a row for each metric and a column for each case."""
    head = "".join(f"<th>{n:02d}</th>" for n in range(len(scores.truth)))
    rows = "".join(
        f"<tr><td>{name.replace('_', ' ')}</td>"
        + "".join(f"<td>{value:.2f}</td>" for value in values)
        + "</tr>"
        for name, values in scores.per_case.items()
    )
    return f"<div class='wide'><table><tr><th>case</th>{head}</tr>{rows}</table></div>"


def _curves(number: int, scores: Scores) -> str:
    """Draw the two openings of one case as inline SVG."""
    r = scores.per_case["sync_correlation"][number]
    truth, seen = scores.truth[number], scores.seen[number]
    top = max(1.0, float(truth.max()), float(seen.max()))
    lines = "".join(
        f'<polyline class="{kind}" points="{_points(values, top)}"/>'
        for kind, values in (("truth", truth), ("seen", seen))
    )
    return (
        f"<figure><svg viewBox='0 0 640 70' width='100%'>{lines}</svg>"
        f"<figcaption>case {number:02d}, r = {r:.2f}</figcaption></figure>"
    )


def _points(values: Float[np.ndarray, " frames"], top: float) -> str:
    x = np.linspace(2, 638, len(values))
    y = 66 - 62 * np.clip(values, 0, None) / top
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
