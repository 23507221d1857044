"""A person's clips become a reference; ~15 s on 2 cores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_weights

from avatar_jax.media import faces, loudness
from avatar_jax.sampling import person, pictures, pretrained
from avatar_jax.types import SAMPLES_PER_FRAME, InputError

SIZE = 64  # pixels
CARD = tiny_weights.PERSON_CARD
LATENTS, LONGEST = CARD["reference_latents"], CARD["segment_latents"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "person.safetensors"
    config = tiny_weights.PERSON_CONFIG
    path = tiny_weights.write_weights(path, config, size=SIZE, **CARD)
    return pretrained.load(path)


def film(count: int, *, seed: int = 0, talking: slice | None = None) -> np.ndarray:
    """Draw noise whose mouth flickers in some frames."""
    draw = np.random.default_rng(seed)
    frames = draw.integers(90, 110, (count, SIZE, SIZE, 3)).astype(np.uint8)
    if talking is not None:
        frames[talking][::2, 40:56, 24:40] = 10
    return frames


def hide(clip: person.PersonClip, hidden: slice) -> person.PersonClip:
    """Say that no face was found in some frames."""
    found = clip.found.copy()
    found[hidden] = False
    return dataclasses.replace(clip, found=found)


def sound(count: int) -> np.ndarray:
    draw = np.random.default_rng(5)
    return draw.normal(scale=0.1, size=count * SAMPLES_PER_FRAME).astype(np.float32)


def choose(*clips, latents=LATENTS, longest=LONGEST) -> list[list[tuple[int, int]]]:
    chosen = person.choose_windows(clips, latents=latents, longest=longest)
    return [[(cut.start, cut.stop) for cut in cuts] for cuts in chosen]


def test_clips_share_the_budget_evenly():
    long, short = person.portrait_clip(film(80)), person.portrait_clip(film(10))
    assert [len(cuts) for cuts in choose(long, long)] == [1, 1]
    first, second = choose(long, short)
    assert second == [(0, 8)]  # two whole groups; the rest goes to the other clip
    assert [stop - start for start, stop in first] == [12, 12]
    assert [len(cuts) for cuts in choose(*[long] * 3, latents=2)] == [0, 1, 1]


def test_windows_avoid_frames_without_a_face():
    clip = hide(person.portrait_clip(film(160, talking=slice(0, 80))), slice(0, 100))
    (cuts,) = choose(clip)
    assert len(cuts) == 2
    for start, stop in cuts:
        assert clip.found[start:stop].mean() >= 0.5


def test_a_face_that_shows_for_a_moment_is_used():
    clip = hide(person.portrait_clip(film(160)), slice(16, 160))
    assert choose(clip, latents=16, longest=16) == [[(0, 16)]]
    scattered = np.zeros(160, bool)
    scattered[[0, 1, 2, 3, 80, 81, 82, 83, 156, 157, 158, 159]] = True
    clip = dataclasses.replace(clip, found=scattered)
    assert choose(clip, latents=3, longest=3) == [[(0, 4), (80, 84), (156, 160)]]


def test_windows_are_where_the_mouth_moves_and_spread():
    clip = person.portrait_clip(film(160, talking=slice(20, 36)))
    assert choose(clip, latents=4) == [[(20, 36)]]
    (first, second), *_ = choose(clip)
    assert first == (20, 36) and second[0] >= 72


def test_windows_do_not_overlap_and_are_always_the_same():
    draw = np.random.default_rng(1)
    for seed in range(20):
        clip = person.portrait_clip(film(int(draw.integers(30, 120)), seed=seed))
        clip = dataclasses.replace(clip, found=draw.random(len(clip.found)) < 0.8)
        latents, longest = int(draw.integers(1, 20)), int(draw.integers(1, 8))
        (cuts,) = choose(clip, latents=latents, longest=longest)
        assert [cuts] == choose(clip, latents=latents, longest=longest)
        edges = [edge for cut in cuts for edge in cut]
        assert edges == sorted(edges) and not any(edge % 4 for edge in edges)
        lengths = [(stop - start) // 4 for start, stop in cuts]
        assert 0 < sum(lengths) <= latents and max(lengths) <= longest


@pytest.mark.parametrize("count, hidden, came", [(11, 0, 8), (60, 52, 8), (3, 0, 0)])
def test_too_short_a_reference_is_named(loaded, count, hidden, came):
    clip = hide(person.portrait_clip(film(count)), slice(0, hidden))
    with pytest.raises(InputError, match=f"12 frames or more.* came {came} of {count}"):
        person.encode_person(loaded, [clip])


def test_segments_are_encoded_alone_and_padding_is_invalid(loaded):
    clip = person.portrait_clip(film(22))
    reference = person.encode_person(loaded, [clip])
    assert reference.segment_ids.tolist() == [[0, 0, 1, 1, 2, 2, 2, 2]]
    for start in (0, 8):
        (cuts,) = choose(clip)
        cut = slice(*cuts[start // 8])
        alone = loaded.codec.encode_clips(pictures.to_video(clip.frames[cut]))
        own = reference.latents[:, start // 4 : start // 4 + 2]
        np.testing.assert_allclose(own, alone, atol=1e-4)
    assert reference.latents.shape == (1, LATENTS, 8, 8, 5)
    assert reference.valid.shape == (1, LATENTS, 4, 4)
    assert reference.valid[0, :4].any() and not reference.valid[0, 4:].any()
    assert not reference.latents[0, 4:].any()


def test_valid_patches_are_those_of_the_face(loaded):
    card = dataclasses.replace(loaded.card, segment_latents=LATENTS)
    model = dataclasses.replace(loaded, card=card)
    clip = person.portrait_clip(film(32))
    boxes = np.tile(np.array([4, 20, 24, 28], np.float32), (32, 1))
    boxes[7, 2] = 34  # in one frame of the second latent it reaches further
    clip = hide(dataclasses.replace(clip, boxes=boxes), slice(12, 16))
    clip = hide(clip, slice(20, 22))  # half of this latent is enough
    ((cut,),) = choose(clip, longest=LATENTS)
    first, count = cut[0] // 4, (cut[1] - cut[0]) // 4
    assert first < 2 and count >= 6
    valid = np.asarray(person.encode_person(model, [clip]).valid[0, :count])
    wanted = np.zeros((8, 4, 4), bool)
    for frame, (x0, y0, x1, y1) in enumerate(faces.token_boxes(boxes)):
        rows = slice(int(max(y0, 0) // 16), int(-(-y1 // 16)))
        wanted[frame // 4, rows, int(max(x0, 0) // 16) : int(-(-x1 // 16))] = True
    assert wanted[1].sum() > wanted[2].sum()
    wanted[3] = False
    np.testing.assert_array_equal(valid, wanted[first : first + count])


def test_speech_and_codes_belong_to_the_chosen_frames(loaded):
    clip = person.portrait_clip(film(60, talking=slice(40, 56)), sound(60))
    reference = person.encode_person(loaded, [clip])
    (cuts,) = choose(clip)
    rows = np.concatenate([np.arange(*cut) for cut in cuts])
    assert len(rows) == 4 * LATENTS and rows[0] > 0
    speech = loaded.speech(loudness.normalise(clip.wave), 60)[rows]
    np.testing.assert_allclose(reference.audio[0], speech, atol=1e-5)
    codes = loaded.motion.read(clip.frames[rows])
    np.testing.assert_allclose(reference.motion[0], (codes - 0.1) / 0.5, atol=1e-4)
    assert reference.audio_valid.tolist() == reference.motion_valid.tolist() == [True]


def test_identity_is_the_mean_over_frames_that_show_the_face(loaded):
    clip = hide(person.portrait_clip(film(16)), slice(14, 16))
    reference = person.encode_person(loaded, [clip])
    mean = loaded.identity.embed(clip.frames[:14]).mean(axis=0)
    np.testing.assert_allclose(
        reference.identity[0], mean / np.linalg.norm(mean), atol=1e-4
    )


def test_face_crops_are_cut_from_frames_that_show_the_face(loaded):
    clip = hide(person.portrait_clip(film(16)), slice(14, 16))
    reference = person.encode_person(loaded, [clip])
    assert reference.faces.shape == (1, 2, 4, 4, 5)
    assert reference.faces_valid.tolist() == [[True, True]]
    crops = faces.face_crops(
        clip.frames[:14], clip.boxes[:14], 2, size=32, scale=faces.CROP_FACES
    )
    alone = loaded.codec.encode(pictures.to_video(crops[:1]))
    np.testing.assert_allclose(reference.faces[:, :1], alone, atol=1e-4)


def test_what_is_unknown_is_marked_invalid(loaded):
    blind = dataclasses.replace(loaded, motion=None, identity=None)
    told = person.portrait_clip(film(40, talking=slice(0, 40)), sound(40))
    silent = dataclasses.replace(told, wave=None)
    reference = person.encode_person(blind, [told, silent])
    assert reference.motion_valid.tolist() == [False] and not reference.motion.any()
    assert reference.audio_valid.tolist() == [False] and not reference.audio.any()
    assert reference.identity.shape == (1, 64) and not reference.identity.any()
    unused = hide(silent, slice(0, 40))
    reference = person.encode_person(blind, [told, unused])
    assert reference.audio_valid.tolist() == [True]


def test_parts_that_the_model_lacks_are_none(loaded):
    config = dataclasses.replace(tiny_weights.CONFIG, reference=True)
    card = dataclasses.replace(loaded.card, config=config, face_crops=0)
    bare = dataclasses.replace(loaded, card=card)
    reference = person.encode_person(bare, [person.portrait_clip(film(40), sound(40))])
    for name in ("audio", "motion", "identity", "faces"):
        assert getattr(reference, name) is None


def test_references_of_several_people_make_a_batch(loaded):
    one = person.encode_person(loaded, [person.portrait_clip(film(12))])
    two = person.encode_person(loaded, [person.portrait_clip(film(90), sound(90))] * 2)
    both = jax.tree.map(lambda *rows: jnp.concatenate(rows), one, two)
    assert both.latents.shape[:2] == (2, LATENTS)
    assert both.audio_valid.tolist() == [False, True]
