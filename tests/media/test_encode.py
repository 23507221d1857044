"""Writing mp4: sync of flash and beep, colours, atomic files. ~2 s on 2 cores."""

import av
import numpy as np
import pytest

from avatar_jax.media import decode, encode
from avatar_jax.types import InputError


def test_flash_and_beep_stay_together_within_one_frame(tmp_path):
    frames = np.full((75, 34, 46, 3), 20, np.uint8)
    audio = np.zeros(75 * 640, np.float32)
    for j in (11, 50):
        frames[j : j + 3] = 230
        audio[j * 640 : (j + 3) * 640] = np.sin(np.arange(1920) * 0.4)
    with encode.VideoWriter(tmp_path / "a.mp4", 34, 46, audio=audio) as writer:
        for start in range(0, 75, 7):  # streamed in uneven pieces
            writer.write(frames[start : start + 7])
    video = decode.read_video(tmp_path / "a.mp4")
    assert video.frames.shape == frames.shape
    assert abs(len(video.audio) - len(audio)) <= 1100  # AAC pads its last 1024
    flashes = np.flatnonzero(np.diff(video.frames.mean((1, 2, 3)) > 120)) + 1
    loud = np.abs(video.audio).reshape(-1)[: 75 * 640].reshape(75, 640).max(1) > 0.4
    beeps = np.flatnonzero(np.diff(loud)) + 1
    np.testing.assert_array_equal(flashes, [11, 14, 50, 53])
    assert np.abs(beeps - flashes).max() <= 1
    start = np.argmax(np.abs(video.audio) > 0.4)
    assert abs(start - 11 * 640) < 320


def test_streams_are_h264_and_aac_and_keep_the_metadata(tmp_path):
    path, frames = tmp_path / "a.mp4", np.zeros((10, 32, 32, 3), np.uint8)
    made = {"comment": "generated", "avatar_jax_seed": "7"}
    audio = np.zeros(5000, np.float32)
    with encode.VideoWriter(path, 32, 32, audio=audio, metadata=made) as writer:
        writer.write(frames)
    with av.open(str(path)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        assert video.codec_context.name == "h264" and sound.codec_context.name == "aac"
        assert video.codec_context.pix_fmt == "yuv420p" and video.average_rate == 25
        assert made.items() <= container.metadata.items()
        for stream in (video, sound):  # sound is continued to the end of the pictures
            seconds = float(stream.duration * stream.time_base)
            assert seconds == pytest.approx(0.4, abs=0.04)


def test_colours_survive_within_a_few_levels(tmp_path):
    colours = [(200, 40, 40), (40, 170, 60), (30, 60, 190), (250, 250, 250), (2, 2, 2)]
    frames = np.array(colours, np.uint8)[:, None, None].repeat(32, 1).repeat(32, 2)
    encode.write_video(tmp_path / "a.mp4", frames)
    for back in (
        decode.read_video(tmp_path / "a.mp4").frames,
        decode.decode_bytes(encode.encode_bytes(frames)),
    ):
        np.testing.assert_allclose(back.mean((1, 2)), colours, atol=4)


def test_odd_sizes_are_padded_to_even(tmp_path):
    frames = np.random.default_rng(0).integers(0, 9, (3, 33, 47, 3), np.uint8)
    encode.write_video(tmp_path / "a.mp4", frames)
    assert decode.read_video(tmp_path / "a.mp4").frames.shape == (3, 34, 48, 3)
    assert decode.decode_bytes(encode.encode_bytes(frames)).shape == frames.shape


def test_nothing_is_left_after_an_error(tmp_path):
    old = np.full((2, 32, 32, 3), 90, np.uint8)
    encode.write_video(tmp_path / "a.mp4", old)
    before = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(RuntimeError):
        with encode.VideoWriter(tmp_path / "a.mp4", 32, 32) as writer:
            writer.write(old)
            assert (tmp_path / "a.mp4").read_bytes() == before
            raise RuntimeError
    with pytest.raises(ValueError, match="none were written"):
        with encode.VideoWriter(tmp_path / "b.mp4", 32, 32):
            pass
    with pytest.raises(ValueError, match="another size"):
        with encode.VideoWriter(tmp_path / "c.mp4", 32, 34) as writer:
            writer.write(old)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == before


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        encode.write_video(tmp_path / "x" / "a.mp4", np.zeros((1, 32, 32, 3), np.uint8))
