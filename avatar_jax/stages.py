"""From the values of a stage's config file to the objects of its run."""

from typing import Any

import ml_collections

from avatar_jax.data import pipeline, sources
from avatar_jax.evaluation import held_out, training_cases
from avatar_jax.models import codec, dit
from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.objectives import flow_matching, human_aware, personality
from avatar_jax.sampling import pretrained
from avatar_jax.training import config as config_module
from avatar_jax.training import optimizer
from avatar_jax.types import InputError


def make_flow_run(
    config: ml_collections.ConfigDict, *, records: bool = True
) -> config_module.Run:
    """Make a run of flow matching (stages 1 to 3).

    Args:
      config: the fields of `TrainConfig`, and the groups `model` (DiTConfig), `data`
        (PipelineConfig), `objective` (FlowMatchingConfig), `optimizer`
        (OptimizerConfig), `preview` (num_steps, arguments of `make_evaluators`),
        `sampler` (fields of `Card` that the weights carry to `sample`); in stage 3 also
        `human` (HumanAwareConfig) and `cases` (arguments of `CaseEvaluator`).
      records: False: for `avatar_jax.plan`, which compiles the step and has no records;
        the run neither evaluates nor describes its weights.

    Raises:
      InputError: a value that its dataclass refuses.
    """
    build, values = config_module.build, config.to_dict()
    data = build(pipeline.PipelineConfig, values.pop("data"))
    model = dit.AvatarDiT(build(DiTConfig, values.pop("model")))
    _check_reference(model.cfg, data)
    video = codec.DCTCodec(channels=model.cfg.channels)
    flow, judged = _make_flow(model, video, values), values.pop("human", None)
    objective = _add_judges(flow, video, judged)
    rates = build(optimizer.OptimizerConfig, values.pop("optimizer"))
    preview, cases = values.pop("preview"), values.pop("cases", None)
    sampler = values.pop("sampler")
    train = build(config_module.TrainConfig, values)
    card, evaluators = None, ()
    if records:
        card = build(pretrained.Card, sampler | _describe(model.cfg, data, video))
        evaluators = _make_evaluators(flow, video, data, card, preview, cases)
    return config_module.Run(
        train=train,
        objective=objective,
        optimizer=optimizer.make_optimizer(rates, steps=train.steps),
        dataset=lambda index, count: pipeline.make_dataset(
            data, process_index=index, process_count=count
        ),
        describe=lambda batch: {} if card is None else card.to_metadata(),
        evaluators=evaluators,
        frozen_as_made=() if judged is None else ("judges",),
        check_parent=lambda metadata, path: pretrained.check_parent(
            model.cfg, metadata, path
        ),
    )


def _make_flow(
    model: dit.AvatarDiT, video: codec.LatentCodec, values: dict
) -> flow_matching.FlowMatching:
    """Take the group `objective` out of the values and make it."""
    chosen = config_module.build(
        flow_matching.FlowMatchingConfig, values.pop("objective")
    )
    _check_motion(model.cfg, chosen)
    return flow_matching.FlowMatching(
        model,
        video.energy,
        chosen,
        patch=model.cfg.patch,
        motion_width=model.cfg.motion_width,
    )


def _describe(
    config: DiTConfig, data: pipeline.PipelineConfig, video: codec.LatentCodec
) -> dict[str, Any]:
    """Return the fields of the card that follow from model and data."""
    source = sources.ClipSource(data.directories[0], data.split, video.name)
    _, record = source.read_next(range(len(source.sizes)), 0)
    known = {
        "config": config,
        "size": record.latents.shape[2] * video.spatial_stride,
        "chunk_latents": max(latents for latents, *_ in data.buckets),
        "codec": video.name,
        "text_length": len(source.null_text),
    }
    if config.faces and data.reference.segment_latents:
        crops, side, *_ = record.faces.shape
        known |= {"face_crops": crops, "face_size": side * video.spatial_stride}
    if config.identity_width:
        known["identity"] = "procedural"
    if config.motion_width and source.motion_scale is not None:
        mean, std = source.motion_scale.tolist()
        known |= {"motion": "procedural", "motion_mean": mean, "motion_std": std}
    if data.reference.segment_latents:
        known["segment_latents"] = data.reference.segment_latents
    return known | {"blank_still": data.blank_still > 0}


def _add_judges(
    flow: flow_matching.FlowMatching, video: codec.DCTCodec, judged: dict | None
) -> flow_matching.FlowMatching | personality.Personality:
    """Return the objective of stage 3 where the config has judges, else `flow`."""
    if judged is None:
        return flow
    human = config_module.build(human_aware.HumanAwareConfig, judged)
    if flow.config.motion_alone:
        print(
            "objective.motion_alone: no pictures, so no human-aware losses", flush=True
        )
        return flow
    return personality.Personality(flow, video, human)


def _make_evaluators(
    flow: flow_matching.FlowMatching,
    video: codec.DCTCodec,
    data: pipeline.PipelineConfig,
    card: pretrained.Card,
    preview: dict,
    cases: dict | None,
) -> tuple:
    """Return what looks at a run between its steps."""
    settings = pretrained.choose_settings(
        card,
        num_steps=preview.pop("num_steps"),
        audio_guidance=1.0,
        motion_guidance=1.0,
    )
    evaluators = held_out.make_evaluators(
        flow, video, data, settings=settings, **preview
    )
    if cases is None:
        return evaluators
    return (*evaluators, training_cases.CaseEvaluator(card, **cases))


def _check_motion(model: DiTConfig, chosen: flow_matching.FlowMatchingConfig) -> None:
    if chosen.motion_alone and not model.motion_width:
        raise InputError(
            "objective.motion_alone=True needs a motion stream, came "
            f"model.motion_width={model.motion_width}; set it, or leave the other out."
        )


def _check_reference(config: DiTConfig, data: pipeline.PipelineConfig) -> None:
    """Raise InputError where model and data disagree about the reference."""
    if config.reference != bool(data.reference.segment_latents):
        raise InputError(
            f"model.reference={config.reference}, but data.reference.segment_latents="
            f"{data.reference.segment_latents}; set both, or neither."
        )
