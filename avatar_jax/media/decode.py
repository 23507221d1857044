"""Decode real video and sound to the fixed rates: 25 frames/s RGB and 16 kHz mono.

Frame j is the source frame whose time stamp is nearest to j/25 s after the first one,
so a variable frame rate, or any other rate, keeps its timing. Sample k is at k/16000 s
on the same clock: sound that starts late is led by silence, sound that starts early is
cut. Rotation metadata and non-square pixels are applied.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import soxr
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import Float, Float32, UInt8

from avatar_jax.types import FRAMES_PER_SECOND, SAMPLE_RATE, InputError

_SCALING = (
    Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
)
_LARGEST_AUDIO_SLIP = 0.04  # seconds between time stamp and samples before a repair
_LARGEST_LOSS = Fraction(1, 4)  # seconds missing at the end that are put up with

Source = str | Path | BytesIO


@dataclass(frozen=True)
class Video:
    """A decoded clip; `fps` and `duration` (seconds) are those of the file."""

    frames: UInt8[np.ndarray, "frames Y X 3"]
    audio: Float32[np.ndarray, " samples"] | None
    fps: float
    duration: float


def read_video(path: str | Path) -> Video:
    """Decode a whole file; `audio` is None where the file has no sound.

    Raises InputError for a missing or unreadable file and one without pictures.
    """
    with _open(path) as container:
        stream = _video_stream(container, path)
        fps = float(stream.average_rate or FRAMES_PER_SECOND)
    frames = np.stack(list(iter_frames(path)))
    return Video(frames, read_soundtrack(path), fps, len(frames) / FRAMES_PER_SECOND)


def read_soundtrack(path: str | Path) -> Float32[np.ndarray, " samples"] | None:
    """Decode a video's sound on the clock of its pictures; None where there is none.

    Sample 0 belongs to the start of frame 0. Raises InputError like `read_video`.
    """
    with _open(path) as container:
        stream = _video_stream(container, path)
        start = _start_time(stream)
        has_audio = bool(container.streams.audio)
    audio = _decode_audio(path, start=start) if has_audio else np.zeros(0)
    return audio if audio.size else None


def read_audio(path: str | Path) -> Float32[np.ndarray, " samples"]:
    """Decode the first audio track to 16 kHz mono in [-1, 1].

    Raises InputError for a missing or unreadable file, one without an audio track, and
    an empty track.
    """
    with _open(path) as container:
        if not container.streams.audio:
            raise InputError(
                f"expected sound, but {path} has no audio track; "
                "give a file with speech (wav, mp3, m4a, mp4, ...)"
            )
    wave = _decode_audio(path, start=None)
    if not wave.size:
        raise InputError(
            f"expected sound, but the audio track of {path} is empty; "
            "give a file with speech"
        )
    return wave


def decode_bytes(mp4: bytes) -> UInt8[np.ndarray, "frames Y X 3"]:
    """Decode a video held in memory, as records store it, to frames at 25 Hz."""
    return np.stack(list(iter_frames(BytesIO(mp4))))


def iter_frames(path: Source) -> Iterator[UInt8[np.ndarray, "Y X 3"]]:
    """Yield RGB frames at 25 Hz one after the other; memory does not grow.

    Raises InputError for a missing or unreadable file and one without pictures.
    """
    step = Fraction(1, FRAMES_PER_SECOND)
    start = previous = None
    emitted = 0
    for time, end, frame in _timed_frames(path):
        if previous is None:
            start = time
        else:
            middle = (previous[0] + time) / 2  # `previous` is nearest up to here
            count = math.floor((middle - start) / step) + 1
            yield from _repeat(previous[2], count - emitted)
            emitted = max(emitted, count)
        previous = time, end, frame
    if previous is None:
        raise InputError(
            f"expected pictures, but none of {_name(path)} could be decoded; "
            "give another file"
        )
    count = max(1, round((previous[1] - start) / step))
    yield from _repeat(previous[2], count - emitted)


def _repeat(convert, times: int) -> Iterator[UInt8[np.ndarray, "Y X 3"]]:
    """Convert a frame once, and only if it is shown at least once."""
    if times > 0:
        picture = convert()
        for _ in range(times):
            yield picture


def _timed_frames(path: Source):
    """Yield (time, end, function giving the upright RGB picture), times in seconds."""
    with _open(path) as container:
        stream = _video_stream(container, path)
        stream.thread_type = "AUTO"
        if isinstance(path, BytesIO):  # small: threads would cost more than they give
            stream.codec_context.thread_count = 1
        step = 1 / Fraction(stream.average_rate or FRAMES_PER_SECOND)
        reformatter = VideoReformatter()
        last = end = None
        for frame in container.decode(stream):
            time = frame.pts * frame.time_base if frame.pts is not None else end
            time = Fraction(time or 0)
            length = frame.duration * frame.time_base if frame.duration else step
            if last is not None and time < last:
                continue  # a time stamp that runs backwards: the frame is never shown
            last, end = time, time + length
            yield time, end, partial(_convert, frame, stream, reformatter)
        if end is not None and stream.duration:
            _check_complete(end - _start_time(stream), stream, path)


def _convert(frame, stream, reformatter) -> UInt8[np.ndarray, "Y X 3"]:
    """Make the RGB picture: square pixels, rotation applied."""
    aspect = stream.sample_aspect_ratio or 1
    rgb = reformatter.reformat(
        frame,
        format="rgb24",
        width=max(1, round(frame.width * aspect)),
        interpolation=_SCALING,
        threads=1,
    )
    return rotate(rgb.to_ndarray(), frame.rotation)


def rotate(
    picture: UInt8[np.ndarray, "Y X 3"], degrees: int
) -> UInt8[np.ndarray, "Y2 X2 3"]:
    """Turn a picture counter-clockwise by the nearest multiple of 90 degrees."""
    return np.ascontiguousarray(np.rot90(picture, round(degrees / 90)))


def _decode_audio(path: Source, *, start: Fraction | None):
    """Decode the first audio track from `start` (s) on; None: from its beginning."""
    pieces, written, rate = [np.zeros(0, np.float32)], 0, SAMPLE_RATE
    mixer = av.AudioResampler(format="fltp")  # to float only
    with _open(path) as container:
        for frame in container.decode(container.streams.audio[0]):
            rate, time = frame.sample_rate, frame.pts and frame.pts * frame.time_base
            start = (time or Fraction(0)) if start is None else start
            wave = np.concatenate([f.to_ndarray() for f in mixer.resample(frame)], 1)
            wave = wave.mean(0)
            if time is not None:
                slip = round((time - start) * rate) - written
                # Small slips are rounding; before the first sample none is allowed.
                if not written or abs(slip) > _LARGEST_AUDIO_SLIP * rate:
                    wave = _shift(wave, slip)
            pieces.append(wave)
            written += len(wave)
        stream = container.streams.audio[0]
        if written and stream.duration:
            end = (time or start) + Fraction(len(wave), rate)
            _check_complete(end - _start_time(stream), stream, path)
    wave = soxr.resample(np.concatenate(pieces), rate, SAMPLE_RATE)
    return np.clip(wave, -1, 1).astype(np.float32)


def _shift(wave: Float[np.ndarray, " samples"], slip: int):
    """Lead with `slip` samples of silence; a negative slip cuts the start instead."""
    if slip < 0:
        return wave[-slip:]
    return np.concatenate([np.zeros(slip, wave.dtype), wave])


def _video_stream(container, path: Source):
    if not container.streams.video:
        raise InputError(
            f"expected a video, but {_name(path)} has no video track; "
            "give a file with pictures"
        )
    return container.streams.video[0]


def _start_time(stream) -> Fraction:
    return Fraction(stream.start_time or 0) * (stream.time_base or 1)


def _check_complete(decoded: Fraction, stream, path: Source) -> None:
    """Refuse a file that was cut off: its index promises more than it holds."""
    promised = stream.duration * stream.time_base
    if promised - decoded > max(_LARGEST_LOSS, promised / 10):
        raise InputError(
            f"expected {float(promised):.1f} s of {stream.type}, but only "
            f"{float(decoded):.1f} s of {_name(path)} can be decoded; "
            "copy it again or re-encode it"
        )


def _name(path: Source) -> str:
    return "the clip in memory" if isinstance(path, BytesIO) else str(path)


@contextmanager
def _open(path: Source):
    """Open a container; every failure to open or decode becomes one InputError."""
    if not isinstance(path, BytesIO) and not Path(path).is_file():
        raise InputError(f"expected a media file, but {path} does not exist")
    try:
        with av.open(path if isinstance(path, BytesIO) else str(path)) as container:
            yield container
    except (av.FFmpegError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"expected a readable media file, but {_name(path)} failed "
            f"({reason}); give another file or re-encode it"
        ) from error
