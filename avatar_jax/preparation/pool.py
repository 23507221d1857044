"""Several processes for work on the host, in the order of the items."""

import collections
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from contextlib import contextmanager

AHEAD = 4  # items per process


@contextmanager
def open_pool(workers: int, start: Callable[[], None]) -> Iterator[Callable]:
    """Give an ordered `map` over `workers` processes; 1 or less: this process, lazily.

    Args:
      start: called once in each new process before its first item.
    """
    if workers <= 1:
        yield map
        return
    # Spawned, because a fork of a process that runs JAX may hang.
    context = multiprocessing.get_context("spawn")
    executor = futures.ProcessPoolExecutor(workers, context, start)

    def run(function: Callable, items: Iterable) -> Iterator:
        """Keep a few items per process under way, so that results do not pile up."""
        under_way: collections.deque = collections.deque()
        for item in items:
            under_way.append(executor.submit(function, item))
            if len(under_way) > AHEAD * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    try:
        yield run
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
