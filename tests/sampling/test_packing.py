"""Reference rows that show nobody cost nothing; ~10 s on 2 cores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tiny_weights
from avatar_kernels.reference_attention import visits
from test_video import BATCH, SIDE, prepared

from avatar_jax.models import tokens
from avatar_jax.models.dit import AvatarDiT
from avatar_jax.sampling import chunk, video
from avatar_jax.types import Reference


def test_rows_that_show_nobody_are_not_cached_and_change_nothing(monkeypatch):
    config = dataclasses.replace(tiny_weights.CONFIG, reference=True)
    _, params = tiny_weights.make_params(config)
    plan, draw = video.Plan(9, chunk_latents=3), np.random.default_rng(2)
    shape = (BATCH, 8, SIDE, SIDE, config.channels)
    valid = np.zeros((BATCH, 8, 1, 1), bool)
    valid[0, 1], valid[1, 2:4], valid[2, ::3] = True, True, True
    told = prepared(plan).replace(
        reference=Reference(
            latents=jnp.asarray(draw.normal(size=shape), jnp.float32),
            valid=jnp.asarray(valid),
            segment_ids=jnp.repeat(jnp.arange(2)[None], 4, 1).repeat(BATCH, 0),
        )
    )

    def run():
        return next(
            video.sample_chunks(
                AvatarDiT(config),
                params,
                told,
                plan=plan,
                settings=chunk.Settings(num_steps=2),
                rng=jax.random.key(0),
            )
        )

    kept, cache = [], chunk.cache_reference

    def recorded(*args):
        made = cache(*args)
        kept.append(made.k.shape[2])
        return made

    monkeypatch.setattr(chunk, "cache_reference", recorded)
    packed = run()
    monkeypatch.setattr(tokens, "choose_capacity", lambda reference, patch: 8)
    whole = run()
    assert kept == [3, 8]
    np.testing.assert_allclose(packed.latents, whole.latents, atol=1e-5)


def test_a_capacity_holds_the_valid_rows_of_every_sample_and_all_face_crops():
    valid = np.zeros((2, 4, 5, 5), bool)
    valid[0, 0], valid[1, :2, 0] = True, True  # 25 and 10 of 100 rows
    reference = Reference(
        latents=np.zeros((2, 4, 10, 10, 3)),
        valid=valid,
        segment_ids=np.zeros((2, 4), int),
        faces=np.zeros((2, 3, 4, 4, 3)),  # 12 rows
    )
    assert tokens.choose_capacity(reference, patch=2) == 3 * 14  # eighths of 112
    hidden = reference.replace(faces_valid=np.zeros((2, 3), bool))
    assert tokens.choose_capacity(hidden, patch=2) == 2 * 14
    nobody = hidden.replace(valid=np.zeros_like(valid))
    assert tokens.choose_capacity(nobody, patch=2) == 14
    everything = reference.replace(valid=np.ones_like(valid))
    assert tokens.choose_capacity(everything, patch=2) == 112


def test_what_is_not_valid_is_of_the_last_segment_and_meets_no_other():
    rows, each = 64, 16
    valid = jnp.arange(rows)[None] % 4 == 0
    packed = tokens.pack(
        tokens.ReferenceRows(
            patches=jnp.zeros((1, rows, 2)),
            turn=jnp.zeros((1, rows, 3)),
            latent=jnp.zeros((1, rows), int),
            segment_ids=jnp.arange(rows)[None] // each,
            is_face=jnp.zeros((1, rows), bool),
            valid=valid,
        ),
        2 * each,
    )
    ids = packed.segment_ids[0].tolist()
    assert ids == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [3] * 16
    some, _ = visits.by_segment(packed.valid, packed.segment_ids, q=4, kv=4)
    assert some[0].sum(1).tolist() == [1] * 8  # block of keys 3, for all that follow
