"""The train step of a config, lowered for devices that are not here.

State and batch are described, not made: no records are read and no weights drawn. The
batch has the parts that the loader gives for this model and data, all of them present.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from avatar_jax import sharding
from avatar_jax.data import transforms
from avatar_jax.models import umt5
from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.planning import flops, plans, programs
from avatar_jax.training import optimizer, step
from avatar_jax.training import state as state_module
from avatar_jax.training.config import Run
from avatar_jax.types import (
    FRAMES_PER_LATENT,
    Clip,
    Conditions,
    Reference,
    VideoMotion,
    count_frames,
)

Tree = Any
PIXELS = (64, 64)  # of the procedural clips; a config does not say it
# What a block keeps for its backward pass, roughly: rows of the width, of the MLP.
BLOCK_WIDTHS, BLOCK_MLPS = 14, 3


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """What a batch of all devices together holds.

    Attributes:
      clips: of the batch.
      latents: of each clip.
      height, width: of the latents, cells.
      text_rows: of each prompt.
      reference_latents, segment_latents: of each reference; 0: none.
      face_crops, face_side: of each reference; crops of so many cells.
    """

    clips: int
    latents: int
    height: int
    width: int
    text_rows: int
    reference_latents: int = 0
    segment_latents: int = 0
    face_crops: int = 4
    face_side: int = 16


def describe_batch(cfg: DiTConfig, shape: BatchShape) -> Clip:
    """Return a batch as the loader forms it, as shapes."""
    height, width, channels = shape.height, shape.width, cfg.channels
    clips, grid = shape.clips, (height // cfg.patch, width // cfg.patch)
    frames = count_frames(shape.latents)

    def array(*rest: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((clips, *rest), dtype)

    flag, codes = array(dtype=jnp.bool_), cfg.motion_width
    conditions = Conditions(
        text=array(shape.text_rows, cfg.text_width),
        null_text=array(shape.text_rows, cfg.text_width),
        audio=array(frames, cfg.audio_width) if cfg.audio_width else None,
        audio_valid=flag if cfg.audio_width else None,
        still=array(1, height, width, channels),
        still_valid=array(*grid, dtype=jnp.bool_),
        prefix=array(transforms.PREFIX, height, width, channels),
        prefix_valid=flag,
        prefix_motion=array(count_frames(transforms.PREFIX), codes) if codes else None,
        motion_valid=flag,
        reference=_describe_reference(cfg, shape) if cfg.reference else None,
    )
    mask = array(shape.latents, height, width)
    return Clip(
        target=VideoMotion(
            latents=array(shape.latents, height, width, channels),
            motion=array(frames, codes) if codes else None,
        ),
        conditions=conditions,
        mouth_mask=mask,
        face_mask=mask,
    )


def _describe_reference(cfg: DiTConfig, shape: BatchShape) -> Reference:
    latents, grid = shape.reference_latents, (shape.height, shape.width)
    cells = tuple(side // cfg.patch for side in grid)
    frames, crops = FRAMES_PER_LATENT * latents, shape.face_crops

    def array(*rest: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((shape.clips, *rest), dtype)

    flag = array(dtype=jnp.bool_)
    heard, moving = cfg.reference_audio_width, cfg.motion_width
    face = (crops, shape.face_side, shape.face_side, cfg.channels)
    return Reference(
        latents=array(latents, *grid, cfg.channels),
        valid=array(latents, *cells, dtype=jnp.bool_),
        segment_ids=array(latents, dtype=jnp.int32),
        audio=array(frames, heard) if heard else None,
        audio_valid=flag if heard else None,
        motion=array(frames, moving) if moving else None,
        motion_valid=flag if moving else None,
        identity=array(cfg.identity_width) if cfg.identity_width else None,
        faces=array(*face) if cfg.faces else None,
        faces_valid=array(crops, dtype=jnp.bool_) if cfg.faces else None,
    )


def shape_state(run: Run, batch: Tree) -> state_module.TrainState:
    """Return the state that `training.state` makes, as shapes."""
    row = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), batch
    )

    def make(row: Clip) -> state_module.TrainState:
        params, frozen = run.objective.init(jax.random.key(0), row)
        return state_module.TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            frozen=frozen,
            ema=params,
            opt_state=run.optimizer.init(params),
        )

    return jax.eval_shape(make, row)


def describe_state(run: Run, mesh: Mesh, batch: Tree) -> state_module.TrainState:
    """Lay the state on the mesh as `training.state` does."""
    made = shape_state(run, batch)
    return programs.place(made, sharding.parameter_shardings(made, mesh))


def place_batch(batch: Clip, mesh: Mesh) -> Clip:
    """Lay a described batch on the mesh as the loop does."""
    rows = NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES))
    return programs.place(batch, jax.tree.map(lambda _: rows, batch))


def lower(run: Run, mesh: Mesh, batch: Clip) -> tuple[jax.stages.Lowered, Tree]:
    """Lower the step that the loop compiles; also return the described state."""
    micro = run.train.micro_batches
    sharding.check_batch(batch.target.latents.shape[0], mesh, micro_batches=micro)
    state = describe_state(run, mesh, batch)
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.LOGICAL_RULES):
        lowered = step.jit_step(run, state).lower(state, place_batch(batch, mesh))
    return lowered, state


def plan(run: Run, cfg: DiTConfig, shape: BatchShape, mesh: Mesh) -> plans.Programs:
    """Compile the train step of a run."""
    batch = describe_batch(cfg, shape)
    lowered, state = lower(run, mesh, batch)
    feeding = getattr(_flow(run).config, "self_feeding", 0.0)
    compiled = programs.compile_program(
        "step",
        lowered,
        devices=list(mesh.devices.flat),
        model_flops=flops.train_step(
            cfg, count_rows(cfg, shape), clips=shape.clips, self_feeding=feeding
        ),
    )
    parts = {
        "parameters": programs.count_bytes(state.params),
        "averages": programs.count_bytes(state.ema),
        "optimiser": programs.count_bytes(state.opt_state),
        "frozen": programs.count_bytes(state.frozen),
        "batch": programs.count_bytes(place_batch(batch, mesh)),
    }
    matrices = [
        leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
        if optimizer.is_muon(path, leaf)
    ]
    phases = (plans.Phase(compiled),)
    return plans.Programs(
        parts, phases, main="step", optimizer_flops=flops.muon(matrices)
    )


def count_rows(cfg: DiTConfig, shape: BatchShape) -> flops.Rows:
    """Count the rows of one clip; every reference row counts as valid."""
    cells = shape.height * shape.width // cfg.patch**2
    segments = shape.reference_latents // max(shape.segment_latents, 1)
    face = (shape.face_side // cfg.patch) ** 2
    return flops.Rows(
        latents=shape.latents,
        cells=cells,
        text=shape.text_rows,
        segments=(shape.segment_latents,) * segments if cfg.reference else (),
        faces=(face,) * shape.face_crops if cfg.faces else (),
    )


def count_text_rows(cfg: DiTConfig) -> int:
    """Return the rows of a prompt: umT5's where the model reads its width."""
    return 512 if cfg.text_width == umt5.UMT5Config().width else 64


