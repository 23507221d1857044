"""TAVR's protocol where it differs from ours, on random networks (~60 s on 2 cores)."""

import dataclasses
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_weights

from avatar_jax import sample
from avatar_jax.flow import guidance
from avatar_jax.models import sizes
from avatar_jax.models.dit import AvatarDiT
from avatar_jax.sampling import chunk, pretrained, tavr, video
from avatar_jax.types import Conditions, InputError, VideoMotion

CONFIG = dataclasses.replace(
    tiny_weights.CONFIG,
    reference=True,
    reference_audio_width=3,
    motion_width=5,
    still_concat=False,
    prediction="velocity",
)
HEIGHT, WIDTH, LATENTS = 2, 4, 5
TAVR = Path(__file__).parents[2] / "configs" / "tavr.py"
draw = np.random.default_rng()


@pytest.fixture(autouse=True)
def same_numbers_in_any_order(monkeypatch):
    monkeypatch.setitem(globals(), "draw", np.random.default_rng(0))


def normal(*shape):
    return jnp.asarray(draw.normal(size=shape), jnp.float32)


def make_reference(audio_rows=12):
    return tavr.make_reference(
        normal(1, 3, HEIGHT, WIDTH, CONFIG.channels),
        jnp.ones((1, 3, 1, 2), bool),
        normal(1, audio_rows, 3) if audio_rows else None,
    )


def make_prepared(plan, reference):
    return video.Prepared(
        still=normal(1, 1, HEIGHT, WIDTH, CONFIG.channels),
        speech=np.asarray(normal(1, plan.padded_frames, CONFIG.audio_width)),
        text=normal(1, 3, CONFIG.text_width),
        null_text=normal(1, 3, CONFIG.text_width),
        reference=reference,
    )


def run(plan, prepared, noise=None, **settings):
    _, params = tiny_weights.make_params(CONFIG)
    made = video.sample_chunks(
        AvatarDiT(CONFIG),
        params,
        prepared,
        plan=plan,
        settings=chunk.Settings(**settings),
        rng=jax.random.key(0),
        noise=noise,
    )
    return jax.tree.map(lambda *runs: jnp.concatenate(runs, 1), *made)


def make_noise(plan):
    rows = 4 * (plan.noise_latents - 1) + 1
    latents = normal(1, plan.noise_latents, HEIGHT, WIDTH, CONFIG.channels)
    return VideoMotion(latents, normal(1, rows, CONFIG.motion_width))


@pytest.mark.parametrize("frames", [9, 21, 25, 40])
def test_every_latent_of_the_canvas_is_written_once_or_stays_noise(frames):
    plan = tavr.make_plan(frames, LATENTS)
    noise = make_noise(plan)
    made = run(plan, make_prepared(plan, None), noise, num_steps=1, solver="unipc")
    assert made.latents.shape[1] == plan.canvas_latents
    assert made.motion.shape[1] == 4 * (plan.canvas_latents - 1) + 1
    end = plan.written(plan.num_chunks - 1).stop
    covered = [plan.written(k) for k in range(plan.num_chunks)]
    assert [a.stop for a in covered[:-1]] == [b.start for b in covered[1:]]
    chex.assert_trees_all_equal(made.latents[:, end:], noise.latents[:, end : end + 4])
    first = 4 * (end - 1) + 1
    raw = noise.motion[:, first : made.motion.shape[1]]
    chex.assert_trees_all_equal(made.motion[:, first:], raw)
    written = made.latents[:, :end] != noise.latents[:, :end]
    assert written.any((0, 2, 3, 4)).all()


def test_drawn_noise_that_is_given_makes_the_same_video():
    plan = video.Plan(30, LATENTS)
    prepared = make_prepared(plan, make_reference())
    noise_rng, _ = jax.random.split(jax.random.key(0))
    video_rng, motion_rng = jax.random.split(noise_rng)
    shape = (1, HEIGHT, WIDTH, CONFIG.channels)
    noise = VideoMotion(
        video.draw_noise(video_rng, 0, plan.noise_latents, shape),
        video.draw_noise(motion_rng, 0, plan.padded_frames, (1, CONFIG.motion_width)),
    )
    how = {"num_steps": 2, "solver": "unipc"}
    given = run(plan, prepared, noise, **how)
    chex.assert_trees_all_close(given, run(plan, prepared, **how), atol=1e-6)


def test_noise_of_another_length_is_refused():
    plan = tavr.make_plan(21, LATENTS)
    short = make_noise(video.Plan(5, LATENTS))
    with pytest.raises(ValueError, match="noise of 5 latents came"):
        run(plan, make_prepared(plan, None), short, num_steps=1)


def test_both_solvers_come_to_one_video_in_many_steps():
    plan = video.Plan(9, LATENTS)
    prepared = make_prepared(plan, make_reference())
    euler = run(plan, prepared, num_steps=200).latents
    coarse = run(plan, prepared, num_steps=2).latents
    unipc = run(plan, prepared, num_steps=100, solver="unipc").latents
    assert np.abs(unipc - euler).mean() < 0.1 * np.abs(coarse - euler).mean()


