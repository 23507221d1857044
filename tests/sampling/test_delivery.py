"""From frames to a file; ~2 s on 2 cores."""

import av
import numpy as np
import pytest

from avatar_jax.media import decode
from avatar_jax.sampling import delivery
from avatar_jax.types import SAMPLES_PER_FRAME


def numbered(count: int) -> np.ndarray:
    return np.broadcast_to(
        np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 16, 16, 3)
    )


@pytest.mark.parametrize("fps", [10, 24, 25, 30, 50])
def test_a_new_rate_shows_the_frame_that_is_up(fps):
    frames = numbered(75)
    parts = [frames[:13], frames[13:14], frames[14:60], frames[60:]]
    shown = np.concatenate(list(delivery.resample_frames(parts, fps)))[:, 0, 0, 0]
    times = np.arange(75 * fps // 25) / fps
    assert shown.tolist() == np.floor(times * 25 + 1e-9).astype(int).tolist()


def test_a_video_is_marked_as_generated_and_as_long_as_its_frames(tmp_path):
    path = tmp_path / "a.mp4"
    runs = [numbered(30)[None, :13], numbered(30)[None, 13:]]
    wave = np.zeros(30 * SAMPLES_PER_FRAME, np.float32)
    delivered = delivery.Delivery(fps=50, size=32)
    delivery.write_avatar(path, runs, wave, delivery=delivered)
    with av.open(str(path)) as container:
        assert container.metadata["generated"] == "true"
        assert container.streams.video[0].average_rate == 50
        assert container.streams.video[0].width == 32
    assert len(decode.read_video(path).frames) == 30
