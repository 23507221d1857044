"""Formulas against the compiler's count of the same program (~40 s on 2 cores)."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from avatar_jax.models import block, dit
from avatar_jax.planning import flops
from avatar_jax.types import Conditions, Reference, VideoMotion, count_frames

# Of one layer, so that the scan over layers is no loop, which the compiler would count
# once. Wide, since the formulas leave out work that does not grow with the width.
PLAIN = dit.DiTConfig(
    width=384,
    mlp_width=640,
    heads=4,
    layers=1,
    channels=6,
    text_width=48,
    attention="xla",
)
TAVR = dataclasses.replace(
    PLAIN, audio_width=64, reference=True, reference_audio_width=32, adapter_rank=24
)
ALL = dataclasses.replace(
    TAVR,
    faces=True,
    identity_width=10,
    motion_width=12,
    detail_width=32,
    still_concat=True,
    prediction="clean",
)
CONFIGS = {"plain": PLAIN, "tavr": TAVR, "all": ALL}
LATENTS, GRID, TEXT, REFERENCE, CROPS, SIDE = 5, (8, 12), 20, 3, 2, 6
CELLS = GRID[0] * GRID[1] // 4


def make_rows(cfg):
    return flops.Rows(
        latents=LATENTS,
        cells=CELLS,
        text=TEXT,
        segments=(REFERENCE,) if cfg.reference else (),
        faces=(SIDE**2 // 4,) * CROPS if cfg.faces else (),
    )


def make_reference(cfg):
    frames = 4 * REFERENCE
    return Reference(
        latents=jnp.zeros((1, REFERENCE, *GRID, cfg.channels)),
        valid=jnp.ones((1, REFERENCE, GRID[0] // 2, GRID[1] // 2), bool),
        segment_ids=jnp.zeros((1, REFERENCE), jnp.int32),
        audio=jnp.zeros((1, frames, cfg.reference_audio_width)),
        motion=jnp.zeros((1, frames, cfg.motion_width)) if cfg.motion_width else None,
        identity=jnp.ones((1, cfg.identity_width)) if cfg.identity_width else None,
        faces=jnp.zeros((1, CROPS, SIDE, SIDE, cfg.channels)) if cfg.faces else None,
    )


def make_inputs(cfg):
    codes = cfg.motion_width
    frames = count_frames(LATENTS)
    noisy = VideoMotion(
        jnp.zeros((1, LATENTS, *GRID, cfg.channels)),
        jnp.zeros((1, frames, codes)) if codes else None,
    )
    text = jnp.zeros((1, TEXT, cfg.text_width))
    conditions = Conditions(
        text=text,
        null_text=text,
        audio=jnp.zeros((1, frames, cfg.audio_width)) if cfg.audio_width else None,
    )
    return noisy, jnp.ones((1,)), conditions


def count_compiled(call, *arguments):
    return jax.jit(call).lower(*arguments).compile().cost_analysis()["flops"]


def check(counted, formula):
    """Only what grows with rows alone may be missing: 10 % at this small width."""
    assert formula <= counted <= 1.1 * formula, (counted, formula, counted / formula)


@pytest.fixture(params=CONFIGS)
def network(request):
    cfg = CONFIGS[request.param]
    model = dit.AvatarDiT(cfg)
    inputs = make_inputs(cfg)
    rng = jax.random.key(0)
    params = jax.eval_shape(lambda: model.init(rng, *inputs)["params"])
    return cfg, model, params, inputs


@pytest.mark.slow
def test_the_target_pass(network):
    cfg, model, params, (noisy, t, conditions) = network
    if cfg.reference:
        cache = jax.eval_shape(
            lambda p: model.apply(
                {"params": p},
                make_reference(cfg),
                conditions.null_text,
                method="cache_reference",
            ),
            params,
        )
        conditions = conditions.replace(reference=cache)

    def run(params, noisy, t, conditions):
        return model.apply({"params": params}, noisy, t, conditions)

    counted = count_compiled(run, params, noisy, t, conditions)
    check(counted, flops.target_pass(cfg, make_rows(cfg)))


@pytest.mark.slow
def test_the_reference_pass(network):
    cfg, model, params, (_, _, conditions) = network
    if not cfg.reference:
        assert flops.reference_pass(cfg, make_rows(cfg)) == 0
        return

    def whole_pass(model, reference, text):
        """Return the rows too: what only they need would be left out as unused."""
        x, context = model.embed.reference(reference, text)
        layer = jax.tree.map(lambda leaf: leaf[0], model.blocks)
        return model._run(layer, block.Block.reference, x, context)

    def run(params, reference, text):
        return model.apply({"params": params}, reference, text, method=whole_pass)

    counted = count_compiled(run, params, make_reference(cfg), conditions.null_text)
    rows = make_rows(cfg)
    # XLA's attention multiplies every row with every other and masks.
    blind = 4 * rows.reference**2 - 4 * sum(
        n**2 for n in (REFERENCE * CELLS, *rows.faces)
    )
    check(counted, flops.reference_pass(cfg, rows) + blind * cfg.width)


def test_blocks_count_as_often_as_there_are():
    rows = make_rows(TAVR)
    one, three = (
        flops.target_pass(dataclasses.replace(TAVR, layers=n), rows) for n in (1, 3)
    )
    two = flops.target_pass(dataclasses.replace(TAVR, layers=2), rows)
    assert three - two == two - one > 0


@pytest.mark.slow
def test_a_step_is_three_passes_and_what_is_fed_back():
    rows = make_rows(ALL)
    forward = flops.target_pass(ALL, rows) + flops.reference_pass(ALL, rows)
    assert flops.train_step(ALL, rows, clips=2) == 6 * forward
    assert flops.train_step(ALL, rows, clips=2, self_feeding=0.5) == 7 * forward


def test_muon_counts_each_layer_of_a_stack_by_its_shorter_side():
    single = 5 * (4 * 3**2 * 7 + 2 * 3**3)
    assert flops.muon([(3, 7), (7, 3)]) == 2 * single
    assert flops.muon([(4, 7, 3)]) == 4 * single