def choose_mesh(
    run: Run, cfg: DiTConfig, shape: BatchShape, *, num_devices: int, usable: int
) -> sharding.MeshConfig:
    """Spread clips and parameters over `fsdp`, and rows over `context` where needed.

    The largest `fsdp` with which state and activations seem to fit is taken, since rows
    on several devices cost traffic in every block. The compiler has the last word.

    Args:
      usable: bytes of a device.
    """
    made = shape_state(run, describe_batch(cfg, shape))
    state = programs.count_bytes(made) + programs.count_bytes(made.params)  # gradients
    rows = count_rows(cfg, shape)
    clip = (rows.target + rows.reference) * cfg.compute_dtype.itemsize
    block = BLOCK_WIDTHS * cfg.width + BLOCK_MLPS * cfg.mlp_width
    clip *= cfg.layers * cfg.width + block if cfg.remat else cfg.layers * block
    parts = run.train.micro_batches
    fitting = [
        n
        for n in range(1, num_devices + 1)
        if num_devices % n == 0 and shape.clips % (n * parts) == 0
    ] or [1]
    for fsdp in reversed(fitting):
        clips = shape.clips // (fsdp * parts)
        if state / fsdp + clips * clip * fsdp / num_devices <= usable:
            break
    return sharding.MeshConfig(data=1, fsdp=fsdp, context=num_devices // fsdp)


def _flow(run: Run) -> Any:
    return getattr(run.objective, "flow", run.objective)
