"""Write H.264 + AAC mp4 files frame by frame, and small mp4 clips in memory.

A file appears under its final name only when it is complete. Sound and pictures share
one clock from zero; the sound is cut, or continued with silence, to the frames written.
"""

import os
from collections.abc import Mapping
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from jaxtyping import Float, UInt8

from avatar_jax.types import FRAMES_PER_SECOND, SAMPLE_RATE, InputError

_SCALING = (
    Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
)
_BT709 = 1  # the same code for matrix, primaries and transfer in H.264
_LIMITED_RANGE = 1
_AUDIO_BIT_RATE = 96_000


class VideoWriter:
    """Stream frames into an mp4 that any player shows; use as a context manager.

    On an error inside the `with` block nothing is left behind; without one the file is
    renamed to `path`. Odd heights or widths are padded by one repeated row or column,
    because 4:2:0 pictures have even sides.

    Args:
      fps: frames per second, whole.
      audio: the whole 16 kHz mono track in [-1, 1]; None: no audio track.
      crf: x264 quality, lower is better; 18 is visually lossless.
      metadata: text kept in the container under any keys.
    """

    def __init__(
        self,
        path: str | Path,
        height: int,
        width: int,
        *,
        fps: int = FRAMES_PER_SECOND,
        audio: Float[np.ndarray, " samples"] | None = None,
        crf: int = 18,
        metadata: Mapping[str, str] | None = None,
    ):
        self._path = Path(path)
        self._partial = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        self._size = (height, width)
        self._fps, self._audio, self._crf = fps, audio, crf
        self._metadata = dict(metadata or {})
        self._frames = self._samples = 0

    def __enter__(self) -> "VideoWriter":
        try:
            self._partial.touch()
        except OSError as error:
            raise InputError(
                f"expected a folder to write {self._path.name} into, but "
                f"{self._path.parent} failed ({error.strerror}); create it or "
                "choose another"
            ) from error
        # Metadata under any key, and the index in front, so that a page can stream it.
        movflags = {"movflags": "use_metadata_tags+faststart"}
        self._container = av.open(
            str(self._partial), "w", format="mp4", options=movflags
        )
        self._container.metadata.update(self._metadata)
        height, width = (side + side % 2 for side in self._size)
        self._video = _add_video(
            self._container, height, width, self._fps, self._crf, pix_fmt="yuv420p"
        )
        self._reformatter = VideoReformatter()
        self._sound = None
        if self._audio is not None:
            self._sound = self._container.add_stream(
                "aac", rate=SAMPLE_RATE, layout="mono"
            )
            self._sound.bit_rate = _AUDIO_BIT_RATE
        return self

    def write(self, frames: UInt8[np.ndarray, "frames Y X 3"]) -> None:
        """Append RGB frames of the announced size and the sound that goes with them."""
        if frames.shape[1:3] != self._size:
            raise ValueError(
                f"expected frames of height, width {self._size}, got "
                f"{frames.shape[1:3]}; open another VideoWriter for another size"
            )
        for picture in frames:
            frame = _to_frame(picture, self._reformatter, "yuv420p")
            frame.pts, frame.time_base = self._frames, Fraction(1, self._fps)
            self._container.mux(self._video.encode(frame))
            self._frames += 1
            self._write_audio(until=self._frames * SAMPLE_RATE // self._fps)

    def _write_audio(self, *, until: int) -> None:
        if self._sound is None:
            return
        wave = np.zeros(until - self._samples, np.float32)
        known = self._audio[self._samples : until]
        wave[: len(known)] = np.clip(known, -1, 1)
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, self._samples
        frame.time_base = Fraction(1, SAMPLE_RATE)
        self._container.mux(self._sound.encode(frame))
        self._samples = until

    def __exit__(self, kind, value, traceback) -> None:
        try:
            if kind is None:
                self._finish()
            self._container.close()
            if kind is None:
                os.replace(self._partial, self._path)
        finally:
            self._partial.unlink(missing_ok=True)

    def _finish(self) -> None:
        if not self._frames:
            raise ValueError(f"expected frames for {self._path}, but none were written")
        self._container.mux(self._video.encode(None))
        if self._sound is not None:
            self._container.mux(self._sound.encode(None))


def write_video(
    path: str | Path,
    frames: UInt8[np.ndarray, "frames Y X 3"],
    audio: Float[np.ndarray, " samples"] | None = None,
) -> None:
    """Write all frames at 25 Hz as one mp4, with 16 kHz mono sound where given."""
    with VideoWriter(path, *frames.shape[1:3], audio=audio) as writer:
        writer.write(frames)


def encode_bytes(frames: UInt8[np.ndarray, "frames Y X 3"], crf: int = 12) -> bytes:
    """Encode frames at 25 Hz to a silent mp4 in memory, for records.

    Choice: 4:4:4 pictures, because at 64 pixels halved colour would lose the lips.
    """
    buffer, reformatter = BytesIO(), VideoReformatter()
    with av.open(buffer, "w", format="mp4") as container:
        height, width = frames.shape[1:3]
        stream = _add_video(
            container, height, width, FRAMES_PER_SECOND, crf, pix_fmt="yuv444p"
        )
        stream.codec_context.thread_count = 1  # small pictures, many processes
        for index, picture in enumerate(frames):
            frame = _to_frame(picture, reformatter, "yuv444p")
            frame.pts, frame.time_base = index, Fraction(1, FRAMES_PER_SECOND)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _add_video(container, height: int, width: int, fps: int, crf: int, *, pix_fmt: str):
    stream = container.add_stream("libx264", rate=fps)
    stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
    stream.options = {"crf": str(crf), "preset": "veryfast"}
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED_RANGE
    return stream


def _to_frame(
    picture: UInt8[np.ndarray, "Y X 3"], reformatter: VideoReformatter, pix_fmt: str
) -> av.VideoFrame:
    if pix_fmt == "yuv420p":
        height, width = picture.shape[:2]
        picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
    rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return reformatter.reformat(
        rgb,
        format=pix_fmt,
        dst_colorspace=Colorspace.ITU709,
        interpolation=_SCALING,
        threads=1,
    )
