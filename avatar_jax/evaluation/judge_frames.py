"""Frames of which the truth is known, degraded as generated video is degraded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8
from tqdm import tqdm

from avatar_jax.data.talking_heads import clips, people, render, scene
from avatar_jax.data.talking_heads.geometry import KEYPOINT_NAMES
from avatar_jax.data.talking_heads.motion import MOTION_NAMES
from avatar_jax.media import decode, encode
from avatar_jax.models.codec import DCTCodec, LatentCodec
from avatar_jax.models.sync import JUDGE_SIZE

CLIP_FRAMES = 25  # 4 n + 1, as codecs want it
KEEP_EVERY = 3  # neighbouring frames say nearly the same
TRACKS = 400  # speakers whose motion is mixed
VARIANTS = ("raw", "codec", "h264", "codec_h264")


@dataclasses.dataclass(frozen=True)
class JudgeFrames:
    """Single frames and what the face in each of them does."""

    frames: UInt8[np.ndarray, "frames Y X 3"]
    motion: Float[np.ndarray, "frames codes"]  # MOTION_NAMES
    places: Float[np.ndarray, "frames places 2"]  # models.sync.PATCHES, pixels


def make_mixed(split: str, count: int, *, seed: int) -> JudgeFrames:
    """Render `count` people of a split, each moving like a mixture of other people.

    Each code follows the track of another speaker, so that nothing about the codes can
    be told from who it is: a judge that learnt people would fail on new ones.
    """
    rng = np.random.default_rng(seed)
    tracks = speaker_tracks(seed)
    parts = []
    for number, index in enumerate(tqdm(people_of(split, count), desc=split)):
        person = people.sample_person(seed, index)
        codes = mix_tracks(rng, tracks)
        place = scene.sample_scene(person, 0)
        drawn = render.render(person.looks, place, codes, JUDGE_SIZE)
        variant = VARIANTS[number % len(VARIANTS)]
        shown = degrade_clip(drawn.frames, variant, crf=int(rng.integers(14, 27)))
        every = slice(None, None, KEEP_EVERY)
        places = find_places(drawn.keypoints)
        parts.append(JudgeFrames(shown[every], codes[every], places[every]))
    return _join(parts)


def make_clips(split: str, count: int, *, seed: int, variant: str) -> JudgeFrames:
    """Render one clip of each of `count` people of a split, moving as they do."""
    parts = []
    for index in tqdm(people_of(split, count), desc=f"{split}, {variant}"):
        clip = clips.make_clip(
            people.sample_person(seed, index),
            scene=0,
            utterance=index,
            num_frames=CLIP_FRAMES,
            size=JUDGE_SIZE,
        )
        shown = degrade_clip(clip.frames, variant, crf=18)
        parts.append(JudgeFrames(shown, clip.motion, find_places(clip.keypoints)))
    return _join(parts)


def find_places(
    keypoints: Float[np.ndarray, "frames keypoints 2"],
) -> Float[np.ndarray, "frames places 2"]:
    """Return the middles of left eye, right eye and mouth."""
    groups = (
        ("eye_left_outer", "eye_left_inner"),
        ("eye_right_inner", "eye_right_outer"),
        ("mouth_left", "mouth_right", "lip_top", "lip_bottom"),
    )
    index = [[KEYPOINT_NAMES.index(name) for name in group] for group in groups]
    return np.stack([keypoints[:, i].mean(axis=1) for i in index], axis=1)


def _join(parts: list[JudgeFrames]) -> JudgeFrames:
    fields = [field.name for field in dataclasses.fields(JudgeFrames)]
    return JudgeFrames(
        **{name: np.concatenate([getattr(p, name) for p in parts]) for name in fields}
    )


def mix_tracks(
    rng: np.random.Generator, tracks: Float[np.ndarray, "speakers frames codes"]
) -> Float[np.ndarray, "frames codes"]:
    """Let each code follow the track of another speaker; eyes close together."""
    speakers = rng.integers(0, len(tracks), len(MOTION_NAMES))
    blinks = MOTION_NAMES.index("blink_left"), MOTION_NAMES.index("blink_right")
    speakers[blinks[1]] = speakers[blinks[0]]
    return tracks[speakers, :, np.arange(len(MOTION_NAMES))].T


def speaker_tracks(seed: int) -> Float[np.ndarray, "speakers frames codes"]:
    """Return one second of motion of each of `TRACKS` speakers of the train split."""
    tracks = []
    for index in tqdm(people_of("train", TRACKS), desc="speakers"):
        person = people.sample_person(seed, index)
        motion = clips.make_speech(person, index, 4 * CLIP_FRAMES)[2]
        tracks.append(motion[-CLIP_FRAMES:])
    return np.stack(tracks)


def people_of(split: str, count: int) -> list[int]:
    """Return the first `count` person indices of a split."""
    chosen, index = [], 0
    while len(chosen) < count:
        if people.split_of(index) == split:
            chosen.append(index)
        index += 1
    return chosen


def degrade_clip(
    frames: UInt8[np.ndarray, "frames Y X 3"], variant: str, *, crf: int
) -> UInt8[np.ndarray, "frames Y X 3"]:
    """Apply one of `VARIANTS` to a clip of 4n+1 frames."""
    if "codec" in variant:
        frames = codec_round_trip(frames, DCTCodec())
    if "h264" in variant:
        frames = decode.decode_bytes(encode.encode_bytes(frames, crf))
    return frames


def codec_round_trip(
    frames: UInt8[np.ndarray, "frames Y X 3"], codec: LatentCodec
) -> UInt8[np.ndarray, "frames Y X 3"]:
    """Encode and decode a clip of 4n+1 frames: the best that a model could show."""
    return np.asarray(_round_trip(codec, frames))


def degrade(
    rng: PRNGKeyArray, frames: Float[Array, "B Y X 3"]
) -> Float[Array, "B Y X 3"]:
    """Blur, dim and disturb each picture a little, differently."""
    blur_rng, gain_rng, noise_rng, level_rng = jax.random.split(rng, 4)
    count = frames.shape[0]
    sigma = jnp.maximum(jax.random.uniform(blur_rng, (count,), minval=-1, maxval=1), 0)
    frames = jax.vmap(blur)(frames, sigma)
    gain = jax.random.uniform(gain_rng, (count, 1, 1, 3), minval=0.92, maxval=1.08)
    level = jax.random.uniform(level_rng, (count, 1, 1, 1), maxval=0.05)
    noise = level * jax.random.normal(noise_rng, frames.shape)
    return jnp.clip(frames * gain + noise, -1, 1)


def blur(
    frame: Float[Array, "Y X 3"], sigma: Float[Array, ""], reach: int = 1
) -> Float[Array, "Y X 3"]:
    """Convolve with a Gaussian of 2 reach + 1 taps; sigma in pixels, 0 is no blur."""
    offsets = jnp.arange(-reach, reach + 1)
    taps = jnp.exp(-(offsets**2) / (2 * jnp.maximum(sigma, 1e-3) ** 2))
    taps = taps / taps.sum()
    for axis in (0, 1):
        pad = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
        wide = jnp.pad(frame, pad, mode="edge")
        size = frame.shape[axis]
        frame = sum(
            tap * jax.lax.slice_in_dim(wide, i, i + size, axis=axis)
            for i, tap in enumerate(taps)
        )
    return frame


@jax.jit
def _round_trip(
    codec: LatentCodec, frames: UInt8[Array, "frames Y X 3"]
) -> UInt8[Array, "frames Y X 3"]:
    video = frames[None].astype(jnp.float32) / 127.5 - 1
    decoded = codec.decode(codec.encode(video))[0]
    return jnp.round((decoded + 1) * 127.5).astype(jnp.uint8)
