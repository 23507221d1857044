"""What sampling holds on its devices, as shapes with their places.

It is what `sampling.video` and `sampling.passes` make of a request for one video: every
reference row counts as valid, caches that are one array there are one object here.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from avatar_jax.models import codec, dit, vae, vae_config
from avatar_jax.planning import flops, programs
from avatar_jax.sampling import chunk, placement, pretrained, video
from avatar_jax.types import (
    FRAMES_PER_LATENT,
    Conditions,
    InputError,
    Reference,
    ReferenceCache,
    VideoMotion,
    count_frames,
)
from avatar_jax.weights import leaves

Tree = Any
OVERLAP = video.Plan.overlap  # latents of a chunk that the one before has made


@dataclasses.dataclass(frozen=True)
class Request:
    """A request for one video with the weights of a card.

    Attributes:
      rows: of the network.
      caches: the distinct ones that `passes` reads.
      codec: with its parameters.
      decoder: the state that it carries from chunk to chunk.
    """

    model: dit.AvatarDiT
    settings: chunk.Settings
    rows: flops.Rows
    params: Tree
    reference: Reference | None
    null_text: jax.ShapeDtypeStruct
    caches: tuple[ReferenceCache, ...]
    passes: chunk.Passes
    noise: VideoMotion
    codec: codec.LatentCodec
    decoder: codec.DecodeState


def describe(card: pretrained.Card, mesh: Mesh) -> Request:
    """Describe a request.

    Raises:
      InputError: a picture that does not divide into patches, or an unknown codec.
    """
    cfg, model = card.config, dit.AvatarDiT(card.config)
    settings, item = pretrained.choose_settings(card), _latent_shape(card)
    params = _describe_parameters(model, card)
    text = _array(1, card.text_length, cfg.text_width)
    reference, caches = _describe_reference(card, item), ()
    if reference is not None:
        run = functools.partial(chunk.cache_reference, model)
        made = jax.eval_shape(run, params, reference, text)
        reference = _keep_whole(reference, mesh)
        where = placement.cache(made, mesh)
        caches = tuple(
            programs.place(made, where) for _ in range(_count_caches(settings))
        )
    latents = _array(item[0], card.chunk_latents, *item[1:])
    codes = None
    if cfg.motion_width:
        codes = _array(1, count_frames(card.chunk_latents), cfg.motion_width)
    decoding, state = _describe_decoder(card, mesh, item)
    return Request(
        model=model,
        settings=settings,
        rows=_count_rows(card, item),
        params=programs.place(params, placement.parameters(params, mesh)),
        reference=reference,
        null_text=_keep_whole(text, mesh),
        caches=caches,
        passes=_describe_passes(card, mesh, item, caches),
        noise=_keep_whole(VideoMotion(latents, codes), mesh),
        codec=decoding,
        decoder=state,
    )


def _describe_parameters(model: dit.AvatarDiT, card: pretrained.Card) -> Tree:
    """Describe weights as `convert` leaves them: fine leaves stay float32."""

    def describe(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        dtype = leaves.choose_dtype(name, (), card.config.dtype)
        return jax.ShapeDtypeStruct(leaf.shape, dtype)

    return jax.tree_util.tree_map_with_path(
        describe, pretrained.expected_shapes(model, card)
    )


def _array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _keep_whole(tree: Tree, mesh: Mesh) -> Tree:
    return programs.place(tree, placement.whole(tree, mesh))


def _latent_shape(card: pretrained.Card) -> tuple[int, int, int, int]:
    """Return the shape (B, H, W, C) of one latent."""
    cfg, pixels = card.config, card.shape
    side = cfg.patch * cfg.spatial_stride
    if any(length % side or length < side for length in pixels):
        raise InputError(
            f"pictures of {pixels[0]}x{pixels[1]} pixels do not divide into patches of "
            f"{side}x{side}; use multiples of {side}."
        )
    return (1, *(length // cfg.spatial_stride for length in pixels), cfg.channels)


def _count_rows(card: pretrained.Card, item: tuple[int, ...]) -> flops.Rows:
    cfg, (_, height, width, _) = card.config, item
    whole, rest = divmod(card.reference_latents, card.segment_latents)
    segments = [card.segment_latents] * whole + [rest] * bool(rest)
    face = (card.face_size // (cfg.patch * cfg.spatial_stride)) ** 2
    return flops.Rows(
        latents=card.chunk_latents,
        cells=height * width // cfg.patch**2,
        text=card.text_length,
        segments=tuple(segments) if cfg.reference else (),
        faces=(face,) * card.face_crops if cfg.faces else (),
    )


def _describe_reference(
    card: pretrained.Card, item: tuple[int, ...]
) -> Reference | None:
    cfg, latents = card.config, card.reference_latents
    if not cfg.reference or not latents:
        return None
    batch, height, width, channels = item
    grid = (height // cfg.patch, width // cfg.patch)
    frames = FRAMES_PER_LATENT * latents
    side = card.face_size // cfg.spatial_stride
    heard, moving, known = (
        cfg.reference_audio_width,
        cfg.motion_width,
        cfg.identity_width,
    )
    faces = cfg.faces and card.face_crops
    return Reference(
        latents=_array(batch, latents, height, width, channels),
        valid=_array(batch, latents, *grid, dtype=jnp.bool_),
        segment_ids=_array(batch, latents, dtype=jnp.int32),
        audio=_array(batch, frames, heard) if heard else None,
        motion=_array(batch, frames, moving) if moving else None,
        identity=_array(batch, known) if known else None,
        faces=_array(batch, card.face_crops, side, side, channels) if faces else None,
    )


def _count_caches(settings: chunk.Settings) -> int:
    """Count the distinct conditions of a reference that the passes read."""
    return 1 + (settings.scales.audio != 1) + (settings.scales.motion != 1)


def _describe_passes(
    card: pretrained.Card,
    mesh: Mesh,
    item: tuple[int, ...],
    caches: tuple[ReferenceCache, ...],
) -> chunk.Passes:
    """Describe what `passes.share` and `passes.place` tell each pass of a chunk."""
    cfg, (batch, height, width, channels) = card.config, item
    settings, text = pretrained.choose_settings(card), card.text_length
    prompt = _array(batch, text, cfg.text_width)
    nothing = _array(batch, dtype=jnp.bool_)
    left = list(caches)
    full = Conditions(text=prompt, null_text=prompt)
    full = _keep_whole(full, mesh).replace(reference=left.pop(0) if left else None)

    def drop(name: str) -> Conditions:
        dropped = full.replace(**{name: _keep_whole(nothing, mesh)})
        return dropped.replace(reference=left.pop(0)) if left else dropped

    scales = settings.scales
    shared = chunk.Passes(
        full,
        without_audio=drop("audio_valid") if scales.audio != 1 else None,
        without_motion=drop("motion_valid") if scales.motion != 1 else None,
        negative=full if scales.text != 1 else None,
    )
    codes = cfg.motion_width
    prefix = VideoMotion(
        _array(batch, OVERLAP, height, width, channels),
        _array(batch, count_frames(OVERLAP), codes) if codes else None,
    )
    heard = _array(batch, count_frames(card.chunk_latents), cfg.audio_width or 1)
    seen = (batch, height // cfg.patch, width // cfg.patch)
    told = _keep_whole(
        {
            "audio": heard,
            "still": _array(batch, 1, height, width, channels),
            "still_valid": _array(*seen, dtype=jnp.bool_),
            "prefix": prefix.latents,
            "prefix_motion": prefix.motion,
            "prefix_valid": nothing,
        },
        mesh,
    )
    return jax.tree.map(
        lambda conditions: conditions.replace(**told),
        shared,
        is_leaf=lambda leaf: isinstance(leaf, Conditions),
    )


def _describe_decoder(
    card: pretrained.Card, mesh: Mesh, item: tuple[int, ...]
) -> tuple[codec.LatentCodec, codec.DecodeState]:
    """Describe the codec and its state after a first latent."""
    made = _describe_codec(card.codec, mesh.devices.flat[0].platform)
    first = _array(item[0], 1, *item[1:])

    def begin(decoder: codec.LatentCodec, latent: jax.Array) -> codec.DecodeState:
        return decoder.decode_next(decoder.init_decode(), latent)[0]

    state = jax.eval_shape(begin, made, first)
    state = programs.place(state, placement.picture_rows(state, mesh))
    return _keep_whole(made, mesh), state


def _describe_codec(name: str, platform: str) -> codec.LatentCodec:
    if name.startswith("dct") and name[3:].isdigit():
        return codec.DCTCodec(channels=int(name[3:]))
    if name != "wan21":
        raise InputError(f"codec {name!r} is not known; use dct<channels> or wan21.")
    # TPUs have no float16 units.
    digits = "bfloat16" if platform == "tpu" else "float16"
    cfg = vae_config.WanVAEConfig(decode_dtype=digits)
    params = jax.eval_shape(lambda: vae.init_params(cfg, jax.random.key(0)))
    return vae.WanCodec(params=params, cfg=cfg)
