"""The programs of sampling, compiled for devices that are not here.

A request is three programs: the reference pass, once for each distinct condition of the
reference; a chunk, with all solver steps and guidance passes in it; the decoding of a
chunk's latents. What a program does not read, lies beside it.
"""

import math

import jax
from jax.sharding import Mesh

from avatar_jax.models import umt5, wav2vec2
from avatar_jax.planning import flops, plans, programs, requests
from avatar_jax.sampling import chunk, placement, pretrained
from avatar_jax.weights import umt5 as umt5_weights
from avatar_jax.weights import wav2vec2 as wav2vec2_weights


def plan(card: pretrained.Card, mesh: Mesh) -> plans.Programs:
    """Compile the programs of a request.

    Raises:
      InputError: a picture that does not divide into patches, or an unknown codec.
    """
    request = requests.describe(card, mesh)
    parts = {
        "parameters": programs.count_bytes(request.params),
        "reference caches": programs.count_bytes(request.caches),
        "decoder": programs.count_bytes((request.codec, request.decoder)),
    }
    with placement.entered(mesh):
        made = [_plan_chunk(request, mesh), _plan_decoding(request, mesh)]
        if request.caches:
            made.insert(0, _plan_reference(request, mesh))
    return plans.Programs(parts, tuple(made), main="chunk", encoders=_encoders(card))


def _plan_reference(request: requests.Request, mesh: Mesh) -> plans.Phase:
    held = (request.params, request.reference, request.null_text)
    lowered = chunk.cache_reference.lower(request.model, *held)
    compiled = programs.compile_program(
        "reference",
        lowered,
        devices=list(mesh.devices.flat),
        model_flops=flops.reference_pass(request.model.cfg, request.rows),
    )
    others = (request.caches[1:], request.codec)
    return plans.Phase(compiled, beside=programs.count_bytes(others))


def _plan_chunk(request: requests.Request, mesh: Mesh) -> plans.Phase:
    settings, whole = request.settings, placement.whole
    key = jax.eval_shape(lambda: jax.random.key(0))
    times = jax.eval_shape(lambda: chunk.schedule(settings))
    lowered = chunk.sample_chunk.lower(
        request.model,
        request.params,
        request.noise,
        request.passes,
        programs.place(times, whole(times, mesh)),
        programs.place(key, whole(key, mesh)),
        settings,
    )
    calls = sum(
        told is not None
        for told in (
            request.passes.full,
            request.passes.without_audio,
            request.passes.negative,
            request.passes.without_motion,
        )
    )
    once = flops.target_pass(request.model.cfg, request.rows)
    compiled = programs.compile_program(
        "chunk",
        lowered,
        devices=list(mesh.devices.flat),
        model_flops=settings.num_steps * calls * once,
        twice=programs.count_repeats(request.passes),
    )
    others = (request.codec, request.decoder)
    return plans.Phase(compiled, beside=programs.count_bytes(others))


def _plan_decoding(request: requests.Request, mesh: Mesh) -> plans.Phase:
    latents = request.noise.latents
    lowered = chunk.decode_pixels.lower(request.codec, request.decoder, latents)
    compiled = programs.compile_program(
        "decode", lowered, devices=list(mesh.devices.flat), model_flops=0
    )
    others = (request.params, request.caches)
    return plans.Phase(compiled, beside=programs.count_bytes(others))


def _encoders(card: pretrained.Card) -> dict[str, int]:
    """Count the bytes of the frozen encoders that a card names, by formula."""
    found = {}
    if card.text == "umt5":  # in bfloat16
        entries = umt5_weights.entries(umt5.UMT5Config())
        found["umT5"] = 2 * sum(math.prod(entry.shape) for entry in entries)
    if card.speech == "wav2vec2":  # in float32
        entries = wav2vec2_weights.entries(wav2vec2.Wav2Vec2Config())
        found["wav2vec 2.0"] = 4 * sum(math.prod(entry.shape) for entry in entries)
    return found
