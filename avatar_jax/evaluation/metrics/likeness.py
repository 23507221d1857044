"""How alike two people look, without weights: colours of a face's parts, its geometry.

  (1) colour    mean and standard deviation of L*, a*, b* in each of `PARTS`, over all
                frames: 6 numbers a part
  (2) geometry  the grey face averaged over frames, of mean 0 and length 1
  (3) distance^2 = mean (colour - colour')^2 / UNIT^2 + (1 - r) / APART

r is the correlation of two geometries. `describe` scales both so that eq. 3 is the
squared length of a difference. All places are relative to the face box: where a head is
in the picture, and how large, does not matter. Light does: this tells the people of a
few clips apart, it does not recognise anybody.

Choice: all constants are ours, round numbers that no paper gives and no data fixed: the
few people there are to fit them to are those to be told apart.
"""

import cv2
import numpy as np
from jaxtyping import Float, UInt8

# Of a face box, in its sides: what is cut out, x0, y0, x1, y1. Choice: hair and chin
# with little of the room beside them.
_CUT = np.array([-0.1, -0.35, 1.1, 1.05])
# Pixels of a face box in a cut-out. Choice: below the 36 or so of a standard portrait
# of 64 pixels, so that nothing is magnified.
_SIDE = 30
_ROWS, _COLUMNS = 42, 36  # of a cut-out: `_CUT` at `_SIDE`
# Rows and columns of a cut-out. Choice: where colours differ between people; the sides
# of each part are left out, where the room or the neck may show.
PARTS = {
    "hair and forehead": np.s_[0:14, 3:33],
    "eyes": np.s_[14:25, 6:30],
    "cheeks": np.s_[25:31, 6:30],
    "mouth and chin": np.s_[31:42, 9:27],
}
# Rows and columns of the geometry. Choice: cells of 3 x 3 pixels, so that boxes that
# are a pixel off change little.
_GRID = (14, 12)
# Choice: with these two a plain difference of either kind comes to about 1, so that
# neither colour nor geometry decides alone.
UNIT = 10.0  # of L*, a*, b*: a plain difference of skin, hair or light
APART = 0.2  # of 1 - r: a plain difference of geometry


def describe(
    frames: UInt8[np.ndarray, "frames Y X 3"],
    boxes: Float[np.ndarray, "frames 4"],
) -> Float[np.ndarray, " D"]:
    """Describe whom a video shows; `boxes` are of the face, pixels.

    Descriptions may be averaged: that of a person is the mean over their clips.

    Raises:
      ValueError: no frame, or not one box for each.
    """
    cuts = np.stack([_cut(f, box) for f, box in zip(frames, boxes, strict=True)])
    numbers = []
    for part in PARTS.values():
        pixels = cuts[:, *part].reshape(-1, 3)
        numbers += [pixels.mean(axis=0), pixels.std(axis=0)]
    colour = np.concatenate(numbers)
    grey = cv2.resize(
        cuts[..., 0].mean(axis=0), _GRID[::-1], interpolation=cv2.INTER_AREA
    )
    grey = (grey - grey.mean()).ravel()
    geometry = grey / max(float(np.linalg.norm(grey)), 1e-6)
    return np.concatenate(
        # |g - g'|^2 = 2 (1 - r)
        [colour / (UNIT * np.sqrt(colour.size)), geometry / np.sqrt(2 * APART)]
    )


def distances(
    videos: Float[np.ndarray, "videos D"], people: Float[np.ndarray, "people D"]
) -> Float[np.ndarray, "videos people"]:
    """Return eq. 3's root between every video and every person."""
    return np.linalg.norm(videos[:, None] - people[None], axis=-1)


def _cut(
    frame: UInt8[np.ndarray, "Y X 3"], box: Float[np.ndarray, " 4"]
) -> Float[np.ndarray, "rows columns 3"]:
    """Cut a face out, resampled to one size, as L*, a*, b*."""
    scale = (box[2:] - box[:2]) / _SIDE
    corner = box[:2] + _CUT[:2] * (box[2:] - box[:2]) + scale / 2 - 0.5
    place = np.array([[scale[0], 0, corner[0]], [0, scale[1], corner[1]]], np.float32)
    picture = cv2.warpAffine(
        frame,
        place,
        (_COLUMNS, _ROWS),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
