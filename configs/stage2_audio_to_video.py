"""Stage 2, speech to video: first frame + speech, prefix mode, dynamic length.

  python -m avatar_jax.train --config configs/stage2_audio_to_video.py \\
      --config.init_from=runs/stage1_text_to_video --workdir runs/stage2

Hardware: 2 CPU cores (TINY), or any accelerator. Hours: about 2 on the cores.
Expect: lips follow speech after some hundred steps (`held_out/loss_mouth` falls), then
faces sharpen. New modules end in zeros, so step 0 equals the stage 1 parent.
Data: records of `python -m avatar_jax.prepare`; the procedural ones or your own clips.
"""

import dataclasses
from typing import Any

import ml_collections

from avatar_jax.data import pipeline
from avatar_jax.evaluation import held_out
from avatar_jax.models import codec, dit, sizes, speech
from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.objectives import flow_matching
from avatar_jax.sampling import pretrained
from avatar_jax.training import config as config_module
from avatar_jax.training import optimizer
from avatar_jax.types import Clip


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
        "sampler": {"num_steps": 12, "overshoot": 0.5, "audio_guidance": 1.75},
    }
    return ml_collections.ConfigDict(values, type_safe=True).lock()


def get_run(config: ml_collections.ConfigDict) -> config_module.Run:
    """Make the objects of the run."""
    build, values = config_module.build, config.to_dict()
    data = build(pipeline.PipelineConfig, values.pop("data"))
    model = dit.AvatarDiT(build(DiTConfig, values.pop("model")))
    video = codec.DCTCodec(channels=model.cfg.channels)
    objective = flow_matching.FlowMatching(
        model,
        video.energy,
        build(flow_matching.FlowMatchingConfig, values.pop("objective")),
    )
    rates = build(optimizer.OptimizerConfig, values.pop("optimizer"))
    preview = values.pop("preview")
    sampler = values.pop("sampler")
    train = build(config_module.TrainConfig, values)

    def describe(batch: Clip) -> dict[str, Any]:
        card = pretrained.Card(
            config=model.cfg,
            size=batch.target.latents.shape[2] * video.spatial_stride,
            chunk_latents=max(latents for latents, *_ in data.buckets),
            codec=video.name,
            text_length=batch.conditions.text.shape[1],
            **sampler,
        )
        return card.to_metadata()

    return config_module.Run(
        train=train,
        objective=objective,
        optimizer=optimizer.make_optimizer(rates, steps=train.steps),
        dataset=lambda index, count: pipeline.make_dataset(
            data, process_index=index, process_count=count
        ),
        describe=describe,
        evaluators=held_out.make_evaluators(objective, video, data, **preview),
    )
