"""The one thread that writes: requests join between two tokens, and leave when they are done or nobody waits any more.

All requests are written by one `Writer`. The event loop hands Orders over and is woken when one of them has something new;
what an Order shows is replaced whole, so that no reader sees half of a change. A beam search takes one step of its own after
each of theirs, so that nobody waits for the whole of it.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from luban.generation.writing import Text, Writer, searching


@dataclass(eq=False)
class Order:
    """The texts of one request. `shown`: of each what is sure to stay, and the reason of its end or ""."""

    texts: list[Text]
    batch: Any = None  # the inputs of each
    told: bool = False  # wants to hear of every token
    beams: int = 1  # beginnings of each text that are kept
    search: Iterator[None] | None = None  # where there are several, once it has begun
    shown: tuple[tuple[str, str], ...] = ()
    error: BaseException | None = None
    begun: bool = False
    left: bool = False  # nobody waits for it
    news: asyncio.Event = field(default_factory=asyncio.Event)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    @property
    def rows(self) -> int:
        """Texts that are written at once for it."""
        return self.beams * sum(1 for t in self.texts if not t.reason)

    @property
    def done(self) -> bool:
        return self.error is not None or (bool(self.shown) and all(reason for _, reason in self.shown))

    def show(self) -> None:
        self.shown = tuple((t.text, t.reason) for t in self.texts)
        if self.told or self.done:
            self._wake()

    def fail(self, error: BaseException) -> None:
        self.error = error
        self._wake()

    def _wake(self) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.news.set)


class Desk:
    """`submit` an Order, watch its `news`, `leave` it at the end. `rows`: texts that are written at once."""

    def __init__(self, network: Any, rows: int, start: Callable[[], Any] = lambda: None, precision: str = "fp32"):
        self.network, self.rows, self.start, self.precision = network, rows, start, precision
        self.waiting: deque[Order] = deque()
        self.inside: list[Order] = []
        self.changed = threading.Condition()
        self.closed = False
        self.thread: threading.Thread | None = None

    def submit(self, order: Order) -> None:
        with self.changed:
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, name="luban-write", daemon=True)
                self.thread.start()
            self.waiting.append(order)
            self.changed.notify()

    def leave(self, order: Order) -> None:
        with self.changed:
            order.left = True
            if order in self.waiting:
                self.waiting.remove(order)
            self.changed.notify()

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify()
        if self.thread is not None:
            self.thread.join(10)

    # -- in the thread ---------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        self.start()
        writer = Writer(self.network, self.precision)
        while True:
            with self.changed:
                while not (self.closed or self.waiting or self.inside):
                    self.changed.wait()
                if self.closed:
                    return
                gone = [o for o in self.inside if o.left]
                new = self._next(gone)
            for order in gone:
                self._out(writer, order)
            for order in new:
                self._in(writer, order)
            writer = self._step(writer)

    def _next(self, gone: list[Order]) -> list[Order]:
        """Those that there is room for, in the order in which they came."""
        busy = sum(o.rows for o in self.inside if o not in gone)
        found: list[Order] = []
        while self.waiting and busy + self.waiting[0].rows <= self.rows:
            found.append(self.waiting.popleft())
            busy += found[-1].rows
        return found

    def _in(self, writer: Writer, order: Order) -> None:
        order.begun = True
        try:
            if order.beams > 1:
                order.search = searching(self.network, order.texts, order.beams, order.batch, self.precision)
            else:
                writer.add(order.texts, order.batch)
            self.inside.append(order)
        except Exception as e:  # a neighbour's request must not cost anyone else the answer
            order.fail(e)

    def _out(self, writer: Writer, order: Order) -> None:
        for t in order.texts:
            writer.drop(t)
        self.inside.remove(order)

    def _step(self, writer: Writer) -> Writer:
        try:
            writer.step()
        except Exception as e:
            for order in self.inside:
                if order.search is None:
                    order.fail(e)
            writer = Writer(self.network, self.precision)
        for order in self.inside:
            self._search(order)
        for order in self.inside:
            order.show()
        self.inside = [o for o in self.inside if not o.done]
        return writer

    def _search(self, order: Order) -> None:
        """One more token of a search."""
        try:
            if order.search is not None:
                next(order.search, None)
        except Exception as e:
            order.fail(e)


def again(waiting: int) -> int:
    """Seconds after which a request that found no room may come again, a guess."""
    return min(60, max(1, math.ceil(waiting / 8)))
