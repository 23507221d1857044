"""Peak signal-to-noise ratio."""

import numpy as np
from jaxtyping import UInt8


def psnr(
    frames: UInt8[np.ndarray, "frames Y X 3"],
    truth: UInt8[np.ndarray, "frames Y X 3"],
) -> float:
    """Return the PSNR in dB over all pixels and channels; 100 where they are equal."""
    error = np.mean((frames.astype(np.float32) - truth.astype(np.float32)) ** 2)
    return float(min(10 * np.log10(255**2 / max(error, 1e-12)), 100.0))
