"""What TAVR's protocol does to its inputs, where it differs from ours.

The rest are settings (`configs/tavr.py`): chunks of 21 latents, 19 of them new, UniPC,
three passes, the person blanked in the still, one reference segment of 20 frames.
"""

import jax.numpy as jnp
import numpy as np
from einops import reduce
from jaxtyping import Array, Bool, Float

from avatar_jax.sampling import video
from avatar_jax.types import FRAMES_PER_LATENT, Reference

CANVAS_MARGIN = 4  # latents past the speech


def make_plan(num_frames: int, chunk_latents: int) -> video.Plan:
    """Cut a speech of `num_frames` (25 fps) into chunks on TAVR's canvas."""
    return video.Plan(num_frames, chunk_latents, margin=CANVAS_MARGIN)


def background_patches(
    foreground: Float[np.ndarray, "B H W"], patch: int
) -> Bool[np.ndarray, "B h w"]:
    """Say which patches of the still show background in any of their latent cells.

    Args:
      foreground: 0 where a latent cell shows no person.
      patch: side of a patch, cells.
    """
    return reduce(
        foreground == 0, "B (h p) (w q) -> B h w", "max", p=patch, q=patch
    ).astype(bool)


def hold_last(
    speech: Float[np.ndarray, "B rows Da"], plan: video.Plan
) -> Float[np.ndarray, "B frames Da"]:
    """Repeat the last row of a driving track that ends before the last chunk does."""
    missing = max(0, plan.padded_frames - speech.shape[1])
    return np.pad(speech, ((0, 0), (0, missing), (0, 0)), mode="edge")


def drop_unmatched_speech(reference: Reference) -> Reference:
    """Leave out reference speech that has not exactly four rows for each latent."""
    rows = FRAMES_PER_LATENT * reference.latents.shape[1]
    if reference.audio is None or reference.audio.shape[1] == rows:
        return reference
    return reference.replace(audio=None, audio_valid=None)


def reference_window(clip_latents: int, num_chunks: int, length: int) -> slice:
    """Choose the latents of the person's clip that all chunks read.

    The clip is spread over the chunks; the window lies in the middle of the first
    stride, or at the start of the clip where there is one chunk or no such room.
    """
    stride = (clip_latents - length) // num_chunks if num_chunks > 1 else 0
    start = max(0, stride // 2 - length // 2)
    return slice(start, min(start + length, clip_latents))


def make_reference(
    latents: Float[Array, "B F H W C"],
    faces: Bool[Array, "B F h w"],
    audio: Float[Array, "B rows Dr"] | None,
) -> Reference:
    """Make one segment of a window of the person's clip.

    Args:
      faces: patches that show the face.
      audio: the clip's own speech; None: it has none.
    """
    ids = jnp.zeros(latents.shape[:2], jnp.int32)
    return drop_unmatched_speech(Reference(latents, faces, ids, audio=audio))
