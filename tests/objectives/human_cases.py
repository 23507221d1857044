"""Clips with a face somewhere, and judges of one weight each."""

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.models import codec
from avatar_jax.objectives import human_aware
from avatar_jax.types import count_frames

B, F, H, W, C, AUDIO = 4, 5, 10, 12, 16, 160
CODEC = codec.DCTCodec(C)
TIMES = np.array([0.1, 0.7, 0.3, 0.45], np.float32)
# Rows and columns of the 2x2 cells of each clip's face, and the first latent decoded.
FACES = ((4, 5), (2, 2), (0, 10), (8, 3))
FIRST = np.array([2, 3, 2, 3])
# Upper left cells of crops of 6 and views of 8 around them, inside 10 x 12.
CROPS = ((2, 3), (0, 0), (0, 6), (4, 1))
VIEWS = ((1, 2), (0, 0), (0, 4), (2, 0))
CONFIG = human_aware.HumanAwareConfig(
    identity=0.5,
    motion=0.25,
    sync=2.0,
    perceptual=4.0,
    clips=B,
    ramp_steps=100,
    largest_time=0.5,
    view=8,
    crop=6,
)
NAMES = ("identity", "motion", "sync", "perceptual")


def make_faces(seed=0, error=1.0, **changes):
    rng = np.random.default_rng(seed)

    def draw(*shape, scale=1.0):
        return (scale * rng.standard_normal((B, *shape))).astype(np.float32)

    x, target = draw(F, H, W, C, scale=0.1), draw(F, H, W, C)
    t = TIMES[:, None, None, None, None]
    face = np.zeros((B, F, H, W), np.float32)
    for i, (row, column) in enumerate(FACES):
        face[i, :, row : row + 2, column : column + 2] = 1
    faces = human_aware.Faces(
        noisy=x + t * target,
        velocity=target + error * draw(F, H, W, C),
        target=target,
        t=TIMES,
        speech=draw(count_frames(F), AUDIO),
        speech_valid=np.array([True, True, False, True]),
        mouth_mask=rng.random((B, F, H, W)).astype(np.float32),
        face_mask=face,
        first=FIRST,
        judged=np.ones(B, bool),  # `compare` of the tests chooses
    )
    return jax.tree.map(jnp.asarray, faces.replace(**changes))


def make_simple_params():
    return {kind: {"w": np.full((), 1.5, np.float32)} for kind in human_aware.KINDS}
