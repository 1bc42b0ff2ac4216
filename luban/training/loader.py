"""Batches made ahead of the step that uses them, by loader workers.

A batch is a function of its place, so how many workers make it, and in which order they end, changes nothing. Workers are
threads: gathering, padding and augmenting are NumPy calls that let others run, nothing has to be copied between processes,
and no signal can leave one behind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

AHEAD = 4  # batches that each worker may be ahead


def ahead(make: Callable[[Any], Any], places: Iterable[Any], workers: int = 0) -> Iterator[Any]:
    """`make(place)` for each place, in order; with `workers`, made by so many threads while earlier ones are used.

    An error comes where its result would have come. Leaving the iteration ends the threads.
    """
    if not workers:
        yield from map(make, places)
        return
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(workers, "loader") as pool:
        try:
            for place in places:
                waiting.append(pool.submit(make, place))
                if len(waiting) > AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
