"""Chunks and their seams on a random network; ~30 s on 2 cores."""

import dataclasses
import functools
import itertools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_weights

from avatar_jax.flow import guidance
from avatar_jax.models.codec import DCTCodec
from avatar_jax.models.dit import AvatarDiT
from avatar_jax.sampling import chunk, video
from avatar_jax.types import (
    Conditions,
    Reference,
    ReferenceCache,
    VideoMotion,
    count_frames,
)

SETTINGS = chunk.Settings(num_steps=2)
BATCH, SIDE = 3, 2  # latent rows and columns


def prepared(plan: video.Plan, seed: int = 0) -> video.Prepared:
    draw = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(draw.normal(size=shape), jnp.float32)

    cfg = tiny_weights.CONFIG
    return video.Prepared(
        still=normal(BATCH, 1, SIDE, SIDE, cfg.channels),
        speech=np.asarray(normal(BATCH, plan.padded_frames, cfg.audio_width)),
        text=normal(BATCH, 3, cfg.text_width),
        null_text=normal(BATCH, 3, cfg.text_width),
    )


def sample(plan, *, settings=SETTINGS, seed=0, inputs=None):
    _, params = tiny_weights.make_params()
    made = video.sample_chunks(
        AvatarDiT(tiny_weights.CONFIG),
        params,
        inputs or prepared(plan),
        plan=plan,
        settings=settings,
        rng=jax.random.key(seed),
    )
    return (sample.latents for sample in made)


@pytest.fixture
def chunks(monkeypatch):
    """Record what every chunk was told and what came out."""
    calls = []
    inner = chunk.sample_chunk

    def recorded(model, params, noise, passes, times, rng, settings):
        out = inner(model, params, noise, passes, times, rng, settings)
        calls.append((noise, passes.full, out.latents))
        return out

    monkeypatch.setattr(chunk, "sample_chunk", recorded)
    return calls


@pytest.mark.parametrize("chunk_latents, overlap", [(3, 2), (7, 2), (5, 1)])
def test_a_plan_covers_the_speech_with_no_chunk_too_many(chunk_latents, overlap):
    for frames in range(1, 120):
        plan = video.Plan(frames, chunk_latents, overlap)
        assert plan.padded_frames >= frames
        if plan.num_chunks > 1:
            assert count_frames(chunk_latents + (plan.num_chunks - 2) * plan.stride) < (
                frames
            )
        last = plan.audio_rows(plan.num_chunks - 1)
        assert last.stop == plan.padded_frames


def test_a_plan_without_room_beside_the_overlap_is_refused():
    with pytest.raises(ValueError, match="longer than the overlap"):
        video.Plan(9, chunk_latents=2, overlap=2)


def test_noise_of_a_latent_depends_on_its_place_in_the_video_alone():
    rng = jax.random.key(5)
    first = video.draw_noise(rng, 0, 5, (2, 3))
    later = video.draw_noise(rng, 3, 4, (2, 3))
    chex.assert_trees_all_equal(first[:, 3:], later[:, :2])
    assert not np.allclose(first[:, 0], first[:, 1])


def test_the_prefix_of_a_chunk_is_the_end_of_the_one_before(chunks):
    plan = video.Plan(30, chunk_latents=4)
    list(sample(plan))
    assert len(chunks) == plan.num_chunks >= 3
    assert not chunks[0][1].prefix_valid.any()
    for (_, _, before), (_, told, after) in itertools.pairwise(chunks):
        assert told.prefix_valid.all()
        chex.assert_trees_all_equal(told.prefix, before[:, -2:])
        chex.assert_trees_all_equal(after[:, :2], before[:, -2:])


