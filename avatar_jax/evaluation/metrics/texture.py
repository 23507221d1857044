"""How crisp a video is and how much it moves, without weights.

Both are energies on luma in [0, 1]; their ratio to the codec's own round trip of the
truth is 1 where generated video is as crisp, and moves as much, as the codec allows.
"""

import numpy as np
from jaxtyping import Float, UInt8

_LUMA = np.array([0.299, 0.587, 0.114], np.float32) / 255  # BT.601


def sharpness(frames: UInt8[np.ndarray, "frames Y X 3"]) -> float:
    """Return the mean magnitude of the spatial gradient, per pixel."""
    luma = _luma(frames)
    rows = np.diff(luma, axis=1)[:, :, :-1]
    columns = np.diff(luma, axis=2)[:, :-1]
    return float(np.sqrt(rows**2 + columns**2).mean())


def motion(frames: UInt8[np.ndarray, "frames Y X 3"]) -> float:
    """Return the mean absolute change from frame to frame; it sees flicker too."""
    return float(np.abs(np.diff(_luma(frames), axis=0)).mean())


def _luma(frames: UInt8[np.ndarray, "frames Y X 3"]) -> Float[np.ndarray, "frames Y X"]:
    return frames.astype(np.float32) @ _LUMA
