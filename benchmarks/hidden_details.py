"""Does a detail come from the reference: pairs that show it or hide it.

A special tooth is hidden while the mouth is shut; a mole or an earring while the head
is not turned to its side. Both references of a pair are the same person in the same
scene with otherwise equal motion, as many frames, and no sound. The target is in
another scene, its detail in sight. So that pose and mouth are known there, it is not
made from noise alone: with x the latents of the target rendered *without* the detail,

  (1) x_t = (1 - t) x + t e                t = `START`; of motion codes, as they lead
  (2) y   = the sample from x_t on, decoded; the same e for both references
  (3) r   = <y - a, b - a> / <b - a, b - a>

where a and b are the renderer's target without and with the detail, through the codec.
r is 0 where nothing of the detail is there and 1 where all of it is that the codec
keeps; what the pair's samples have in common drops out of the difference.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from avatar_jax.data.talking_heads import clips, people, render, scene
from avatar_jax.data.talking_heads.looks import Looks
from avatar_jax.data.talking_heads.motion import MOTION_NAMES
from avatar_jax.evaluation import demo_cases, judge_frames
from avatar_jax.evaluation.metrics import bootstrap
from avatar_jax.flow import path, times
from avatar_jax.sampling import chunk, person, pictures, pretrained, request, video
from avatar_jax.types import Conditions, VideoMotion, count_frames, drop_reference

START = 0.8  # of eq. 1
STEPS = 16
REFERENCE_FRAMES = 48
_TURN = 0.85  # of yaw: 38 degrees
_FAINTEST = 2.0  # of 255, mean change of the 20 pixels that a detail changes most
_UTTERANCE, _SCENE = 20_000_000, 200  # of no case and no gallery

Codes = Float[np.ndarray, "frames codes"]


@dataclasses.dataclass(frozen=True)
class Detail:
    """How a detail is taken away, brought into sight and hidden."""

    name: str
    remove: Callable[[Looks], Looks]
    show: Callable[[Looks, Codes], Codes]
    hide: Callable[[Looks, Codes], Codes]


def _with_code(codes: Codes, name: str, value: float) -> Codes:
    changed = codes.copy()
    changed[:, MOTION_NAMES.index(name)] = value
    return changed


DETAILS = (
    Detail(
        "special tooth",
        remove=lambda looks: looks.replace(special_tooth=99.0),  # of no slot
        show=lambda looks, codes: _with_code(codes, "yaw", 0.0),
        hide=lambda looks, codes: _with_code(
            _with_code(codes, "yaw", 0.0), "mouth_open", 0.0
        ),
    ),
    Detail(
        "mole or earring",
        remove=lambda looks: looks.replace(mole=0.0, earring=0.0),
        show=lambda looks, codes: _with_code(codes, "yaw", -looks.mark_side * _TURN),
        hide=lambda looks, codes: _with_code(codes, "yaw", 0.0),
    ),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """One person's target and two references; frames are uint8."""

    shown: UInt8[np.ndarray, "frames Y X 3"]
    hidden: UInt8[np.ndarray, "frames Y X 3"]
    without: UInt8[np.ndarray, "frames2 Y X 3"]  # a of eq. 3, before the codec
    whole: UInt8[np.ndarray, "frames2 Y X 3"]  # b
    codes: Codes  # of the target
    wave: Float[np.ndarray, " samples"]


def measure(
    loaded: pretrained.Pretrained, *, count: int, split: str, seed: int
) -> None:
    """Print eq. 3 for each detail and kind of reference, and the paired difference."""
    frames = count_frames(loaded.card.chunk_latents)
    print(f"\nhidden details: share that is there, from t = {START}, {STEPS} steps")
    head = ("people", "shown", "hidden", "no reference", "shown - hidden")
    print(f"{'detail':<16}" + "".join(f"{name:>25}" for name in head))
    for detail in DETAILS:
        chosen = people_of_detail(loaded, detail, split, count, frames)
        rows = np.array(
            [
                _measure_pair(loaded, pair, seed=seed + number)
                for number, pair in enumerate(chosen)
            ]
        )
        shown, hidden, absent = rows.T
        cells = [
            bootstrap.format_mean(v) for v in (shown, hidden, absent, shown - hidden)
        ]
        line = "".join(f"{cell:>25}" for cell in (str(len(rows)), *cells))
        print(f"{detail.name:<16}{line}")


def people_of_detail(
    loaded: pretrained.Pretrained, detail: Detail, split: str, count: int, frames: int
) -> list[Pair]:
    """Film the first `count` people of a split on whom the codec shows the detail."""
    found: list[Pair] = []
    for index in judge_frames.people_of(split, 4 * count):
        pair = film_pair(detail, index, frames=frames, size=loaded.card.size)
        without, whole = (
            judge_frames.codec_round_trip(v, loaded.codec).astype(float)
            for v in (pair.without, pair.whole)
        )
        change = np.sort(np.abs(whole - without).mean(axis=(0, 3)).ravel())
        if change[-20:].mean() >= _FAINTEST:
            found.append(pair)
        if len(found) == count:
            break
    return found


