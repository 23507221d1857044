"""Human-aware losses: what they look at, when, and how they count (~40 s, 2 cores).

Most tests use judges so simple that what they return is known in closed form.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from human_cases import (
    AUDIO,
    CODEC,
    CONFIG,
    CROPS,
    FIRST,
    NAMES,
    TIMES,
    VIEWS,
    B,
    C,
    F,
    H,
    W,
    make_faces,
    make_simple_params,
)
from random_judges import random_judges

from avatar_jax.models import codec, judges, sizes
from avatar_jax.objectives import human_aware, portraits
from avatar_jax.types import InputError, count_frames


def compare(faces, config=CONFIG, at=100, params=None):
    params = make_simple_params() if params is None else params
    faces = faces.replace(judged=human_aware.choose(faces.t, config))
    return human_aware.compare(params, faces, CODEC, config, jnp.int32(at))


def gradient(faces, config=CONFIG):
    def loss(velocity):
        return compare(faces.replace(velocity=velocity), config)[0]

    return np.asarray(jax.grad(loss)(faces.velocity))


def test_an_exact_estimate_costs_nothing_but_its_distance_to_the_speech(simple):
    loss, metrics = compare(make_faces(error=0.0))
    values = {name: float(metrics[f"human/{name}"].total) for name in NAMES}
    for name in ("identity", "motion", "perceptual"):
        assert abs(values[name]) < 1e-5, name
    assert values["sync"] > 0.1
    np.testing.assert_allclose(loss, CONFIG.sync * values["sync"] / B, rtol=1e-5)


def test_the_gradient_stays_inside_the_decoded_square_and_run(simple):
    grad = gradient(make_faces(error=0.3))
    inside = np.zeros((B, F, H, W), bool)
    for i, (row, column) in enumerate(CROPS):
        run = slice(FIRST[i], FIRST[i] + CONFIG.latents)
        inside[i, run, row : row + CONFIG.crop, column : column + CONFIG.crop] = True
    inside[TIMES >= CONFIG.largest_time] = False
    reached = (grad != 0).any(-1)
    np.testing.assert_array_equal(reached, inside)


def test_the_square_follows_the_face(simple):
    faces = make_faces(error=0.3)
    moved = faces.replace(face_mask=jnp.roll(faces.face_mask[:1], 3, 3).repeat(B, 0))
    rows, columns = gradient(moved)[0].any((0, 3)).nonzero()
    assert (rows.min(), columns.min()) == (CROPS[0][0], CROPS[0][1] + 3)


def test_noisy_clips_count_for_nothing_and_the_first_of_the_others_are_looked_at(
    simple,
):
    faces = make_faces(error=0.3)
    two = dataclasses.replace(CONFIG, clips=2)
    np.testing.assert_array_equal(
        gradient(faces, two).any((1, 2, 3, 4)), [True, False, True, False]
    )
    turned = faces.replace(t=jnp.asarray([0.45, 0.7, 0.3, 0.1]))
    np.testing.assert_array_equal(
        gradient(turned, two).any((1, 2, 3, 4)), [True, False, True, False]
    )
    late = faces.replace(t=jnp.asarray([0.5, 0.8, 0.6, 0.99]))
    loss, metrics = compare(late)
    assert float(loss) == 0 and not gradient(late).any()
    assert all(float(metrics[f"human/{name}"].count) == 0 for name in NAMES)


def test_weights_rise_from_nothing_over_the_ramp(simple):
    faces = make_faces()
    losses = [float(compare(faces, at=at)[0]) for at in (0, 25, 100, 5000)]
    assert losses[0] == 0 and losses[2] > 0.1
    np.testing.assert_allclose(losses[1] / losses[2], 0.25, rtol=1e-5)
    assert losses[3] == losses[2]


def test_each_family_has_its_weight_and_its_line(simple):
    faces = make_faces()
    loss, metrics = compare(faces)
    assert set(metrics) == {f"human/{name}" for name in NAMES}
    total = 0.0
    for name in NAMES:
        mean = metrics[f"human/{name}"]
        expected = float(getattr(CONFIG, name) * mean.total / B)
        rest = {other: 0.0 for other in NAMES if other != name}
        alone, _ = compare(faces, dataclasses.replace(CONFIG, **rest))
        np.testing.assert_allclose(alone, expected, rtol=1e-5, err_msg=name)
        # One clip of four is too noisy, another of them is silent.
        assert float(mean.count) == (2 if name == "sync" else 3)
        total += expected
    np.testing.assert_allclose(loss, total, rtol=1e-5)


def test_judges_see_the_decoded_face_with_its_edges_repeated(simple):
    faces = make_faces()
    compare(faces)
    frames = simple["frames"][0].reshape(B, -1, 64, 64, 3)
    order = np.argsort(TIMES)
    t = TIMES[:, None, None, None, None]
    estimate = np.asarray(faces.noisy - t * faces.velocity)
    for shown, i in zip(frames, order, strict=True):
        (row, column), first = CROPS[i], FIRST[i]
        cut = estimate[i, first : first + 2, row : row + 6, column : column + 6]
        decoded = CODEC.decode_clips(jnp.asarray(cut[None]))[0, :: human_aware.EVERY]
        above, left = (8 * (a - b) for a, b in zip(CROPS[i], VIEWS[i], strict=True))
        edges = ((above, 16 - above), (left, 16 - left))
        expected = np.pad(decoded, ((0, 0), *edges, (0, 0)), "edge")
        np.testing.assert_allclose(shown, expected, atol=1e-4)


def test_a_view_whose_cells_are_no_whole_pixels_holds_the_face_where_it_is(simple):
    faces = make_faces()
    config = dataclasses.replace(CONFIG, clips=1, view=10, crop=5)
    corner = jnp.zeros((B, F, H, W)).at[:, :, 8:, 10:].set(1)
    compare(faces.replace(face_mask=corner), config)
    shown = simple["frames"][0]  # of clip 0, cells 0-9 and 2-11; the crop is 5-9, 7-11
    estimate = (faces.noisy - TIMES[0] * faces.velocity)[:1, 2:4, 5:, 7:]
    decoded = CODEC.decode_clips(estimate)[0, :: human_aware.EVERY]
    small = jax.image.resize(decoded, (len(shown), 32, 32, 3), "linear")
    expected = np.pad(small, ((0, 0), (32, 0), (32, 0), (0, 0)), "edge")
    np.testing.assert_allclose(shown, expected, atol=1e-4)


def test_speech_is_that_of_the_decoded_frames(simple):
    rows = np.arange(count_frames(F), dtype=np.float32)
    speech = np.broadcast_to(rows[None, :, None], (B, len(rows), AUDIO))
    compare(make_faces(speech=speech))
    heard = simple["speech"][0][..., 0]
    first = 4 * FIRST[np.argsort(TIMES)] - 3  # latent i >= 1 has frames 4i-3 .. 4i
    np.testing.assert_array_equal(heard, first[:, None] + np.arange(8))


def test_the_mouth_weighs_more(simple):
    def perceptual(mouth, weight):
        faces = make_faces(mouth_mask=mouth)
        config = dataclasses.replace(CONFIG, mouth_weight=weight)
        return float(compare(faces, config)[1]["human/perceptual"].total)

    nowhere, everywhere = np.zeros((B, F, H, W)), np.ones((B, F, H, W))
    plain = perceptual(nowhere, 3.0)
    np.testing.assert_allclose(perceptual(everywhere, 3.0), plain, rtol=1e-4)
    # All error in one cell of the face of clip 0: it counts more as a mouth.
    error = np.zeros((B, F, H, W, C), np.float32)
    error[0, :, 4, 5, 0] = 0.5
    base = make_faces(error=0.0)
    off = base.replace(velocity=base.target + error)
    mouth = np.zeros((B, F, H, W), np.float32)
    mouth[0, :, 4, 5] = 1
    with_mouth, without = (
        float(compare(off.replace(mouth_mask=m))[1]["human/perceptual"].total)
        for m in (jnp.asarray(mouth), jnp.zeros_like(mouth))
    )
    assert with_mouth > 2 * without > 0


def test_a_crop_that_does_not_fit_the_view_is_refused():
    for crop, view in ((9, 8), (0, 8), (5, 7)):
        with pytest.raises(ValueError, match=f"crop={crop} and view={view}"):
            human_aware.HumanAwareConfig(crop=crop, view=view)


@pytest.mark.parametrize(
    ("side", "crop"), [(8, 6), (12, 9), (16, 12), (24, 18), (10, 5), (7, 7)]
)
def test_without_sides_the_whole_portrait_is_the_view_at_any_size(side, crop):
    sides = portraits.choose_sides(0, 0, (side, side + 2))
    assert sides == (side, crop)
    human_aware.HumanAwareConfig(view=side, crop=crop)  # whole pixels


def test_a_crop_larger_than_the_picture_is_refused():
    assert portraits.choose_sides(24, 18, (60, 112)) == (24, 18)
    with pytest.raises(InputError, match="60 x 112 cells, as the face is a part"):
        portraits.choose_sides(0, 0, (60, 112))
    with pytest.raises(InputError, match="8 x 8 cells, came 18; use smaller"):
        portraits.choose_sides(24, 18, (8, 8))


def test_only_judges_for_training_are_loaded(monkeypatch):
    asked = []

    def load(path):
        asked.append(path.name)
        return judges.Judge("motion", {}, {}, "")

    monkeypatch.setattr(judges, "load", load)
    assert set(human_aware.load_judges()) == set(human_aware.KINDS)
    assert len(set(asked)) == len(human_aware.KINDS)
    assert all("_training." in name and "evaluation" not in name for name in asked)


# The judges' own networks, with random weights.


def test_every_family_reaches_the_velocity_through_its_judge():
    faces = make_faces(error=0.3)
    params = random_judges()
    config = dataclasses.replace(CONFIG, clips=1)

    @jax.jit
    def look(velocity):
        def totals(velocity):
            metrics = compare(faces.replace(velocity=velocity), config, params=params)
            values = [metrics[1][f"human/{name}"].total for name in NAMES]
            return jnp.stack(values), jnp.stack(values)

        rows, values = jax.jacrev(totals, has_aux=True)(velocity)
        return values, jnp.abs(rows).max((1, 2, 3, 4, 5))

    values, reached = look(faces.velocity)
    assert (values > 1e-5).all() and (reached > 1e-7).all()
    values, _ = look(faces.target)
    exact = dict(zip(NAMES, values.tolist(), strict=True))
    assert exact["sync"] > 1e-3
    for name in ("identity", "motion", "perceptual"):
        assert abs(exact[name]) < 1e-3, name


# At LARGE.


def compile_large(height, width, simple_params):
    """Compile the loss and its gradient for one clip of 81 frames."""
    config = dataclasses.replace(CONFIG, clips=1, view=24, crop=24)
    wan = codec.DCTCodec(sizes.LARGE.channels)  # WanVAE's shapes

    def leaf(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct((1, *shape), dtype)

    latents, mask = leaf(21, height, width, wan.channels), leaf(21, height, width)
    faces = human_aware.Faces(
        noisy=latents,
        velocity=latents,
        target=latents,
        t=leaf(),
        speech=leaf(81, AUDIO),
        speech_valid=leaf(dtype=bool),
        mouth_mask=mask,
        face_mask=mask,
        first=leaf(dtype=jnp.int32),
        judged=leaf(dtype=bool),
    )

    def loss(velocity, faces):
        faces = faces.replace(velocity=velocity)
        value, _ = human_aware.compare(simple_params, faces, wan, config, jnp.int32(1))
        return value

    made = jax.jit(jax.value_and_grad(loss)).lower(latents, faces).compile()
    whole = jax.jit(wan.decode_clips).lower(latents).compile()
    return made, whole, 4 * int(np.prod(latents.shape))


def test_at_large_only_the_face_is_decoded(simple):
    """Compiled bytes: the picture may grow fivefold, what is decoded does not."""
    params = make_simple_params()
    (small, whole, size), (large, larger, grown) = (
        compile_large(height, width, params)
        for height, width in ((60, 112), (136, 240))
    )

    def temporary(program):
        return program.memory_analysis().temp_size_in_bytes

    def traffic(program):
        return program.cost_analysis()["bytes accessed"]

    # Frames of 480p take 430 MB, of 1080p 2100 MB; those of a face 15 MB.
    assert temporary(small) < temporary(whole) / 8
    assert temporary(large) < temporary(larger) / 20
    # What grows are the latents themselves: read to be cut, written as a gradient.
    assert temporary(large) - temporary(small) <= 2 * (grown - size)
    assert traffic(large) - traffic(small) <= 10 * (grown - size)
    assert traffic(large) < traffic(larger) / 8
