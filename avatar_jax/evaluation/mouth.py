"""How far a mouth is open in any video, without weights: its dark inside is counted.

  opening(frame) = mean over the mouth box of sigmoid((threshold - luma) / softness)

Threshold and softness come from the clip's own mouth boxes, so that light and skin do
not matter. Designed on true clips of a real person at 64 px: there the count follows
the loudness of the speech at r = 0.62 and survives the codec at 0.96; counts by colour
(lips against teeth) lose to it because the codec keeps little colour.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from avatar_jax.media import faces
from avatar_jax.types import SAMPLES_PER_FRAME

SHAPE = (16, 24)  # rows and columns of a mouth cut-out

_ENLARGED = 256  # pixels; smaller frames are enlarged before a face is looked for
_LEAST_TRACKED = 0.5  # share of frames with a face
_INSIDE = np.s_[:, 4:15, 3:21]  # of a cut-out: without nostrils and cheeks
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # BT.601
_DARKEST = 0.01  # quantile of the luma that counts as the inside of a mouth
_DEPTH = 0.5  # threshold's place between the median and the darkest luma
_SOFTNESS = 0.12  # of the same distance
_DRIFT = 125  # frames, window of the running median taken as slow change of light
_QUIET = 2.2  # nepers under the loudest frames, 19 dB


def track_mouth(
    frames: UInt8[np.ndarray, "frames Y X 3"],
) -> Float[np.ndarray, "frames 4"] | None:
    """Return the mouth boxes of a face tracked in this very video; None: none found."""
    boxes = track_face(frames)
    return None if boxes is None else faces.mouth_boxes(boxes)


def track_face(
    frames: UInt8[np.ndarray, "frames Y X 3"],
) -> Float[np.ndarray, "frames 4"] | None:
    """Return the face boxes tracked in this very video; None: none found."""
    scale = max(1.0, _ENLARGED / max(frames.shape[1:3]))
    enlarged = (
        cv2.resize(f, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        for f in frames
    )
    boxes, found = faces.track_face(enlarged)
    return boxes / scale if found.mean() >= _LEAST_TRACKED else None


def measure_opening(
    frames: UInt8[np.ndarray, "frames Y X 3"],
    mouths: Float[np.ndarray, "frames 4"],
) -> Float[np.ndarray, " frames"]:
    """Return the dark share of each frame's mouth, without slow changes over a clip."""
    luma = (cut_mouths(frames, mouths).astype(np.float32) @ _LUMA)[_INSIDE]
    middle = np.median(luma)
    depth = max(float(middle - np.quantile(luma, _DARKEST)), 1.0)
    distance = (middle - _DEPTH * depth - luma) / (_SOFTNESS * depth)
    opening = (1 + np.tanh(distance / 2)).mean(axis=(1, 2)) / 2  # the sigmoid
    return opening - ndimage.median_filter(opening, _DRIFT, mode="nearest")


def cut_mouths(
    frames: UInt8[np.ndarray, "frames Y X 3"],
    mouths: Float[np.ndarray, "frames 4"],
) -> UInt8[np.ndarray, "frames rows columns 3"]:
    """Cut each frame's mouth box out, resampled to `SHAPE` about the exact box."""
    return np.stack([_cut(f, box) for f, box in zip(frames, mouths, strict=True)])


def measure_loudness(
    wave: Float[np.ndarray, " samples"], num_frames: int
) -> Float[np.ndarray, " frames"]:
    """Return each 25 fps frame's sound level in nepers, smoothed over a frame."""
    whole = np.zeros(num_frames * SAMPLES_PER_FRAME, np.float32)
    whole[: len(wave)] = wave[: len(whole)]
    power = (whole.reshape(num_frames, SAMPLES_PER_FRAME) ** 2).mean(axis=1)
    return ndimage.gaussian_filter1d(np.log(np.sqrt(power) + 1e-3), 1.0)


def find_spoken(
    wave: Float[np.ndarray, " samples"], num_frames: int
) -> Bool[np.ndarray, " frames"]:
    """Say which frames lie between the first and the last that are heard.

    Before and after it every mouth is shut: there two videos agree whatever is said.
    """
    level = measure_loudness(wave, num_frames)
    heard = np.flatnonzero(level > np.quantile(level, 0.98) - _QUIET)
    index = np.arange(num_frames)
    return (index >= heard[0]) & (index <= heard[-1])


def _cut(
    frame: UInt8[np.ndarray, "Y X 3"], box: Float[np.ndarray, " 4"]
) -> UInt8[np.ndarray, "rows columns 3"]:
    rows, columns = SHAPE
    x0, y0, x1, y1 = box
    across, down = (x1 - x0) / columns, (y1 - y0) / rows
    place = np.array(  # from the cut-out's pixel centres to the frame's
        [[across, 0, x0 + across / 2 - 0.5], [0, down, y0 + down / 2 - 0.5]], np.float32
    )
    return cv2.warpAffine(
        frame,
        place,
        (columns, rows),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
