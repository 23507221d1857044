"""Phonemes -> tracks of the vocal tract every 10 ms, for the voice and for the face.

The tracks are the same for the sound and for the mouth, so what is heard is what is
seen; each target is smoothed by a Gaussian (coarticulation), lips and jaw more slowly
than the voice. The person's own style is applied later, to the face only.
"""

import dataclasses

import numpy as np
import scipy.ndimage
from jaxtyping import Float

from avatar_jax.data.talking_heads import phonemes
from avatar_jax.data.talking_heads.phonemes import Sentence

HOP_SECONDS = 0.01

# Standard deviations of the smoothing, in hops.
_JAW_SMOOTHING, _FORMANT_SMOOTHING, _VOICE_SMOOTHING = 2.4, 1.8, 0.8
_UNSTRESSED = 0.8  # opening and loudness of an unstressed vowel
_TABLE = {
    name: np.array([getattr(p, name) for p in phonemes.PHONEMES], np.float32)
    for name in ("opening", "width", "formants", "voicing", "noise", "noise_low")
}
_CLOSURE = np.array([p.closure for p in phonemes.PHONEMES], np.float32)
_IS_VOWEL = np.isin(np.arange(len(phonemes.PHONEMES)), phonemes.VOWELS)


@dataclasses.dataclass(frozen=True)
class Articulation:
    """What the tract does, one row per 10 ms."""

    opening: Float[np.ndarray, " hops"]  # 0 closed .. 1
    width: Float[np.ndarray, " hops"]  # -1 rounded .. 1 spread
    closure: Float[np.ndarray, " hops"]  # 1: the lips are pressed together
    formants: Float[np.ndarray, "hops 3"]  # Hz
    voicing: Float[np.ndarray, " hops"]
    noise: Float[np.ndarray, " hops"]
    noise_low: Float[np.ndarray, " hops"]  # Hz
    stress: Float[np.ndarray, " hops"]  # 0 .. 1


def articulate(sentence: Sentence, hops: int) -> Articulation:
    """Move the tract through a sentence; one smoothed row per 10 ms."""
    place = sentence.sample((np.arange(hops) + 0.5) * HOP_SECONDS)
    codes, stressed = sentence.codes[place], sentence.stressed[place]
    effort = np.where(_IS_VOWEL[codes] & (stressed == 0), _UNSTRESSED, 1.0)
    closure = _smooth(_CLOSURE[codes], 1.0)
    formants = _smooth(_TABLE["formants"][codes], _FORMANT_SMOOTHING)
    return Articulation(
        opening=_smooth(_TABLE["opening"][codes] * effort, _JAW_SMOOTHING),
        width=_smooth(_TABLE["width"][codes], 1.5 * _JAW_SMOOTHING),
        closure=closure,
        formants=formants,
        voicing=_smooth(_TABLE["voicing"][codes] * effort, _VOICE_SMOOTHING),
        noise=_smooth(_TABLE["noise"][codes], _VOICE_SMOOTHING),
        noise_low=_smooth(_TABLE["noise_low"][codes], _VOICE_SMOOTHING),
        stress=_smooth(stressed, 6.0),
    )


def _smooth(
    track: Float[np.ndarray, "hops ..."], sigma: float
) -> Float[np.ndarray, "hops ..."]:
    return scipy.ndimage.gaussian_filter1d(
        track.astype(np.float32), sigma, axis=0, mode="nearest"
    )
