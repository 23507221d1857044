"""What a plan describes is what the loader and the loop make (~30 s on 2 cores)."""

import sys
from pathlib import Path

import chex
import jax
import pytest

from avatar_jax import sharding, stages
from avatar_jax.objectives import human_aware
from avatar_jax.planning import training
from avatar_jax.training import state

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "objectives"))
from random_judges import random_judges
from stage_runs import PERSONAL, SIDE, SMALL, STAGES, make_config, write_records


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planned")
    write_records(folder / "records")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES[1:])
def test_batch_and_state_are_those_of_a_real_run(stage, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(human_aware, "load_judges", lambda: random_judges())
    config = make_config(stage, *SMALL, *(PERSONAL if stage == STAGES[2] else []))
    planned_run = stages.make_flow_run(config, records=False)
    assert planned_run.evaluators == ()
    with config.unlocked():
        if "cases" in config:
            del config["cases"]
    run = stages.make_flow_run(config)
    batch = next(iter(run.dataset(0, 1)))
    cfg = (
        run.objective.flow.model.cfg if stage == STAGES[2] else run.objective.model.cfg
    )
    personal = stage == STAGES[2]
    shape = training.BatchShape(
        clips=4,
        latents=5,
        height=SIDE,
        width=SIDE,
        text_rows=training.count_text_rows(cfg),
        reference_latents=4 if personal else 0,
        segment_latents=2 if personal else 0,
        face_crops=2,
        face_side=SIDE,
    )
    described = training.describe_batch(cfg, shape)
    unused = () if cfg.motion_width else ("motion", "prefix_motion")
    chex.assert_trees_all_equal_shapes_and_dtypes(
        _drop(described, unused), _drop(batch, unused)
    )
    mesh = sharding.make_mesh(
        sharding.MeshConfig(data=1, fsdp=2, context=1), jax.devices()[:2]
    )
    with jax.set_mesh(mesh):
        made = state.create(run, mesh, batch)
    planned = training.describe_state(planned_run, mesh, described)
    chex.assert_trees_all_equal_shapes_and_dtypes(made, planned)
    assert jax.tree.all(
        jax.tree.map(
            lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), made, planned
        )
    )


def _drop(batch, names):
    """Leave out codes, which records may hold for stages that do not read them."""
    if not names:
        return batch
    return batch.replace(
        target=batch.target.replace(motion=None),
        conditions=batch.conditions.replace(prefix_motion=None),
    )


def test_the_mesh_spreads_clips_first_and_rows_where_memory_asks_for_it():
    run = stages.make_flow_run(make_config(STAGES[1], *SMALL), records=False)
    cfg = run.objective.model.cfg
    shape = training.BatchShape(8, 5, SIDE, SIDE, 64)

    def choose(usable):
        return training.choose_mesh(run, cfg, shape, num_devices=16, usable=usable)

    assert choose(10**12) == sharding.MeshConfig(data=1, fsdp=8, context=2)
    assert choose(1) == sharding.MeshConfig(data=1, fsdp=1, context=16)
