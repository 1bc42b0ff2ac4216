"""Requests that arrive together are computed together, and a lone one never waits for company.

As many threads as there are processors, each taking what is queued at that moment: no timer, no window. While all are
busy the queue grows, and the next free thread takes up to `batch` rows of it at once. All bookkeeping is done on the
event loop, so there are no locks; only `compute` runs in a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Job:
    """One request's rows, or a call of its own that is computed alone. `future` is done when somebody still waits."""

    rows: Sequence[Any] = ()
    call: Callable[[], Any] | None = None
    future: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """`submit` a Job on the event loop and await its future.

    compute: rows -> as many results, called in a thread. failed: told of each error of `compute`.
    """

    def __init__(
        self,
        compute: Callable[[list[Any]], Sequence[Any]],
        *,
        workers: int,
        batch: int,
        start: Callable[[], Any] | None = None,
        ran: Callable[[int], None] = lambda rows: None,
    ):
        self.compute, self.workers, self.batch, self.ran = compute, workers, batch, ran
        self.waiting: deque[Job] = deque()
        self.busy = 0
        self.spent = 0.05  # seconds that one batch takes, averaged over the last few
        self.pool = ThreadPoolExecutor(workers, "luban-serve", start)
        self.tasks: set[asyncio.Task[None]] = set()

    def submit(self, job: Job) -> None:
        self.waiting.append(job)
        if self.busy < self.workers:
            self.busy += 1
            task = asyncio.get_running_loop().create_task(self._work())
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    def wait(self) -> float:
        """Seconds until a request that came now would be begun, roughly."""
        rows = sum(len(j.rows) or self.batch for j in self.waiting)
        return self.spent * rows / self.batch / self.workers

    async def _work(self) -> None:
        while jobs := self._take():
            await self._run(jobs)
        self.busy -= 1

    def _take(self) -> list[Job]:
        """The next jobs that somebody still waits for, `batch` rows at most."""
        jobs: list[Job] = []
        rows = 0
        while self.waiting:
            job = self.waiting[0]
            if job.future.done():
                self.waiting.popleft()
                continue
            if jobs and (job.call or jobs[0].call or rows + len(job.rows) > self.batch):
                break
            jobs.append(self.waiting.popleft())
            rows += len(job.rows)
        return jobs

    async def _run(self, jobs: list[Job]) -> None:
        rows = [row for job in jobs for row in job.rows]
        call = jobs[0].call or (lambda: self.compute(rows))
        began = time.monotonic()
        running = asyncio.get_running_loop().run_in_executor(self.pool, call)
        await asyncio.wait([running])
        error = running.exception()
        if error is not None and len(jobs) > 1:  # a neighbour's row must not cost anyone else the answer
            for job in jobs:
                if not job.future.done():
                    await self._run([job])
            return
        if rows:
            self.ran(len(rows))
            self.spent += 0.2 * (time.monotonic() - began - self.spent)
        start = 0
        for job in jobs:
            if not job.future.done():
                if error is not None:
                    job.future.set_exception(error)
                else:
                    result = running.result()
                    job.future.set_result(result if job.call else result[start : start + len(job.rows)])
            start += len(job.rows)

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
