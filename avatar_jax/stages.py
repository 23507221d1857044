"""From the values of a stage's config file to the objects of its run."""

import dataclasses

import ml_collections

from avatar_jax.data import pipeline
from avatar_jax.evaluation import held_out
from avatar_jax.models import codec, dit
from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.objectives import flow_matching
from avatar_jax.sampling import pretrained
from avatar_jax.training import config as config_module
from avatar_jax.training import optimizer
from avatar_jax.types import Clip


def make_flow_run(config: ml_collections.ConfigDict) -> config_module.Run:
    """Make a run of flow matching (stages 1 and 2).

    Args:
      config: the fields of `TrainConfig`, and the groups `model` (DiTConfig), `data`
        (PipelineConfig), `objective` (FlowMatchingConfig), `optimizer`
        (OptimizerConfig), `preview` (arguments of `held_out.make_evaluators`) and
        `sampler` (fields of `Card` that the weights carry to `sample`).

    Raises:
      InputError: a value that its dataclass refuses.
    """
    build, values = config_module.build, config.to_dict()
    data = build(pipeline.PipelineConfig, values.pop("data"))
    model = dit.AvatarDiT(build(DiTConfig, values.pop("model")))
    video = codec.DCTCodec(channels=model.cfg.channels)
    objective = flow_matching.FlowMatching(
        model,
        video.energy,
        build(flow_matching.FlowMatchingConfig, values.pop("objective")),
        patch=model.cfg.patch,
    )
    rates = build(optimizer.OptimizerConfig, values.pop("optimizer"))
    preview, sampler = values.pop("preview"), values.pop("sampler")
    train = build(config_module.TrainConfig, values)

    known = {
        "config": model.cfg,
        "size": 0,  # until a batch is seen
        "chunk_latents": max(latents for latents, *_ in data.buckets),
        "codec": video.name,
    }
    card = build(pretrained.Card, sampler | known)

    def describe(batch: Clip) -> dict:
        seen = dataclasses.replace(
            card,
            size=batch.target.latents.shape[2] * video.spatial_stride,
            text_length=batch.conditions.text.shape[1],
        )
        return seen.to_metadata()

    return config_module.Run(
        train=train,
        objective=objective,
        optimizer=optimizer.make_optimizer(rates, steps=train.steps),
        dataset=lambda index, count: pipeline.make_dataset(
            data, process_index=index, process_count=count
        ),
        describe=describe,
        evaluators=held_out.make_evaluators(objective, video, data, **preview),
        check_parent=lambda metadata, path: pretrained.check_parent(
            model.cfg, metadata, path
        ),
    )
