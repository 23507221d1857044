"""Measure the loader: batches and clips per second, and how long a step must wait.

    python -m benchmarks.loader [--dataset FOLDER] [--latents 7] [--batch 16]

Without a dataset, procedural people are prepared in a temporary folder. The wait is
what a step of --step milliseconds sees of the loader: near 0 where it keeps up.
"""

import argparse
import tempfile
import time

import numpy as np

from avatar_jax import prepare
from avatar_jax.data import pipeline

PEOPLE = 16  # of four clips of 4 s at 64 x 64 pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", help="prepared folder; absent: procedural clips")
    parser.add_argument("--latents", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--step", type=float, default=50.0, help="milliseconds")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        dataset = args.dataset or f"{temporary}/records"
        if not args.dataset:
            prepare.main(["procedural", "--people", str(PEOPLE), "--out", dataset])
        config = pipeline.PipelineConfig(
            directories=(dataset,),
            buckets=((args.latents, args.batch, 1.0),),
            num_workers=args.workers,
        )
        measure(config, args.batches, args.step / 1000)


def measure(config: pipeline.PipelineConfig, batches: int, step: float) -> None:
    """Print the rate of an idle consumer and the wait of a busy one."""
    start = time.perf_counter()
    dataset = pipeline.make_dataset(config, process_index=0, process_count=1)
    iterator = iter(dataset)
    next(iterator)
    print(f"first batch after {time.perf_counter() - start:.2f} s")
    start = time.perf_counter()
    for _ in range(batches):
        next(iterator)
    seconds = time.perf_counter() - start
    size = config.buckets[0][1]
    print(f"{batches / seconds:.1f} batches/s, {batches * size / seconds:.0f} clips/s")
    waits = []
    for _ in range(batches):
        time.sleep(step)
        start = time.perf_counter()
        next(iterator)
        waits.append(time.perf_counter() - start)
    wait = float(np.mean(waits))
    print(
        f"steps of {step * 1e3:.0f} ms wait {100 * wait / (wait + step):.1f} % for data"
    )


if __name__ == "__main__":
    main()