def test_later_chunks_are_anchored_to_the_first_latent_and_hear_their_speech(chunks):
    plan = video.Plan(30, chunk_latents=4)
    inputs = prepared(plan)
    list(sample(plan, inputs=inputs))
    chex.assert_trees_all_equal(chunks[0][1].still, inputs.still)
    for index, (_, told, _) in enumerate(chunks):
        start = 4 * plan.stride * index
        rows = inputs.speech[:, start : start + count_frames(4)]
        chex.assert_trees_all_equal(np.asarray(told.audio), rows)
        if index:
            chex.assert_trees_all_equal(told.still, chunks[0][2][:, :1])


def test_overlapping_chunks_share_their_noise(chunks):
    list(sample(video.Plan(30, chunk_latents=4)))
    for (before, *_), (after, *_) in itertools.pairwise(chunks):
        chex.assert_trees_all_equal(after.latents[:, :2], before.latents[:, -2:])


def test_the_chunks_together_have_the_planned_length():
    plan = video.Plan(23, chunk_latents=4)
    latents = jnp.concatenate(list(sample(plan)), axis=1)
    assert count_frames(latents.shape[1]) == plan.padded_frames


def test_the_speech_of_later_chunks_does_not_change_earlier_ones():
    plan = video.Plan(30, chunk_latents=4)
    inputs = prepared(plan)
    speech = inputs.speech.copy()
    speech[:, plan.audio_rows(0).stop :] += 1
    first, second = itertools.islice(sample(plan, inputs=inputs), 2)
    other = inputs.replace(speech=speech)
    same, changed = itertools.islice(sample(plan, inputs=other), 2)
    chex.assert_trees_all_equal(first, same)
    assert not np.allclose(second, changed)


def test_many_chunks_compile_once(monkeypatch):
    counted = chex.assert_max_traces(chunk.sample_chunk.__wrapped__, n=1)
    jitted = jax.jit(counted, static_argnames=("model", "settings"))
    monkeypatch.setattr(chunk, "sample_chunk", jitted)
    for seed, frames in enumerate((30, 55)):
        list(sample(video.Plan(frames, chunk_latents=4), seed=seed))


def test_guidance_moves_the_sample_away_from_the_silent_one():
    plan = video.Plan(9, chunk_latents=3)
    scales = guidance.Scales(audio=3.0, text=2.0)
    plain = next(sample(plan))
    guided = next(sample(plan, settings=chunk.Settings(num_steps=2, scales=scales)))
    assert np.isfinite(guided).all() and not np.allclose(plain, guided)


def test_guidance_by_codes_moves_pictures_away_from_those_without_and_not_the_codes():
    config = dataclasses.replace(tiny_weights.CONFIG, reference=True, motion_width=5)
    _, params = tiny_weights.make_params(config)
    plan, shown = video.Plan(9, chunk_latents=3), jnp.ones(BATCH, bool)
    draw = np.random.default_rng(2).normal
    reference = Reference(
        latents=jnp.ones((BATCH, 2, SIDE, SIDE, config.channels)),
        valid=jnp.ones((BATCH, 2, 1, 1), bool),
        segment_ids=jnp.zeros((BATCH, 2), int),
        motion=jnp.asarray(draw(size=(BATCH, 8, 5)), jnp.float32),
        motion_valid=shown,
    )

    def run(seen, **scales):
        told = prepared(plan).replace(
            motion_valid=seen, reference=reference.replace(motion_valid=seen)
        )
        made = video.sample_chunks(
            AvatarDiT(config),
            params,
            told,
            plan=plan,
            settings=chunk.Settings(num_steps=1, scales=guidance.Scales(**scales)),
            rng=jax.random.key(0),
        )
        return next(made)

    plain, without, guided = run(shown), run(~shown), run(shown, motion=3.0)
    away = plain.latents - without.latents
    assert np.abs(away).max() > 0.01
    assert np.abs(plain.motion - without.motion).max() > 0.01
    # Of one step, what holds for velocities holds for samples.
    np.testing.assert_allclose(guided.latents, plain.latents + 2 * away, atol=1e-4)
    np.testing.assert_allclose(guided.motion, plain.motion, atol=1e-5)


