"""Several processes for work on the host, in the order of the items."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager


@contextmanager
def open_pool(workers: int, start: Callable[[], None]) -> Iterator[Callable]:
    """Give a lazy, ordered `map` over `workers` processes; 1 or less: this process.

    Args:
      start: called once in each new process before its first item.
    """
    if workers <= 1:
        yield map
        return
    # Spawned, because a fork of a process that runs JAX may hang.
    context = multiprocessing.get_context("spawn")
    executor = futures.ProcessPoolExecutor(workers, context, start)
    try:
        yield executor.map
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
