"""Chunks, guidance and solver make the original's videos (~2 min; needs ../shared)."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from einops import rearrange

from avatar_jax.flow import guidance, unipc
from avatar_jax.models import dit
from avatar_jax.sampling import chunk, tavr, video
from avatar_jax.types import Conditions, Reference, VideoMotion, count_frames

ATOL = 1e-4  # guidance multiplies errors of 1e-5 by up to 10
BFLOAT16_ATOL = 0.05  # one rounding the other way is 0.03 in the end


@pytest.fixture
def steps(monkeypatch):
    """Record what the guidance gets and gives and where each step ends."""
    seen = {"cond": [], "aud_uncond": [], "txt_uncond": [], "guided": [], "after": []}
    guide, step = guidance.guide, unipc.step

    def keep(name, tree):
        if tree is not None:
            append = seen[name].append
            jax.debug.callback(
                lambda leaf: append(np.asarray(leaf[0])), tree.latents, ordered=True
            )

    def recorded_guide(full, *, without_audio, negative, **others):
        guided = guide(full, without_audio=without_audio, negative=negative, **others)
        keep("cond", full)
        keep("aud_uncond", without_audio)
        keep("txt_uncond", negative)
        keep("guided", guided)
        return guided

    def recorded_step(state, velocity, weights, *, bfloat16):
        keep("after", step(state, velocity, weights).sample)
        return step(state, velocity, weights, bfloat16=bfloat16)

    monkeypatch.setattr(guidance, "guide", recorded_guide)
    monkeypatch.setattr(unipc, "step", recorded_step)
    jax.clear_caches()
    yield seen
    jax.clear_caches()


@pytest.mark.parametrize("case", cases.find("sampler"))
def test_a_video_and_each_of_its_steps_are_the_originals(case, steps):
    told, tensors = cases.load(case)
    settings, plan = _settings(told), _plan(told)
    cfg, params = transformers.tavr(case)
    runs = video.sample_chunks(
        dit.AvatarDiT(cfg),
        params,
        _prepare(told, tensors, plan, cfg.patch),
        plan=plan,
        settings=settings,
        rng=jax.random.key(0),
        noise=_noise(tensors, plan),
    )
    canvas = np.concatenate([run.latents[0] for run in runs])
    jax.effects_barrier()
    atol = ATOL if settings.latent_dtype == "float32" else BFLOAT16_ATOL
    np.testing.assert_allclose(canvas, _ours(tensors["out.canvas"]), atol=atol)
    for name, came in steps.items():
        theirs = "latents_after" if name == "after" else name
        for i, values in enumerate(came):
            k, step = divmod(i, settings.num_steps)
            expected = tensors.get(f"chunk{k}.step{step}.{theirs}")
            if expected is not None:
                ours = values[-expected.shape[1] :]  # there without the prefix
                np.testing.assert_allclose(
                    ours, _ours(expected), atol=atol, err_msg=f"{name} {k} {step}"
                )
    assert len(steps["after"]) == plan.num_chunks * settings.num_steps


@pytest.mark.parametrize("case", cases.find("sampler"))
def test_the_levels_of_a_sampler_are_the_originals(case):
    told, tensors = cases.load(case)
    settings = _settings(told)
    sigmas, timesteps = unipc.schedule(settings.num_steps, shift=settings.shift)
    np.testing.assert_allclose(sigmas, tensors["out.sigmas"], atol=1e-6)
    np.testing.assert_array_equal(timesteps, tensors["out.timesteps"])


@pytest.mark.parametrize("case", cases.find("sampler"))
def test_the_noise_of_a_chunk_is_its_part_of_the_canvas(case):
    told, tensors = cases.load(case)
    plan, noise = _plan(told), _noise(tensors, _plan(told)).latents[0]
    for k in range(plan.num_chunks):
        expected = _ours(tensors[f"noise.chunk{k}"])
        np.testing.assert_array_equal(noise[plan.read(k)], expected)


@pytest.mark.parametrize("case", cases.find("plan"))
def test_chunks_and_windows_lie_where_the_original_has_them(case):
    told, tensors = cases.load(case)
    length = told["constants"]["generated_latents"]
    plans = {}
    for latents, *row in tensors["out.plan_rows"].tolist():
        plan = plans[latents] = tavr.make_plan(count_frames(latents), length)
        came = [plan.num_chunks, plan.stride, plan.chunk_latents, plan.canvas_latents]
        assert came == row
    for latents, k, start, offset, first, stop in tensors["out.chunk_rows"].tolist():
        read, written = plans[latents].read(k), plans[latents].written(k)
        assert (read.start, written.start - read.start) == (start, offset)
        assert (written.start, written.stop) == (first, stop)
    window = told["constants"]["reference_latents"]
    for latents, chunks, start, stop in tensors["out.videoref_window_rows"].tolist():
        came = tavr.reference_window(latents, chunks, window)
        assert (came.start, came.stop) == (start, stop)


@pytest.mark.parametrize("case", cases.find("slice_audio"))
def test_a_chunk_hears_its_rows_and_the_last_is_held(case):
    told, tensors = cases.load(case)
    frames = count_frames(told["meta"]["latents"])
    plan = tavr.make_plan(frames, told["constants"]["generated_latents"])
    held = tavr.hold_last(tensors["in.features"], plan)
    for k in range(plan.num_chunks):
        expected = tensors[f"out.chunk{k}"]
        np.testing.assert_array_equal(held[:, plan.audio_rows(k)], expected)


@pytest.mark.parametrize("case", cases.find("valid_masks"))
def test_rows_are_valid_where_the_originals_are(case):
    told, tensors = cases.load(case)
    constants = told["constants"]
    patch, generated = constants["patch_size"][-1], constants["generated_latents"]
    for i in range(told["meta"]["n"]):
        faces = tensors[f"in.face_masks{i}"]
        still = tavr.background_patches(tensors[f"in.foreground{i}"], patch)
        for name, seen in ("first", still), ("later", np.ones_like(still)):
            own = np.ones((generated, *faces.shape[1:]), bool)
            came = np.concatenate([own, seen, faces])
            expected = tensors[f"out.case{i}.{name}_chunk"]
            np.testing.assert_array_equal(came, expected)


@pytest.mark.parametrize("case", cases.find("hide_ref"))
def test_the_reference_is_hidden_when_the_original_hides_it(case):
    told, tensors = cases.load(case)
    frames = tensors["in.videoref"].shape[1]
    masks = tensors["in.valid_masks"]
    reference = tavr.make_reference(
        transformers.latents(tensors["in.videoref"]),
        jnp.asarray(masks[-frames:])[None],
        transformers.optional(tensors, "in.videoref_audio"),
    )
    for i, (step, count, start) in enumerate(told["meta"]["triples"]):
        settings = chunk.Settings(count, 5.0, "unipc", reference_from=start)
        times = chunk.schedule(settings)
        shown = chunk.is_reference_shown(times[step][None], times, start)
        assert bool(shown[0]) != bool(tensors[f"out.{i}.audio_is_none"])
        hidden = chunk.hide_reference(Conditions(reference=reference), ~shown).reference
        assert isinstance(hidden, Reference)
        expected = tensors[f"out.{i}.valid_masks"]
        np.testing.assert_array_equal(hidden.valid[0], expected[-frames:])
        np.testing.assert_array_equal(masks[:-frames], expected[:-frames])
        assert bool(hidden.audio_valid[0]) == bool(shown[0])


def _settings(told):
    asked, meta = told["meta"]["sampling"], told["meta"]
    return chunk.Settings(
        num_steps=asked["steps"],
        shift=asked["shift"],
        solver="unipc",
        scales=guidance.Scales(audio=asked["aud_scale"], text=asked["txt_scale"]),
        latent_dtype="float32" if meta["variant"] == "f32" else "bfloat16",
        reference_from=asked["start_use_videoref_step"],
    )


def _plan(told):
    length = told["constants"]["generated_latents"]
    return tavr.make_plan(told["meta"]["num_frames"], length)


def _prepare(told, tensors, plan, patch):
    def pad(name):
        rows = told["constants"]["TEXT_LEN"] - len(tensors[name])
        return jnp.asarray(np.pad(tensors[name], ((0, rows), (0, 0))))[None]

    return video.Prepared(
        still=jnp.asarray(_ours(tensors["in.target_latents"]))[None],
        speech=tavr.hold_last(tensors["in.driving_features"], plan),
        text=pad("in.txt_prompt"),
        null_text=pad("in.txt_null"),
        negative_text=pad("in.txt_negative"),
        reference=tavr.make_reference(
            jnp.asarray(_ours(tensors["in.reference_latents"]))[None],
            jnp.asarray(tensors["in.face_masks"])[None],
            transformers.optional(tensors, "in.reference_audio"),
        ),
        still_valid=jnp.asarray(
            tavr.background_patches(tensors["in.foreground"], patch)
        ),
    )


def _noise(tensors, plan):
    """Return the canvas, and after it the second draw of the last chunk."""
    canvas = _ours(tensors["noise.canvas"])
    last = plan.num_chunks - 1
    missing = plan.noise_latents - len(canvas)
    if missing:
        drawn = _ours(tensors[f"noise.chunk{last}"])[-missing:]
        canvas = np.concatenate([canvas, drawn])
    return VideoMotion(jnp.asarray(canvas)[None])


def _ours(array):
    return rearrange(array, "C F H W -> F H W C")