def test_codes_run_ahead_and_are_not_guided():
    seen = []

    class Recorder(nn.Module):
        def __call__(self, x, t, told):
            seen.append((t, told.motion_time))
            loud = 1.0 if told.audio_valid is None else 2.0
            return VideoMotion(loud * x.latents, loud * x.motion)

    noise = VideoMotion(jnp.ones((1, 2, 1, 1, 1)), jnp.ones((1, 5, 1)))
    passes = chunk.Passes(
        full=Conditions(), without_audio=Conditions(audio_valid=jnp.zeros(1, bool))
    )
    settings = chunk.Settings(
        num_steps=2, scales=guidance.Scales(audio=3.0), motion_lead=4.0
    )
    with jax.disable_jit():
        sample = chunk.sample_chunk(
            Recorder(),
            {},
            noise,
            passes,
            jnp.array([1.0, 0.5, 0.0]),
            jax.random.key(0),
            settings,
        )
    # 1/2 of the video is 1/5 of codes that lead by 4; both passes are told.
    told = [(float(t[0]), float(own[0])) for t, own in seen]
    np.testing.assert_allclose(told, [(1, 1)] * 2 + [(0.5, 0.2)] * 2, rtol=1e-6)
    # dx/dt = x for codes; for latents guidance makes it x + 2 (x - 2 x) = -x. The
    # codes' second step is of second order: their velocity fell from 1 to 0.2.
    bent = 0.2 + (0.2 - 1) * 0.2 / 0.8 / 2
    np.testing.assert_allclose(sample.motion, 0.2 - 0.2 * bent, rtol=1e-6)
    np.testing.assert_allclose(sample.latents, (1 + 0.5) * (1 + 0.5), rtol=1e-6)


def test_streamed_decoding_equals_decoding_whole():
    draw = np.random.default_rng(1)
    latents = jnp.asarray(draw.normal(size=(2, 9, 3, 2, 5)), jnp.float32)
    codec = DCTCodec(channels=5)
    parts = [latents[:, :4], latents[:, 4:7], latents[:, 7:]]
    pieces = list(video.decode_stream(codec, parts, num_frames=30))
    assert [piece.shape[1] for piece in pieces] == [13, 12, 5]
    whole = (np.clip(codec.decode(latents), -1, 1) + 1) * 127.5
    streamed = np.concatenate(pieces, axis=1).astype(np.float32)
    assert np.abs(streamed - whole[:, :30]).max() <= 0.51


def test_decoding_holds_no_more_than_the_next_chunk():
    made = []

    def source():
        for index in itertools.count():
            made.append(index)
            yield jnp.zeros((1, 2, 1, 1, 5))

    stream = video.decode_stream(DCTCodec(channels=5), source(), num_frames=10**6)
    for taken in range(1, 30):
        next(stream)
        assert len(made) <= taken + 1


def test_a_reference_is_cached_once_for_all_chunks(monkeypatch):
    config = dataclasses.replace(tiny_weights.CONFIG, reference=True)
    _, params = tiny_weights.make_params(config)
    plan = video.Plan(30, chunk_latents=4)
    reference = Reference(
        latents=jnp.ones((BATCH, 3, SIDE, SIDE, config.channels)),
        valid=jnp.ones((BATCH, 3, 1, 1), bool),
        segment_ids=jnp.zeros((BATCH, 3), int),
    )
    passes = []
    inner = chunk.cache_reference

    @functools.wraps(inner)
    def counted(*args):
        passes.append(args)
        return inner(*args)

    monkeypatch.setattr(chunk, "cache_reference", counted)
    inputs = prepared(plan).replace(reference=reference)
    model = AvatarDiT(config)
    chunks = video.sample_chunks(
        model, params, inputs, plan=plan, settings=SETTINGS, rng=jax.random.key(0)
    )
    assert len(list(chunks)) == plan.num_chunks > 1
    assert len(passes) == 1
    assert isinstance(inner(*passes[0]), ReferenceCache)
