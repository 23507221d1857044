"""Stage 2, speech to video: first frame + speech, prefix mode, dynamic length.

  python -m avatar_jax.train --config configs/stage2_audio_to_video.py \\
      --config.init_from=runs/stage1 --workdir runs/stage2

Hardware: 2 CPU cores (TINY), or any accelerator. Hours: about 2 on the cores.
Expect: lips follow speech after some hundred steps (`held_out/loss_mouth` falls), then
faces sharpen. New modules end in zeros, so step 0 equals the stage 1 parent.
Data: records of `python -m avatar_jax.prepare`; the procedural ones or your own clips.
"""

import dataclasses

import ml_collections

from avatar_jax import stages
from avatar_jax.data import pipeline
from avatar_jax.models import sizes, speech
from avatar_jax.objectives import flow_matching
from avatar_jax.training import config as config_module
from avatar_jax.training import optimizer


def get_config() -> ml_collections.ConfigDict:
    """Return the values that `--config.<field>=<value>` overrides."""
    model = dataclasses.replace(sizes.TINY, audio_width=speech.LogMel().width)
    train = config_module.TrainConfig(steps=16_000, ema_decay=0.995, log_every=50)
    data = pipeline.PipelineConfig(
        directories=("records",),  # with commas between several
        # (latent frames, clips per batch, share of steps): 1 s and 2 s of video
        buckets=((7, 16, 0.7), (13, 8, 0.3)),
    )
    objective = flow_matching.FlowMatchingConfig(
        # Choice: times towards noise and a heavy mouth, since lips are decided early.
        shift=2.5,
        loss_space=model.prediction,
        floor=model.time_floor,
        mouth_weight=8.0,
    )
    rates = optimizer.OptimizerConfig(
        learning_rate=3e-3, warmup_steps=200, decay_fraction=0.4, final_fraction=0.02
    )
    values = dataclasses.asdict(train) | {
        "model": dataclasses.asdict(model),
        "data": dataclasses.asdict(data),
        "objective": dataclasses.asdict(objective),
        "optimizer": dataclasses.asdict(rates),
        "preview": {"num_batches": 4, "num_clips": 4, "num_steps": 16},
        # Of `sample`: chosen on validation people (docs/tiny.md).
        "sampler": {"num_steps": 4, "overshoot": 1.0, "audio_guidance": 1.75},
    }
    return ml_collections.ConfigDict(values, type_safe=True).lock()


get_run = stages.make_flow_run