def test_a_hidden_reference_says_nothing_and_a_late_one_something():
    plan = video.Plan(9, LATENTS)
    prepared = make_prepared(plan, make_reference())
    codes = normal(1, 12, CONFIG.motion_width)
    seen = prepared.replace(reference=prepared.reference.replace(motion=codes))
    nobody = run(plan, prepared.replace(reference=None), num_steps=2)
    hidden = run(plan, seen, num_steps=2, reference_from=-1)
    chex.assert_trees_all_close(hidden, nobody, atol=1e-5)
    late, whole = (run(plan, seen, num_steps=2, reference_from=k) for k in (1, 0))
    for one, other in ((hidden, late), (late, whole)):
        for before, after in zip(*map(jax.tree.leaves, (one, other)), strict=True):
            assert np.abs(before - after).max() > 1e-4


def test_the_step_that_shows_the_reference_is_counted_from_noise():
    times = jnp.array([0.9, 0.6, 0.3, 0.0])
    for start, expected in {0: 3, 1: 2, 2: 1, 3: 0, 9: 0, -1: 0, -7: 0}.items():
        shown = chunk.is_reference_shown(times[:-1], times, start)
        assert shown.tolist() == [False] * (3 - expected) + [True] * expected


def test_a_reference_that_was_not_run_yet_is_hidden_alike():
    reference = make_reference()
    told = Conditions(reference=reference)
    hidden = chunk.hide_reference(told, jnp.array([True])).reference
    assert not hidden.valid.any() and not hidden.audio_valid.any()
    shown = chunk.hide_reference(told, jnp.array([False])).reference
    chex.assert_trees_all_equal(shown.valid, reference.valid)


@pytest.mark.parametrize("rows, kept", [(12, True), (11, False), (13, False)])
def test_reference_speech_counts_only_with_four_rows_a_latent(rows, kept):
    assert (make_reference(rows).audio is not None) == kept


def test_a_patch_of_the_still_shows_scene_if_any_of_its_cells_does():
    foreground = np.ones((1, 2, 6), np.float32)
    foreground[0, 1, 2] = 0
    assert tavr.background_patches(foreground, 2).tolist() == [[[False, True, False]]]


def test_the_last_row_of_speech_is_held_to_the_end_of_the_chunks():
    plan = tavr.make_plan(25, LATENTS)
    speech = np.arange(20, dtype=np.float32)[None, :, None]
    held = tavr.hold_last(speech, plan)
    assert held.shape[1] == plan.padded_frames > 20
    np.testing.assert_array_equal(held[:, :20], speech)
    assert (held[:, 20:] == 19).all()
    np.testing.assert_array_equal(tavr.hold_last(held, plan), held)


def test_the_window_of_a_clip_is_within_it():
    for latents in range(1, 40):
        for chunks in (1, 2, 5):
            window = tavr.reference_window(latents, chunks, 4)
            assert 0 <= window.start < window.stop <= latents
            assert window.stop - window.start == min(4, latents)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"solver": "unipc", "overshoot": 1.0}, "overshoot=1.0 is of another solver"),
        ({"latent_dtype": "bfloat16"}, "is of solver='unipc'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        chunk.Settings(**settings)


def test_the_solver_is_the_weights_own_unless_another_is_asked_for():
    card, _ = tiny_weights.make_params(overshoot=1.0, text_guidance=2.0)
    own = pretrained.choose_settings(card)
    assert (own.solver, own.overshoot, own.scales.text) == ("overshoot", 1.0, 2.0)
    other = pretrained.choose_settings(card, solver="unipc", text_guidance=1.0)
    assert (other.solver, other.overshoot, other.scales.text) == ("unipc", 0.0, 1.0)
    with pytest.raises(InputError, match=r"came 0\.5 with unipc"):
        pretrained.choose_settings(card, solver="unipc", overshoot=0.5)


def test_the_config_of_tavr_is_its_protocol():
    card = sample.read_card_file(TAVR)
    assert card.config == sizes.LARGE and card.shape == (480, 896)
    assert card.chunk_latents == 21 and card.blank_still
    assert (card.reference_latents, card.segment_latents) == (5, 5)
    settings = pretrained.choose_settings(card)
    assert settings == chunk.Settings(
        num_steps=24,
        shift=5.0,
        solver="unipc",
        scales=guidance.Scales(audio=1.8, text=5.0),
        latent_dtype="bfloat16",
    )
    # From a weights file and back it is the same.
    assert pretrained.read_card(card.to_metadata(), "a file") == card
    euler = pretrained.choose_settings(card, solver="overshoot")
    assert euler.latent_dtype == "float32"


def test_a_config_that_is_no_card_is_named(tmp_path):
    path = tmp_path / "colour.py"
    path.write_text(
        "import ml_collections\ndef get_config():\n"
        "    return ml_collections.ConfigDict({'colour': 3})\n"
    )
    with pytest.raises(InputError, match=r"colour\.py has"):
        sample.read_card_file(path)
    path.write_text("")
    with pytest.raises(InputError, match="defines no get_config"):
        sample.read_card_file(path)
