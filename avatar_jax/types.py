"""The nouns that travel between files, the axis letters and the fixed rates.

Axis letters: B batch, F latent frames, H W latent rows and columns, C latent channels,
T target (query) tokens, S source (key) tokens, R reference tokens, A audio tokens,
L text tokens, D width, N heads, K head dim, M mlp width; h w are the patch grid,
`frames` are pixel frames at 25 Hz. Audio rows and motion codes run at the frame rate:
four per latent frame, one for the first.

Fields hold arrays (NumPy on the host, JAX on the device); after `jax.tree.map` they may
hold anything that the mapped function returned, so their shapes are documented here and
checked where they are used.
"""

from typing import Any

from flax import struct

FRAMES_PER_SECOND = 25
SAMPLE_RATE = 16_000  # Hz, mono
SAMPLES_PER_FRAME = SAMPLE_RATE // FRAMES_PER_SECOND
FRAMES_PER_LATENT = 4  # temporal stride of every codec; the first latent is one frame

Leaf = Any


class InputError(ValueError):
    """Say in one line what was expected, what came, what to do; exit code 2."""


def count_latents(frames: int) -> int:
    """Count the latent frames of `frames` pixel frames; a remainder is not encoded."""
    return (frames - 1) // FRAMES_PER_LATENT + 1


def count_frames(latents: int) -> int:
    """Count the pixel frames that `latents` latent frames decode to: 4 (F - 1) + 1."""
    return FRAMES_PER_LATENT * (latents - 1) + 1


@struct.dataclass
class VideoMotion:
    """Video latents and motion codes: noise, noisy sample, velocity or estimate."""

    latents: Leaf  # B F H W C, normalised per channel
    motion: Leaf = None  # B frames Dm; None where the motion stream is off


@struct.dataclass
class Reference:
    """A person's own video: latent frames in segments, with what belongs to them."""

    latents: Leaf  # B F H W C; segment after segment, no single-frame latents
    valid: Leaf  # B F h w bool, patch grid; False: off the face, padding, dropped
    segment_ids: Leaf  # B F int from 0; frames of one segment are neighbours
    audio: Leaf = None  # B 4F Dr, the clip's own speech; None: learned null
    audio_valid: Leaf = None  # B bool; None: all valid
    motion: Leaf = None  # B 4F Dm, clean codes; None: dropped
    motion_valid: Leaf = None  # B bool; None: all valid
    identity: Leaf = None  # B I, mean face embedding; zeros: absent
    faces: Leaf = None  # B crops Hf Wf C, encoded face crops, each its own segment
    faces_valid: Leaf = None  # B crops bool
    # Rows kept once valid ones are packed to the front: a static bucket. None: all.
    capacity: int | None = struct.field(pytree_node=False, default=None)


@struct.dataclass
class ReferenceCache:
    """Keys and values of all reference rows in all blocks, and manner, made once."""

    k: Leaf  # layers B R N K, after norm and rotary
    v: Leaf  # layers B R N K
    valid: Leaf  # B R bool
    manner: Leaf = None  # B D, how the person moves; None where the stream is off


@struct.dataclass
class Conditions:
    """What the velocity network is told; each field may be absent or dropped."""

    text: Leaf = None  # B L Dt; a dropped prompt is the embedding of the empty one
    null_text: Leaf = None  # B L Dt, the empty prompt, which reference rows see
    audio: Leaf = None  # B frames Da, driving speech; None: learned null
    audio_valid: Leaf = None  # B bool; None: all valid
    still: Leaf = None  # B 1 H W C, scene image or anchor
    still_valid: Leaf = None  # B h w bool, patch grid; None: all valid
    prefix: Leaf = (
        None  # B P H W C, clean last latents of the previous chunk, first here
    )
    prefix_valid: Leaf = None  # B bool; None: all valid
    prefix_motion: Leaf = None  # B 4(P-1)+1 Dm, the prefix's clean codes
    reference: Leaf = None  # Reference or ReferenceCache
    motion: Leaf = None  # B frames Dm, the model's own clean estimate; None: zeros
    motion_valid: Leaf = None  # B bool, False: codes are not injected; None: all valid
    motion_time: Leaf = None  # B, t of the noisy codes; None: the video's
    guidance: Leaf = None  # B scales, for distilled students

    def code_time(self, t: Leaf) -> Leaf:
        """Return t of the noisy codes: their own, or t of the video."""
        return t if self.motion_time is None else self.motion_time


@struct.dataclass
class Clip:
    """One batch of training examples, as the pipeline yields it."""

    target: VideoMotion
    conditions: Conditions
    mouth_mask: Leaf = None  # B F H W in [0, 1], share of the mouth in each latent cell
    face_mask: Leaf = None  # the same of the face


def drop_reference(reference: Reference, kept: Leaf) -> Reference:
    """Make the references of some samples say nothing, in rows, speech or identity.

    Args:
      kept: B bool, samples that keep theirs.
    """

    def mask(valid: Leaf, otherwise: Leaf) -> Leaf:
        valid = otherwise if valid is None else valid
        return valid & kept.reshape(kept.shape + (1,) * (valid.ndim - 1))

    identity, faces = reference.identity, reference.faces
    every_crop = None if faces is None else kept[:, None].repeat(faces.shape[1], 1)
    return reference.replace(
        valid=mask(reference.valid, reference.valid),
        audio_valid=mask(reference.audio_valid, kept),
        motion_valid=mask(reference.motion_valid, kept),
        identity=None if identity is None else identity * kept[:, None],
        faces_valid=None if faces is None else mask(reference.faces_valid, every_crop),
    )
