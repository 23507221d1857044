"""Decoding: rotation, rates, sound on the picture's clock, errors. ~2 s on 2 cores."""

import wave
from fractions import Fraction

import av
import numpy as np
import pytest

from avatar_jax.media import decode, encode
from avatar_jax.types import InputError


def write_file(path, pictures, *, times=None, rate=25, rotation=0, sound=None):
    """Write one grey level per picture at given times (s), sound from time 0."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "5", "bf": "0"}
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        if sound is not None:
            track = container.add_stream("aac", rate=48000, layout="mono")
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            time = times[index] if times is not None else index / rate
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(
                sound[None], format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts = 48000, 0
            container.mux(track.encode(frame))
            container.mux(track.encode(None))


def flat(levels, height=32, width=48):
    levels = np.asarray(levels, np.uint8)[:, None, None, None]
    return np.broadcast_to(levels, (len(levels), height, width, 3)).copy()


def write_sound(path, samples, *, rate=16000, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.repeat(samples, channels).tobytes())


def test_rotation_metadata_turns_the_picture_upright(tmp_path):
    if not hasattr(av.video.stream.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write a display matrix")
    pictures = flat([60] * 5)
    pictures[:, :16, :24] = 220  # bright top left corner
    for degrees, corner in ((90, (-1, 0)), (-90, (0, -1)), (180, (-1, -1))):
        path = tmp_path / f"turned{degrees}.mp4"
        write_file(path, pictures, rotation=degrees)
        frames = decode.read_video(path).frames
        assert frames.shape[1:3] == ((32, 48) if degrees == 180 else (48, 32))
        bright = frames[0, :, :, 0] > 150
        assert bright[corner] and bright.mean() == pytest.approx(0.25, abs=0.03)


def test_variable_rate_becomes_25_frames_by_the_nearest_time_stamp(tmp_path):
    times = np.array([0, 0.04, 0.05, 0.13, 0.30, 0.40])
    levels = np.array([20, 60, 100, 140, 180, 220])
    write_file(tmp_path / "vfr.mkv", flat(levels), times=times)
    frames = decode.read_video(tmp_path / "vfr.mkv").frames
    assert abs(len(frames) - 11) <= 1  # 0.40 s and one frame more
    wanted = [levels[np.abs(times - j / 25).argmin()] for j in range(10)]
    seen = frames[:10].mean((1, 2, 3))
    np.testing.assert_allclose(seen, wanted, atol=4)


@pytest.mark.parametrize("rate", [24, 30, 50])
def test_other_rates_keep_their_duration(tmp_path, rate):
    write_file(tmp_path / "a.mp4", flat(np.arange(2 * rate)), rate=rate)
    video = decode.read_video(tmp_path / "a.mp4")
    assert len(video.frames) == 50 and abs(video.fps - rate) < 0.1
    seen = video.frames.mean((1, 2, 3))
    np.testing.assert_allclose(seen, np.arange(50) * rate / 25, atol=3)


def test_sound_keeps_its_place_on_the_clock_of_the_pictures(tmp_path):
    sound = np.zeros(48000, np.float32)
    sound[24000:25000] = np.sin(np.arange(1000))  # from 0.5 s
    late = np.arange(20) / 25 + 0.2  # the first picture is shown at 0.2 s
    for name, times, wanted in (("a.mkv", None, 0.5), ("b.mkv", late, 0.3)):
        write_file(tmp_path / name, flat(np.arange(20)), times=times, sound=sound)
        heard = decode.read_video(tmp_path / name).audio
        assert np.argmax(np.abs(heard) > 0.3) / 16000 == pytest.approx(wanted, abs=0.02)


def test_stereo_at_44100_becomes_16_khz_mono(tmp_path):
    tone = np.sin(2 * np.pi * 440 * np.arange(44100) / 44100)
    write_sound(
        tmp_path / "a.wav", (tone * 16000).astype(np.int16), rate=44100, channels=2
    )
    heard = decode.read_audio(tmp_path / "a.wav")
    assert heard.dtype == np.float32 and abs(len(heard) - 16000) <= 2
    wanted = 16000 / 32768 * np.sin(2 * np.pi * 440 * np.arange(len(heard)) / 16000)
    np.testing.assert_allclose(heard[500:-500], wanted[500:-500], atol=0.01)


def test_memory_clip_decodes_to_the_frames_it_was_made_of():
    y, x = np.mgrid[:40, :56]
    moving = [128 + 80 * np.sin((x + 2 * j) / 9) * np.cos(y / 7) for j in range(13)]
    frames = np.stack([np.stack([m, 255 - m, 0.5 * m], -1) for m in moving])
    frames = frames.astype(np.uint8)
    back = decode.decode_bytes(encode.encode_bytes(frames))
    assert back.shape == frames.shape
    error = np.mean((back.astype(float) - frames) ** 2)
    assert 10 * np.log10(255**2 / error) > 36


def test_bad_files_are_named_in_one_line(tmp_path):
    (tmp_path / "text.mp4").write_bytes(b"this is no video" * 50)
    write_file(tmp_path / "whole.mp4", flat(range(20)))
    whole = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("missing.mp4", "text.mp4", "half.mp4", "empty.mp4"):
        for read in (decode.read_video, decode.read_audio):
            with pytest.raises(InputError, match=name) as caught:
                read(tmp_path / name)
            assert "\n" not in str(caught.value)


def test_cut_off_file_is_refused_although_its_index_is_whole(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 255, (50, 32, 48, 3), np.uint8)
    encode.write_video(tmp_path / "a.mp4", pictures)  # the index is in front
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="expected 2.0 s.*cut.mp4"):
        decode.read_video(tmp_path / "cut.mp4")


def test_cut_off_sound_is_refused_although_its_index_is_whole(tmp_path):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (100, 32, 48, 3), np.uint8)
    wave = rng.normal(scale=0.2, size=64000).astype(np.float32)
    encode.write_video(tmp_path / "a.mp4", pictures, wave)
    whole = (tmp_path / "a.mp4").read_bytes()
    reasons = []
    for share in (0.3, 0.45, 0.6, 0.75):
        (tmp_path / "cut.mp4").write_bytes(whole[: round(share * len(whole))])
        with pytest.raises(InputError, match="cut.mp4") as caught:
            decode.read_audio(tmp_path / "cut.mp4")
        reasons.append(str(caught.value))
    assert any("expected 4.0 s of audio, but only" in reason for reason in reasons)


def test_missing_tracks_are_named(tmp_path):
    write_file(tmp_path / "silent.mp4", flat(range(20)))
    with pytest.raises(InputError, match="no audio track"):
        decode.read_audio(tmp_path / "silent.mp4")
    assert decode.read_video(tmp_path / "silent.mp4").audio is None
    write_sound(tmp_path / "sound.wav", np.zeros(8000, np.int16))
    with pytest.raises(InputError, match="no video track"):
        decode.read_video(tmp_path / "sound.wav")
    write_sound(tmp_path / "empty.wav", np.zeros(0, np.int16))
    with pytest.raises(InputError, match="empty"):
        decode.read_audio(tmp_path / "empty.wav")
