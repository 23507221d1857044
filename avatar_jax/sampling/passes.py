"""What each guidance pass is told: what all chunks share, and what one adds to it.

A reference is run once for each distinct condition of it, and all steps and all chunks
read what that leaves: once for the full and the negative pass, once more without its
speech, once more without its codes.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from avatar_jax.models import tokens
from avatar_jax.sampling import chunk
from avatar_jax.types import Conditions, Leaf, Reference, ReferenceCache, VideoMotion


def share(
    model: nn.Module,
    params: dict,
    told: Conditions,
    *,
    negative_text: Leaf,
    settings: chunk.Settings,
) -> chunk.Passes:
    """Make the conditions that no chunk changes, with one reference cache each.

    Args:
      told: what all chunks share, its reference a `Reference` or None.
      negative_text: B L Dt; None: the empty prompt.
    """
    null_text, reference = told.null_text, told.reference

    def cache(reference: Reference) -> ReferenceCache:
        return chunk.cache_reference(model, params, reference, null_text)

    if reference is not None:
        rows = tokens.choose_capacity(reference, model.cfg.patch)
        reference = reference.replace(capacity=rows)
    full = told.replace(reference=None if reference is None else cache(reference))

    def drop(name: str) -> Conditions:
        nothing = {name: jnp.zeros((null_text.shape[0],), bool)}
        dropped = full.replace(**nothing)
        if reference is not None:
            without = cache(reference.replace(**nothing))
            dropped = dropped.replace(reference=without)
        return dropped

    without_audio = negative = without_motion = None
    if settings.scales.audio != 1:
        without_audio = drop("audio_valid")
    if settings.scales.motion != 1:
        without_motion = drop("motion_valid")
    if settings.scales.text != 1:
        negative = full.replace(
            text=null_text if negative_text is None else jnp.asarray(negative_text)
        )
    return chunk.Passes(full, without_audio, negative, without_motion)


def place(
    passes: chunk.Passes,
    *,
    audio: Float[Array, "B frames Da"],
    still: Float[Array, "B 1 H W C"],
    still_valid: Bool[Array, "B h w"],
    prefix: VideoMotion,
    prefix_valid: Bool[Array, " B"],
) -> chunk.Passes:
    """Add what one chunk is told to the conditions of every pass."""
    return jax.tree.map(
        lambda told: told.replace(
            audio=audio,
            still=still,
            still_valid=still_valid,
            prefix=prefix.latents,
            prefix_motion=prefix.motion,
            prefix_valid=prefix_valid,
        ),
        passes,
        is_leaf=lambda leaf: isinstance(leaf, Conditions),
    )
