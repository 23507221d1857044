"""Draw the loss curves of finished or running workdirs, one after the other, as SVG.

python -m benchmarks.loss_curve runs/stage1 runs/stage2 --out docs/tiny_loss.svg
"""

import argparse
import json
from pathlib import Path

WIDTH, HEIGHT, LEFT, BOTTOM = 900, 320, 60, 40
COLOURS = {"loss": "#1f5fa8", "loss_mouth": "#b5482a"}


def main() -> None:
    """Read metrics.jsonl of each workdir and write one picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workdirs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    points, borders, start = {name: [] for name in COLOURS}, [], 0
    for workdir in args.workdirs:
        rows = _read(workdir / "metrics.jsonl")
        for row in rows:
            for name in COLOURS:
                points[name].append((start + row["step"], row[name]))
        start += rows[-1]["step"]
        borders.append((start, workdir.name))
        print(f"{workdir.name}: {rows[-1]['step']} steps, loss {rows[-1]['loss']:.4f}")
    args.out.write_text(_draw(points, borders))


def _read(path: Path) -> list[dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    by_step = {row["step"]: row for row in rows if "loss" in row}  # the later is valid
    return [by_step[step] for step in sorted(by_step)]


def _draw(points: dict[str, list], borders: list[tuple[int, str]]) -> str:
    """Return the SVG: step across, loss up from 0."""
    last = borders[-1][0]
    top = max(value for line in points.values() for _, value in line)

    def place(step: float, value: float) -> str:
        x = LEFT + step / last * (WIDTH - LEFT - 10)
        y = HEIGHT - BOTTOM - value / top * (HEIGHT - BOTTOM - 20)
        return f"{x:.1f},{y:.1f}"

    parts = []
    for index, (name, line) in enumerate(points.items()):
        path = " ".join(place(*point) for point in line)
        colour = COLOURS[name]
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
        parts.append(_text(WIDTH - 120, 30 + 18 * index, name, colour))
    for step, name in borders:
        x = float(place(step, 0).split(",")[0])
        line = f'x1="{x}" x2="{x}" y1="10" y2="{HEIGHT - BOTTOM}"'
        parts.append(f'<line {line} stroke="#bbb" stroke-dasharray="4 3"/>')
        parts.append(_text(x - 90, HEIGHT - 20, f"{name}: {step}"))
    for value in (0.0, top / 2, top):
        y = float(place(0, value).split(",")[1])
        parts.append(_text(8, y + 4, f"{value:.2f}"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12"><rect width="{WIDTH}" '
        f'height="{HEIGHT}" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _text(x: float, y: float, text: str, colour: str = "#333") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="{colour}">{text}</text>'


if __name__ == "__main__":
    main()
