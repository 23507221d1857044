"""TAVR as it was published: what its weights are, and its protocol of sampling.

  python -m avatar_jax.sample --config configs/tavr.py --weights weights/tavr \\
      --reference me.mp4 --audio speech.wav --still scene.png \\
      --prompt "A person talks to the camera." --i-have-consent --out avatar.mp4

`weights/` holds what `python -m avatar_jax.convert` made of the published files:
`tavr`, `wan-vae`, `umt5` (with tokenizer.json) and `wav2vec2`.

Hardware: 18.9 B parameters, 38 GB in bfloat16. Three passes of the network for each of
24 steps; 76 new frames (3 s) in each chunk but the first.
"""

import ml_collections

from avatar_jax.models import sizes
from avatar_jax.sampling import pretrained


def get_config() -> ml_collections.ConfigDict:
    """Return the card of these weights as plain values."""
    card = pretrained.Card(
        config=sizes.LARGE,
        size=480,
        width=896,
        chunk_latents=21,  # 81 frames, 2 latents of them of the chunk before
        codec="wan21",
        speech="wav2vec2",
        text="umt5",
        text_length=512,
        reference_latents=5,  # 20 frames, one segment
        segment_latents=5,
        blank_still=True,
        num_steps=24,
        solver="unipc",
        shift=5.0,
        text_guidance=5.0,
        audio_guidance=1.8,
        latent_dtype="bfloat16",
        protocol="tavr",
        # Choice: our words for what TAVR's own names; pictures with these are avoided.
        negative_prompt="deformed hands, extra fingers, deformed eyes, crossed eyes, "
        "deformed face, moire, visible stitching, blurry, low quality",
    )
    return ml_collections.ConfigDict(card.to_metadata())
