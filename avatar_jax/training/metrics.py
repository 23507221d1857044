"""What a run tells its user: means, rates, a progress line, TensorBoard, previews."""

import io
import json
import math
import time
from fractions import Fraction
from pathlib import Path

import av
import jax
import numpy as np
import tensorboardX
from jaxtyping import UInt8
from tensorboardX.proto.summary_pb2 import Summary

from avatar_jax.objectives import base
from avatar_jax.types import FRAMES_PER_SECOND

# Dense bf16 peak per device in FLOP/s, by jax's device_kind; data sheets.
_PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


class NonFiniteLossError(RuntimeError):
    """A loss that is nan or infinite; the message names the step."""


class Meter:
    """Sum metrics between two reports and watch every loss.

    The device is one step ahead: `add` waits for the step before, so that a non-finite
    loss is found at once while the next batch is being fetched.
    """

    def __init__(self, *, num_params: int) -> None:
        self._num_params = num_params
        self._pending: tuple[int, base.Metrics] | None = None
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}
        self._start = time.perf_counter()
        self._steps = self._tokens = 0
        self._waited = 0.0

    def add(
        self, step: int, metrics: base.Metrics, *, tokens: int, waited: float
    ) -> None:
        """Take the metrics of a step that was just started.

        Args:
          tokens: of the global batch.
          waited: seconds spent waiting for the batch.

        Raises:
          NonFiniteLossError: the step before had one.
        """
        self.flush()
        self._pending = (step, metrics)
        self._steps += 1
        self._tokens += tokens
        self._waited += waited

    def flush(self) -> None:
        """Wait for the last step and check its loss."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        metrics = jax.device_get(metrics)
        if not math.isfinite(metrics["loss"].total):
            raise NonFiniteLossError(
                f"the loss is {float(metrics['loss'].total)} at step {step}; look at "
                "that batch or lower optimizer.learning_rate, then start again from "
                "the last checkpoint."
            )
        for name, mean in metrics.items():
            total, count = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (total + float(mean.total), count + float(mean.count))

    def report(self) -> dict[str, float]:
        """Return means and rates since the last report, and start anew."""
        self.flush()
        seconds = max(time.perf_counter() - self._start, 1e-9)
        report = {name: t / c for name, (t, c) in self._sums.items() if c}
        report["steps_per_second"] = self._steps / seconds
        report["tokens_per_second"] = self._tokens / seconds
        report["data_wait"] = self._waited / seconds
        if (peak := _find_peak()) is not None:
            # 6 N per token, forward and backward; attention and remat not counted.
            flops = 6 * self._num_params * self._tokens / seconds
            report["model_flop_utilisation"] = flops / (peak * jax.device_count())
        self._reset()
        return report


def _find_peak() -> float | None:
    kind = jax.devices()[0].device_kind
    matches = [name for name in _PEAK_FLOPS if kind.startswith(name)]
    return _PEAK_FLOPS[max(matches, key=len)] if matches else None


def format_progress(step: int, steps: int, report: dict[str, float]) -> str:
    """Format the progress line."""
    parts = [
        f"step {step}/{steps}",
        f"loss {report['loss']:.4f}",
        f"{report['steps_per_second']:.2f} steps/s",
        f"{report['tokens_per_second']:,.0f} tokens/s",
        f"data wait {report['data_wait']:.0%}",
    ]
    if "model_flop_utilisation" in report:
        parts.append(f"MFU {report['model_flop_utilisation']:.1%}")
    left = (steps - step) / report["steps_per_second"]
    parts.append(
        f"ETA {int(left // 3600)}:{int(left // 60 % 60):02}:{int(left % 60):02}"
    )
    return "  ".join(parts)


class Log:
    """Write scalars and videos: TensorBoard, `metrics.jsonl`, `previews/*.gif`."""

    def __init__(self, workdir: Path) -> None:
        self._workdir = workdir
        workdir.mkdir(parents=True, exist_ok=True)
        self._events = tensorboardX.SummaryWriter(str(workdir / "tensorboard"))
        self._lines = (workdir / "metrics.jsonl").open("a")

    def scalars(self, step: int, scalars: dict[str, float]) -> None:
        """Write one row; after a resume the later row of a step is the valid one."""
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)
        row = {"step": step} | {name: float(f"{v:.6g}") for name, v in scalars.items()}
        self._lines.write(json.dumps(row) + "\n")
        self._lines.flush()
        self._events.flush()

    def video(
        self, step: int, name: str, frames: UInt8[np.ndarray, "frames Y X 3"]
    ) -> None:
        """Write a preview, 25 fps."""
        gif = encode_gif(frames)
        path = self._workdir / "previews" / f"{name.replace('/', '_')}_{step:07}.gif"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gif)
        image = Summary.Image(
            height=frames.shape[1],
            width=frames.shape[2],
            colorspace=3,
            encoded_image_string=gif,
        )
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self._events.file_writer.add_summary(summary, step)
        self._events.flush()

    def close(self) -> None:
        """Flush and close all files."""
        self._events.close()
        self._lines.close()


def encode_gif(frames: UInt8[np.ndarray, "frames Y X 3"]) -> bytes:
    """Encode frames at 25 fps as an animated GIF with a palette of its own."""
    height, width = frames.shape[1:3]
    tick = Fraction(1, FRAMES_PER_SECOND)
    graph, source, sink = _palette_graph(width, height, tick)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="gif") as container:
        stream = container.add_stream("gif", rate=FRAMES_PER_SECOND)
        stream.width, stream.height, stream.pix_fmt = width, height, "pal8"
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = i, tick
            source.push(frame)
        source.push(None)  # the palette is known only after the last frame
        for _ in frames:
            container.mux(stream.encode(sink.pull()))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _palette_graph(width: int, height: int, tick: Fraction) -> tuple:
    graph = av.filter.Graph()
    pixels = av.VideoFormat("rgb24")
    source = graph.add_buffer(width=width, height=height, format=pixels, time_base=tick)
    split, make, use = (
        graph.add(name) for name in ("split", "palettegen", "paletteuse")
    )
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(make, 0, 0)
    split.link_to(use, 1, 0)
    make.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph, source, sink