def film_pair(detail: Detail, index: int, *, frames: int, size: int) -> Pair:
    """Render a person's pair of references and their target."""
    speaker = people.sample_person(demo_cases.SEED, index)
    looks, bare = speaker.looks, detail.remove(speaker.looks)
    known = clips.make_speech(speaker, _UTTERANCE + 2 * index, REFERENCE_FRAMES)[2]
    wave, _, said = clips.make_speech(speaker, _UTTERANCE + 2 * index + 1, frames)
    home, away = (scene.sample_scene(speaker, _SCENE + k) for k in range(2))
    target = detail.show(looks, said)

    def draw(looks: Looks, place: scene.Scene, codes: Codes) -> np.ndarray:
        return render.render(looks, place, codes, size).frames

    return Pair(
        shown=draw(looks, home, detail.show(looks, known)),
        hidden=draw(looks, home, detail.hide(looks, known)),
        without=draw(bare, away, target),
        whole=draw(looks, away, target),
        codes=target,
        wave=wave,
    )


def _measure_pair(
    loaded: pretrained.Pretrained, pair: Pair, *, seed: int
) -> tuple[float, float, float]:
    """Return eq. 3 with the detail shown, hidden and without any reference."""
    shown, hidden = (_prepare(loaded, pair, v) for v in (pair.shown, pair.hidden))
    absent = shown.replace(
        reference=drop_reference(shown.reference, jnp.zeros(1, bool))
    )
    a, b = (
        judge_frames.codec_round_trip(v, loaded.codec).astype(float)
        for v in (pair.without, pair.whole)
    )
    shares = []
    for prepared in (shown, hidden, absent):
        made = _sample(loaded, pair, prepared, seed)
        shares.append(float(((made - a) * (b - a)).sum() / ((b - a) ** 2).sum()))
    return tuple(shares)


def _prepare(
    loaded: pretrained.Pretrained, pair: Pair, reference: UInt8[np.ndarray, "f Y X 3"]
) -> video.Prepared:
    size = loaded.card.size
    still, valid = pair.without[0], None
    if loaded.card.blank_still:
        box = pictures.portrait_boxes(1, size)[0][0]
        still, valid = pictures.blank_person(still, box, cell=loaded.patch_side)
    return request.encode(
        loaded,
        still=still,
        still_valid=valid,
        person=[person.portrait_clip(reference)],
        wave=pair.wave,
        plan=video.Plan(len(pair.without), loaded.card.chunk_latents),
    )


def _sample(
    loaded: pretrained.Pretrained, pair: Pair, prepared: video.Prepared, seed: int
) -> Float[np.ndarray, "frames Y X 3"]:
    """Sample eq. 2."""
    card, model, params = loaded.card, loaded.model, loaded.params
    motion = None
    if card.config.motion_width and not card.motion:
        motion = jnp.zeros((1, *pair.codes.shape[:1], card.config.motion_width))
    elif card.config.motion_width:
        scaled = (pair.codes - np.array(card.motion_mean)) / np.array(card.motion_std)
        motion = jnp.asarray(scaled, jnp.float32)[None]
    x = VideoMotion(loaded.codec.encode(pictures.to_video(pair.without)), motion)
    noise_rng, rng = jax.random.split(jax.random.key(seed))
    keys = iter(jax.random.split(noise_rng, len(jax.tree.leaves(x))))
    noise = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), x)
    null_text = jnp.asarray(prepared.null_text)
    told = Conditions(
        text=jnp.asarray(prepared.text),
        null_text=null_text,
        audio=jnp.asarray(prepared.speech),
        still=jnp.asarray(prepared.still),
        still_valid=jnp.asarray(prepared.still_valid),
        motion_valid=prepared.motion_valid,
        reference=chunk.cache_reference(model, params, prepared.reference, null_text),
    )
    lead = card.motion_lead
    begin = VideoMotion(jnp.full((1,), START), None)
    if motion is not None:
        own = times.shift_times(begin.latents, 1 / lead)
        begin = begin.replace(motion=own)
    sample = chunk.sample_chunk(
        model,
        params,
        path.interpolate(x, noise, begin),
        chunk.Passes(full=told),
        START * times.schedule(STEPS),
        rng,
        chunk.Settings(num_steps=STEPS, motion_lead=lead),
    )
    _, pixels = chunk.decode_pixels(
        loaded.codec, loaded.codec.init_decode(), sample.latents
    )
    return np.asarray(pixels[0]).astype(float)
