"""What happens to a request between its bytes and its answer, whatever the web framework."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from luban import console, machine
from luban.columns.base import Answer
from luban.errors import LubanError, Problem
from luban.stages.serve import rows as reading
from luban.stages.serve.batcher import Batcher, Job
from luban.stages.serve.engine import Guarded, share_processors
from luban.stages.serve.metrics import Metrics
from luban.stages.serve.refusal import Refusal, placed, plain

DROPPED = 64_000_000  # bytes of a body above its limit that are read on, so that a client that sends first hears why
LOG_EVERY = 1.0  # seconds between two lines of the log, so that no client can fill the disk


@dataclass(frozen=True)
class Limits:
    """The settings of `serve`: see there."""

    api_key: str | None = None
    batch: int = 32
    queue: int = 256
    deadline: float = 30.0
    body: int = 0  # `serve` settles it by what the model reads
    workers: int = 0
    hosts: tuple[str, ...] = ()
    graceful: float = 30.0
    threads: int = 1  # of each worker
    precision: str = "fp32"  # that texts are written in

    def settled(self) -> Limits:
        """With one worker a processor unless told otherwise, and each worker's share of the processors."""
        allowed = machine.threads()
        workers = self.workers or allowed
        return replace(self, workers=workers, threads=max(1, allowed // workers))


@dataclass
class Call:
    """A request as the framework hands it over: its headers, its body in pieces, and a wait for its client to go."""

    headers: Mapping[str, str]
    stream: AsyncIterator[bytes]
    gone: Callable[[], Awaitable[None]]


class Service:
    """One model, its queue and its limits. `local`: bound to this machine only. `draining`: no new work is taken."""

    def __init__(self, engine: Guarded, limits: Limits, *, local: bool = True):
        self.engine, self.limits, self.local = engine, limits, local
        self.metrics = Metrics()
        self.inside, self.draining = 0, False
        self.desk: Any = None  # writes, where the model does (`luban.stages.serve.openai`)
        self._logged, self._hidden = 0.0, 0
        self.batcher = Batcher(
            partial(engine.answers, batch=limits.batch), workers=limits.workers, batch=limits.batch,
            start=partial(share_processors, limits.threads), ran=self.metrics.batches.add,
        )  # fmt: skip

    # -- the door --------------------------------------------------------------------------------------------------
    def enter(self) -> None:
        """Take a request in. Raises Refusal: 503 when draining, 429 when as many as `queue` are inside."""
        if self.draining:
            raise Refusal(503, "serve.draining", again=5, close=True)
        if self.inside >= self.limits.queue:
            again = min(60, max(1, math.ceil(self.batcher.wait())))
            raise Refusal(429, "serve.full", again=again, limit=self.limits.queue)
        self.inside += 1

    def leave(self) -> None:
        self.inside -= 1

    @property
    def waiting(self) -> int:
        """Requests that nobody has begun to answer."""
        return len(self.batcher.waiting) + (len(self.desk.waiting) if self.desk else 0)

    def close(self) -> None:
        self.batcher.close()
        if self.desk:
            self.desk.close()

    # -- the work --------------------------------------------------------------------------------------------------
    async def predict(self, call: Call) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer. 422 where no row could be answered. Raises Refusal."""
        self._answers()
        until = time.monotonic() + self.limits.deadline
        asked = await self._asked(call, until, self.limits.batch)
        problems = self._checked(asked.rows, self.engine.inputs)
        good = [i for i, p in enumerate(problems) if p is None]
        results: list[Any] = list(problems)
        if good:
            try:
                found = await self.wait(Job([asked.rows[i] for i in good]), call, until)
            except LubanError as e:
                return 422, {"error": plain(e.problems[0])}
            for i, f in zip(good, found):
                results[i] = placed(f, f"rows[{i}].{f.place}".rstrip(".")) if isinstance(f, Problem) else f
        answered = sum(not isinstance(r, Problem) for r in results)
        self.metrics.rows["answered"] += answered
        self.metrics.rows["refused"] += len(results) - answered
        body = {"rows": [_shown(r) for r in results]}
        return (200, body) if answered else (422, {"error": plain(results[0]), **body})

    async def explain(self, call: Call) -> tuple[int, dict[str, Any]]:
        """The numbers of an explanation. Raises Refusal where the engine cannot explain, or a row cannot be read."""
        self._answers()
        explainer = self.engine.explainer
        if explainer is None:
            raise Refusal(404, "serve.cannot_explain", engine=self.engine.name)
        until = time.monotonic() + self.limits.deadline
        most = min(explainer.most, self.limits.batch)
        asked = await self._asked(call, until, most, explainer.settings)
        names = self.engine.explaining(asked.rows)
        wrong = next((p for p in self._checked(asked.rows, names) if p is not None), None)
        if wrong is not None:
            return 422, {"error": plain(wrong)}
        for name, value in asked.settings.items():
            flag = name in explainer.flags
            if not isinstance(value, bool if flag else (str, int, float, bool)):
                raise Refusal(422, "serve.bad_flag" if flag else "serve.bad_setting", place=name)
        try:
            return 200, await self.wait(Job(call=partial(explainer, asked.rows, asked.settings, names)), call, until)
        except LubanError as e:
            return 422, {"error": plain(e.problems[0])}

    def _answers(self) -> None:
        """Refuse what needs an output where there is none: such a model gives vectors."""
        if not self.engine.outputs:
            raise Refusal(404, "serve.answers_nothing")

    async def _asked(self, call: Call, until: float, most: int, settings: Sequence[str] = ()) -> reading.Asked:
        return reading.parse(await self.body(call, until), self.engine.inputs, most, settings)

    async def body(self, call: Call, until: float) -> bytes:
        """All of a request's body. Raises Refusal for one that is no JSON by its head, too large or too slow.

        What is too large is dropped as it comes: to hang up on a client that still sends would lose it the answer.
        """
        limit = self.limits.body
        size = reading.check_head(call.headers)
        if size > limit and (size > limit + DROPPED or "expect" in call.headers):  # it waits for a word before it sends
            raise reading.too_large(limit)
        body, came = bytearray(), 0
        try:
            async with asyncio.timeout(until - time.monotonic()):
                async for piece in call.stream:
                    came += len(piece)
                    if came > limit + DROPPED:
                        raise reading.too_large(limit)
                    if max(came, size) > limit:
                        body.clear()
                    else:
                        body += piece
        except TimeoutError:
            raise Refusal(408, "serve.slow_body", limit=self.limits.deadline, close=True) from None
        if came > limit:
            raise reading.too_large(limit, close=False)
        return bytes(body)

    def _checked(self, rows: Sequence[Any], names: Sequence[str]) -> list[Problem | None]:
        """What is wrong with each row that must have columns of these names."""
        free = [n for n in names if n in self.engine.columns and self.engine.columns[n].drawn]
        return [reading.check(r, i, names, self.engine.outputs, free) for i, r in enumerate(rows)]

    async def wait(self, job: Job, call: Call, until: float) -> Any:
        """The result of a job, unless its client goes or its time runs out first: then nobody computes it any more."""
        self.batcher.submit(job)
        gone = asyncio.ensure_future(call.gone())
        left = max(0.0, until - time.monotonic())
        try:
            done, _ = await asyncio.wait({job.future, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if job.future in done:
            error = job.future.exception()
            if error is not None and not isinstance(error, LubanError):
                self.failed(error)
                raise Refusal(500, "serve.failed") from error
            return job.future.result()
        waited = job in self.batcher.waiting
        job.future.cancel()
        if gone in done:
            self.metrics.dropped += 1
            raise Refusal(499, "serve.client_gone", close=True)
        if waited:
            again = min(60, max(1, math.ceil(self.batcher.wait())))
            raise Refusal(503, "serve.no_time", again=again, limit=self.limits.deadline)
        raise Refusal(504, "serve.too_slow", limit=self.limits.deadline)

    # -- what the operator sees -----------------------------------------------------------------------------------
    def failed(self, error: BaseException) -> None:
        """The engine failed: counted always, told once a second at most, in one line."""
        self.metrics.failures += 1
        now = time.monotonic()
        if now - self._logged < LOG_EVERY:
            self._hidden += 1
            return
        console.tell("serve.failed_log", kind=type(error).__name__, reason=str(error)[:300], hidden=self._hidden)
        self._logged, self._hidden = now, 0


def _shown(result: Mapping[str, Answer] | Problem) -> dict[str, Any]:
    if isinstance(result, Problem):
        return {"error": plain(result)}
    return {"answers": {n: _answer(a) for n, a in result.items()}}


def _answer(found: Answer) -> dict[str, Any]:
    candidates = [{"value": v, "probability": p} for v, p in found.candidates]
    return {"value": found.value, "probability": found.probability, "candidates": candidates, **found.details}


def to_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
