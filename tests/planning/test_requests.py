"""What is described for a plan is what sampling makes (~20 s on 2 cores)."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import pytest

from avatar_jax import sharding
from avatar_jax.models import dit_config
from avatar_jax.planning import programs, requests
from avatar_jax.sampling import chunk, passes, placement, pretrained, runs
from avatar_jax.types import Conditions, InputError, count_frames

SIDES, LATENTS, TEXT = (32, 48), 3, 5
TAVR = dit_config.DiTConfig(
    width=32,
    mlp_width=40,
    heads=4,
    layers=2,
    channels=7,
    text_width=9,
    audio_width=11,
    reference=True,
    reference_audio_width=10,
    adapter_rank=6,
)
ALL = dataclasses.replace(TAVR, faces=True, identity_width=8, motion_width=12)
CARD = pretrained.Card(
    config=TAVR,
    size=SIDES[0],
    width=SIDES[1],
    chunk_latents=LATENTS,
    codec="dct7",
    text_length=TEXT,
    reference_latents=2,
    segment_latents=2,
    num_steps=2,
    solver="unipc",
    shift=5.0,
    text_guidance=5.0,
    audio_guidance=1.8,
)
# As `personality` weights: codes, faces, another solver, motion guidance.
MOVING = dataclasses.replace(
    CARD,
    config=ALL,
    face_crops=2,
    face_size=16,
    motion="procedural",
    solver="overshoot",
    text_guidance=1.0,
    motion_guidance=2.0,
)


def make_passes(card, request):
    """Make the passes of a chunk as sampling does, from zeros of the described."""
    settings = pretrained.choose_settings(card)
    make = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)  # noqa: E731
    full = request.passes.full
    params, reference = make(request.params), make(request.reference)
    reference = reference.replace(valid=jnp.ones_like(reference.valid))
    told = Conditions(
        text=make(full.text), null_text=make(full.null_text), reference=reference
    )
    shared = passes.share(
        request.model, params, told, negative_text=None, settings=settings
    )
    grid = full.still_valid.shape
    width = card.config.motion_width
    item = make(full.still)[:, 0].shape
    made = passes.place(
        shared,
        audio=jnp.zeros((1, count_frames(LATENTS), card.config.audio_width)),
        still=jnp.zeros((1, 1, *item[1:])),
        still_valid=jnp.ones(grid, bool),
        prefix=runs.make_empty(requests.OVERLAP, item, width),
        prefix_valid=jnp.full((1,), True),
    )
    noise = runs.make_empty(LATENTS, item, width)
    return made, noise


@pytest.mark.parametrize(
    "card, distinct",
    [(CARD, 2), pytest.param(MOVING, 3, marks=pytest.mark.slow)],
    ids=["tavr", "moving"],
)
def test_passes_are_those_that_sampling_makes(card, distinct):
    mesh = placement.make_mesh(jax.devices()[:1])
    request = requests.describe(card, mesh)
    made, noise = make_passes(card, request)
    chex.assert_trees_all_equal_shapes_and_dtypes(made, request.passes)
    chex.assert_trees_all_equal_shapes_and_dtypes(noise, request.noise)
    shared = [made.full, made.negative, made.without_audio, made.without_motion]
    caches = {id(told.reference.k) for told in shared if told is not None}
    assert len(caches) == len(request.caches) == distinct


def test_parameters_are_rounded_where_they_work_in_bfloat16_alone():
    cfg = dataclasses.replace(TAVR, dtype="bfloat16")
    mesh = placement.make_mesh(jax.devices())
    request = requests.describe(dataclasses.replace(CARD, config=cfg), mesh)
    embed, blocks = request.params["embed"], request.params["blocks"]
    assert embed["text"]["inner"]["kernel"].dtype == jnp.bfloat16
    assert blocks["attention"]["q"]["kernel"].dtype == jnp.bfloat16
    assert embed["time"]["inner"]["kernel"].dtype == jnp.float32
    assert embed["modulation"]["kernel"].dtype == jnp.float32
    assert blocks["modulation"].dtype == jnp.float32
    assert blocks["attention"]["norm_q"]["scale"].dtype == jnp.float32
    # Every device holds an eighth of a kernel, and half of the heads of a cache of 4.
    shape = blocks["attention"]["q"]["kernel"].sharding.shard_shape((2, 32, 32))
    assert shape == (2, 4, 32)


def test_an_array_that_is_given_twice_counts_once():
    mesh = placement.make_mesh(jax.devices()[:1])
    request = requests.describe(CARD, mesh)
    again = programs.count_bytes(request.caches[0])
    rest = request.passes.full.replace(reference=None)
    counted = programs.count_repeats(request.passes)
    # Three passes: one cache twice, and all that a chunk tells them three times.
    assert again < counted < again + 2 * programs.count_bytes(rest) + 1


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"width": 40}, "32x40 pixels do not divide into patches of 16x16"),
        ({"codec": "dct"}, "codec 'dct' is not known"),
    ],
)
def test_what_cannot_be_is_named(changes, words):
    mesh = placement.make_mesh(jax.devices()[:1])
    with pytest.raises(InputError, match=words):
        requests.describe(dataclasses.replace(CARD, **changes), mesh)


def test_settings_of_a_card_reach_the_plan():
    mesh = placement.make_mesh(
        jax.devices(), sharding.MeshConfig(data=1, fsdp=2, context=4)
    )
    request = requests.describe(CARD, mesh)
    assert request.settings == pretrained.choose_settings(CARD)
    assert isinstance(request.passes, chunk.Passes)
    assert request.rows.reference == 2 * 2 * 3
