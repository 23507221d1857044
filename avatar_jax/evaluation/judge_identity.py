"""Train and test the judge of identity: who is seen, whatever the scene and the motion.

Two people of a pair swap scenes, so that each person is seen in both and every frame
has a negative in its own scene, with the same background, clothes and light.
"""

import dataclasses

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8
from tqdm import tqdm

from avatar_jax.data.talking_heads import clips, people, render, scene
from avatar_jax.evaluation import judge_frames, judge_training
from avatar_jax.models import faces, judges

DEFAULTS = judge_training.JudgeConfig(people=4000, num_steps=1500, batch_size=48)
TEMPERATURE = 0.1
KEEP_EVERY = 4  # frames of a clip of `judge_frames.CLIP_FRAMES`
GALLERY = 20  # people among whom one is found
_DRAWS = 5  # galleries per person
_SEEN = 8  # frames whose mean embedding is compared


def train(config: judge_training.JudgeConfig) -> judges.Judge:
    """Train on people of the train split; a batch is `batch_size` people, 2 frames."""
    data = make_pairs(config.people, seed=config.seed)
    empty = jnp.zeros((1, judges.VIEW, judges.VIEW, 3))
    rng = jax.random.key(config.seed)
    params = jax.jit(faces.FaceEmbedder().init)(rng, empty)["params"]

    def draw(dice: np.random.Generator) -> judge_training.Batch:
        pairs = dice.choice(len(data) // 2, config.batch_size // 2, replace=False)
        who = np.concatenate([2 * pairs, 2 * pairs + 1])
        first, second = dice.integers(0, data.shape[2], (2, len(who)))
        return data[who, 0, first], data[who, 1, second]

    params = judge_training.optimise(_loss, params, draw, config)
    return judges.Judge("identity", params, dataclasses.asdict(config), "unsaved")


def make_pairs(
    count: int, *, seed: int
) -> UInt8[np.ndarray, "people scenes frames Y X 3"]:
    """Film pairs of people of the train split, each person in the scenes of both.

    Motion is mixed as in `judge_frames.make_mixed`: who it is cannot be told from it.
    """
    rng = np.random.default_rng(seed)
    tracks = judge_frames.speaker_tracks(seed)
    indices = judge_frames.people_of("train", count + count % 2)
    crowd = [people.sample_person(seed, index) for index in indices]
    kept = len(range(0, judge_frames.CLIP_FRAMES, KEEP_EVERY))
    size = judges.VIEW
    filmed = np.empty((len(crowd), 2, kept, size, size, 3), np.uint8)
    for number, person in enumerate(tqdm(crowd, desc="pairs")):
        for place in range(2):
            host = crowd[number - number % 2 + place]
            codes = judge_frames.mix_tracks(rng, tracks)
            view = scene.sample_scene(host, 0)
            drawn = render.render(person.looks, view, codes, size).frames
            variant = rng.choice(judge_frames.VARIANTS)
            crf = int(rng.integers(14, 27))
            shown = judge_frames.degrade_clip(drawn, variant, crf=crf)
            filmed[number, place] = shown[::KEEP_EVERY]
    return filmed


def held_out_table(judge: judges.Judge, *, people: int, seed: int) -> list[dict]:
    """Return how often a validation person is found among `GALLERY`, in another scene.

    The gallery is rendered, as a reference clip is; the frames asked about are shown
    as rendered and as generated video is. In the last rows they come from the very
    scene in which somebody else of the gallery is seen.
    """
    own = np.arange(people)
    known = _to_length(_film(judge, people, seed, place=0).mean(axis=1))
    galleries = _draw_galleries(people, seed)
    rows = [{"found among 20": name} for name in _ROWS]
    for label, variant in (("rendered", "raw"), ("codec, H.264", "codec_h264")):
        asked = _film(judge, people, seed, place=1, variant=variant)
        guest = _film(judge, people, seed, place=0, guests=True, variant=variant)
        close = _to_length(asked.mean(axis=1)) @ known.T
        same = close[own, own]
        values = (
            np.mean([_found(asked[:, k] @ known.T, galleries) for k in range(_SEEN)]),
            _found(close, galleries),
            np.mean([_found(guest[:, k] @ known.T, galleries) for k in range(_SEEN)]),
            _found(_to_length(guest.mean(axis=1)) @ known.T, galleries),
            same.mean(),
            (close.sum() - same.sum()) / (people * (people - 1)),
        )
        for row, value in zip(rows, values, strict=True):
            row[label] = float(value)
    return rows


_ROWS = (
    "one frame, another scene",
    "mean of 8, another scene",
    "one frame, the scene of another",
    "mean of 8, the scene of another",
    "(cosine, same person, mean of 8)",
    "(cosine, other people, mean of 8)",
)


def _film(
    judge: judges.Judge,
    count: int,
    seed: int,
    *,
    place: int,
    guests: bool = False,
    variant: str = "raw",
) -> Float[np.ndarray, "people frames D"]:
    """Embed a clip of each validation person, at home or in the next one's scene."""
    indices = judge_frames.people_of("validation", count)
    crowd = [people.sample_person(seed, index) for index in indices]
    seen = []
    for number, person in enumerate(tqdm(crowd, desc=f"validation, {variant}")):
        host = crowd[(number + guests) % count]
        utterance = 3 * person.index + place + 2 * guests
        codes = clips.make_speech(person, utterance, judge_frames.CLIP_FRAMES)[2]
        view = scene.sample_scene(host, place)
        drawn = render.render(person.looks, view, codes, judges.VIEW).frames
        shown = judge_frames.degrade_clip(drawn, variant, crf=18)
        seen.append(shown[:: judge_frames.KEEP_EVERY][:_SEEN])
    rows = judge.embed(np.concatenate(seen))
    return einops.rearrange(rows, "(people frames) d -> people frames d", frames=_SEEN)


def _draw_galleries(people: int, seed: int) -> Int[np.ndarray, "asked gallery"]:
    """Draw `_DRAWS` galleries per person: that one, the next one and others."""
    rng = np.random.default_rng(seed)
    galleries = []
    for number in np.repeat(np.arange(people), _DRAWS):
        certain = number, (number + 1) % people
        rest = np.setdiff1d(np.arange(people), certain)
        others = rng.choice(rest, min(GALLERY - 2, len(rest)), replace=False)
        galleries.append([*certain, *others])
    return np.array(galleries)


def _found(
    close: Float[np.ndarray, "people people"],
    galleries: Int[np.ndarray, "asked gallery"],
) -> float:
    """Return how often the first of a gallery is the closest to its own frames."""
    return float((close[galleries[:, :1], galleries].argmax(axis=1) == 0).mean())


def _to_length(x: Float[np.ndarray, "rows D"]) -> Float[np.ndarray, "rows D"]:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _loss(
    params: dict, batch: judge_training.Batch, rng: PRNGKeyArray
) -> Float[Array, ""]:
    """Draw the two frames of a person together, away from all other people's."""
    frames = judge_training.to_unit(jnp.concatenate(batch))
    embedded = judges.embed_faces(params, judge_frames.degrade(rng, frames))
    logits = embedded @ embedded.T / TEMPERATURE
    logits = jnp.where(jnp.eye(len(logits), dtype=bool), -jnp.inf, logits)
    own = jnp.diagonal(jnp.roll(logits, len(logits) // 2, axis=1))
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - own)
