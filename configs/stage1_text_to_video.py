"""Stage 1, text and first frame to video: how faces look and move, no speech yet.

  python -m avatar_jax.train --config configs/stage1_text_to_video.py \\
      --workdir runs/stage1

Hardware: 2 CPU cores (TINY), or any accelerator. Hours: under 1 on the cores.
Expect: the loss halves within 100 steps; previews show a clear face after some hundred.
Half of the clips have no first frame, so that text alone is learnt beside it.
Data: records of `python -m avatar_jax.prepare`; the procedural ones or your own clips.
"""

import dataclasses

import ml_collections

from avatar_jax import stages
from avatar_jax.data import pipeline
from avatar_jax.models import sizes
from avatar_jax.objectives import flow_matching
from avatar_jax.training import config as config_module
from avatar_jax.training import optimizer


def get_config() -> ml_collections.ConfigDict:
    """Return the values that `--config.<field>=<value>` overrides."""
    model = sizes.TINY
    train = config_module.TrainConfig(steps=8_000, ema_decay=0.995, log_every=50)
    data = pipeline.PipelineConfig(
        directories=("records",),  # with commas between several
        # (latent frames, clips per batch, share of steps): 0.5 s and 1 s of video
        buckets=((4, 32, 0.5), (7, 16, 0.5)),
        still_dropout=0.5,
        prefix_probability=0.0,
    )
    objective = flow_matching.FlowMatchingConfig(
        loss_space=model.prediction, floor=model.time_floor, mouth_weight=1.0
    )
    rates = optimizer.OptimizerConfig(
        learning_rate=2e-3, warmup_steps=200, decay_fraction=0.4, final_fraction=0.02
    )
    values = dataclasses.asdict(train) | {
        "model": dataclasses.asdict(model),
        "data": dataclasses.asdict(data),
        "objective": dataclasses.asdict(objective),
        "optimizer": dataclasses.asdict(rates),
        "preview": {"num_batches": 4, "num_clips": 4, "num_steps": 16},
        "sampler": {},
    }
    return ml_collections.ConfigDict(values, type_safe=True).lock()


get_run = stages.make_flow_run
