"""The loop that every stage shares: batches, steps, reports, checkpoints, weights.

The workdir holds `config.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/`,
`previews/` and at the end `weights.safetensors`, the averaged weights.
"""

import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import grain
import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from avatar_jax import checkpoint, sharding
from avatar_jax.training import config as config_module
from avatar_jax.training import metrics, state, step
from avatar_jax.training.config import Run
from avatar_jax.types import InputError


def train(
    run: Run,
    workdir: str | Path,
    *,
    resolved: dict,
    devices: Sequence[jax.Device] | None = None,
) -> state.TrainState:
    """Train to the end, or to SIGTERM; go on from the workdir's newest checkpoint.

    Args:
      resolved: the run's config as plain values; stored, and compared on a resume.
      devices: default all.

    Raises:
      InputError: a workdir of another config, a batch that does not split.
      NonFiniteLossError: names the step.
    """
    workdir = Path(workdir)
    config_module.check_workdir(workdir, resolved)
    mesh = sharding.make_mesh(run.train.mesh, devices)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        stack.enter_context(nn.logical_axis_rules(sharding.LOGICAL_RULES))
        batches = Batches(run, mesh)
        stack.callback(batches.close)
        example = batches.peek()
        manager = stack.enter_context(
            checkpoint.make_manager(workdir, keep=run.train.keep_checkpoints)
        )
        if manager.latest_step() is not None and not run.train.resume:
            raise InputError(
                f"{workdir} holds checkpoints up to step {manager.latest_step()} and "
                "resume is off; use another --workdir or --config.resume=True."
            )
        current = state.create(run, mesh, example)
        if jax.process_index() == 0:
            config_module.write_config(workdir, resolved)
        if manager.latest_step() is not None:
            current = checkpoint.restore(manager, current, batches.iterator)
            _say(f"resumed at step {int(current.step)} of {workdir}")
        log = stack.enter_context(contextlib.closing(metrics.Log(workdir)))
        current = _Loop(run, workdir, mesh, batches, manager, log).run_from(current)
        if int(current.step) == run.train.steps:
            _export(run, workdir, current, run.describe(example))
        return current


class Batches:
    """This process's batches, placed on the mesh."""

    def __init__(self, run: Run, mesh: jax.sharding.Mesh) -> None:
        self._run, self._mesh = run, mesh
        dataset = run.dataset(jax.process_index(), jax.process_count())
        self.iterator: grain.DatasetIterator = iter(dataset)
        self.seconds_waited = 0.0

    def peek(self) -> Any:
        """Return the first batch (host arrays) without consuming it."""
        start = self.iterator.get_state()
        batch = self._fetch()
        self.iterator.set_state(start)
        return batch

    def next(self) -> tuple[Any, int]:
        """Return the next batch on the devices, and its tokens over all processes."""
        start = time.perf_counter()
        batch = self._fetch()
        self.seconds_waited = time.perf_counter() - start
        tokens = self._run.objective.count_tokens(batch) * jax.process_count()
        return sharding.put_batch(batch, self._mesh), tokens

    def _fetch(self) -> Any:
        try:
            batch = next(self.iterator)
        except StopIteration:
            raise InputError(
                "the dataset ended; training needs an endless one (Grain's repeat), "
                "or it holds fewer clips than a batch."
            ) from None
        rows = jax.tree.leaves(batch)[0].shape[0] * jax.process_count()
        sharding.check_batch(
            rows, self._mesh, micro_batches=self._run.train.micro_batches
        )
        return batch

    def close(self) -> None:
        """Stop the worker processes."""
        self.iterator.close()


class _Loop:
    """The objects that one run uses in every step."""

    def __init__(
        self,
        run: Run,
        workdir: Path,
        mesh: jax.sharding.Mesh,
        batches: Batches,
        manager: ocp.CheckpointManager,
        log: metrics.Log,
    ) -> None:
        self.run, self.workdir, self.mesh = run, workdir, mesh
        self.batches, self.manager, self.log = batches, manager, log

    def run_from(self, current: state.TrainState) -> state.TrainState:
        config = self.run.train
        take_step = step.jit_step(self.run, current)
        num_params = sum(leaf.size for leaf in jax.tree.leaves(current.params))
        meter = metrics.Meter(num_params=num_params)
        with _catch_sigterm() as signals:
            for number in range(int(current.step) + 1, config.steps + 1):
                batch, tokens = self.batches.next()
                current, values = take_step(current, batch)
                waited = self.batches.seconds_waited
                meter.add(number, values, tokens=tokens, waited=waited)
                last = number == config.steps
                if last or number % config.log_every == 0 or number == 1:
                    self._report(number, meter.report())
                if last or number % config.evaluate_every == 0:
                    self._evaluate(number, current)
                stop = self._must_stop(number, signals)
                if last or stop or number % config.checkpoint_every == 0:
                    meter.flush()  # never save a state of a non-finite loss
                    checkpoint.save(
                        self.manager, number, current, self.batches.iterator
                    )
                if stop:
                    self.manager.wait_until_finished()
                    _say(f"SIGTERM: saved step {number}; the same command goes on.")
                    return current
        self.manager.wait_until_finished()
        return current

    def _report(self, number: int, report: dict[str, float]) -> None:
        if jax.process_index() == 0:
            self.log.scalars(number, report)
        _say(metrics.format_progress(number, self.run.train.steps, report))

    def _evaluate(self, number: int, current: state.TrainState) -> None:
        for evaluate in self.run.evaluators:
            scalars, videos = evaluate(number, current.ema)
            if jax.process_index() != 0:
                continue
            if scalars:
                self.log.scalars(number, scalars)
            for name, frames in videos.items():
                self.log.video(number, name, frames)

    def _must_stop(self, number: int, signals: list[int]) -> bool:
        if jax.process_count() > 1:  # all processes must agree on the step
            return self.manager.reached_preemption(number)
        return bool(signals)


def _export(run: Run, workdir: Path, current: state.TrainState, metadata: dict) -> None:
    """Write the averaged weights of the run's product."""
    params = current.ema[run.export]
    if jax.process_count() > 1:
        params = multihost_utils.process_allgather(params, tiled=True)
    if jax.process_index() == 0:
        path = workdir / checkpoint.WEIGHTS_NAME
        checkpoint.save_weights(path, params, metadata)
        _say(f"wrote {path}")


@contextlib.contextmanager
def _catch_sigterm() -> Iterator[list[int]]:
    """Collect SIGTERM instead of dying of it.

    Where there are several processes, the handler of `jax.distributed` stays: it tells
    all of them, and `CheckpointManager.reached_preemption` asks it.
    """
    signals: list[int] = []
    if jax.process_count() > 1:
        yield signals
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    try:
        yield signals
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)
