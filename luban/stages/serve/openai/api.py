"""A model behind the API: what is asked for goes to the desk or the batcher, and comes back whole or piece by piece."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import numpy as np
import torch

from luban import machine
from luban.columns.answering import outputs_of
from luban.columns.examples import Arrays, encode_values
from luban.columns.windows import opened
from luban.data.talks import spoken
from luban.errors import LubanError, RequestError, Unsupported, problem
from luban.generation.asking import begun
from luban.generation.sampling import Sampling
from luban.generation.writing import Text
from luban.nn.tokens import Batch
from luban.stages.serve.batcher import Job
from luban.stages.serve.engine import share_processors
from luban.stages.serve.openai import shapes, wanted
from luban.stages.serve.openai.desk import Desk, Order
from luban.stages.serve.refusal import Refusal
from luban.stages.serve.service import Call, Service

LONG = 64  # characters that a token has at most, on average over a prompt
Json = dict[str, Any]
Told = AsyncIterator[Json]


class Api:
    """`writes`: completions are made. `reads`: the input whose vectors are embeddings, None where there are none."""

    def __init__(self, service: Service):
        self.service, self.limits = service, service.limits
        self.model, self.created = service.engine.model, int(time.time())
        engine = service.engine.engine
        self.network, self.device = engine.network, engine.device
        self.writes = hasattr(self.network, "written")
        self.reads = next((n for n in service.engine.inputs if reads(self.network, service.engine.columns[n])), None)
        if self.writes:
            self.column = self.network.outputs[self.network.written]
            service.desk = Desk(
                self.network, self.limits.batch, partial(share_processors, machine.threads()), self.limits.precision
            )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The paths below /v1/ that take work."""
        return (*(("completions", "chat/completions") if self.writes else ()), *(("embeddings",) if self.reads else ()))

    # -- texts -------------------------------------------------------------------------------------------------------------
    async def write(self, call: Call, chat: bool) -> Json | Told:
        """The answer to a request for completions, or what is told of it piece by piece. Raises Refusal."""
        until = time.monotonic() + self.limits.deadline
        kind = "chat/completions" if chat else "completions"
        asked = wanted.read(await self.service.body(call, until), kind, self.model)
        asked["stop"] = wanted.stops(asked["stop"])
        begin = partial(self._texts, self._prompts(asked, chat), asked)
        texts, batch, read = await self._run(begin, call, until)
        frame = shapes.Frame(self.model, chat)
        order = Order(texts, batch, told=asked["stream"], beams=asked["beams"])
        progress = self._progress(order, call, until)
        if not asked["stream"]:
            async with aclosing(progress):
                async for _ in progress:
                    pass
            return frame.whole(texts, self.column, _chances(asked), read)
        for t in texts:
            t.streamed = True
        await anext(progress)  # what is refused is refused with a status, before anything is told
        options = asked["stream_options"] or {}
        return self._told(order, progress, frame, read if options.get("include_usage") else None)

    def _prompts(self, asked: Json, chat: bool) -> list[Any]:
        """Texts, or for a chat the ids of all that was said. Raises Refusal."""
        most = self.limits.batch
        if asked["stream"] and _chances(asked):
            raise Refusal(400, "serve.openai.no_streamed_logprobs", place="logprobs")
        if not chat:
            prompts = wanted.several(asked["prompt"], "prompt", most)
            longest, limit = max(map(len, prompts)), self._room(self.service.engine.inputs)
            if limit is not None and longest > (limit + 1) * LONG:  # not even cut into tokens
                raise Refusal(400, "serve.openai.far_too_long", place="prompt", found=longest, limit=limit)
        else:
            prompts = [self._chat(asked["messages"])]
        each = "best_of" if asked["beams"] > 1 else "n"
        if (count := len(prompts) * asked["n"] * asked["beams"]) > most:
            raise Refusal(400, "serve.count", place=each, found=count, limit=most)
        return prompts

    def _room(self, inputs: Sequence[str]) -> int | None:
        """Tokens of the longest prompt; None where it is no text."""
        if not inputs:
            return self.network.window - 1
        column = self.service.engine.columns[inputs[0]]
        return column.room if column.form == "ids" else None

    def _chat(self, messages: list[dict[str, Any]]) -> np.ndarray:
        """The seam for models that learned to chat: their column makes one prompt of what was said. Raises Refusal."""
        make: Callable[[Any], Any] | None = getattr(self.column, "chat", None)
        try:
            if make is None:
                raise Unsupported("serve.openai.no_chat")
            said = spoken(messages)
            count, limit = sum(len(m.get("content", "")) for m in said), self.network.window - 1
            if count > (limit + 1) * LONG:  # not even cut into tokens
                raise Refusal(400, "serve.openai.far_too_long", place="messages", found=count, limit=limit)
            return np.asarray(make(said), np.int32)
        except LubanError as e:
            raise Refusal(
                400, problem("serve.openai.no_chat", place="messages") if make is None else e.problems[0]
            ) from e

    def _texts(self, prompts: list[Any], asked: Json) -> tuple[list[Text], Batch | None, int]:
        """The texts to write, the inputs of each, and how many tokens the prompts have."""
        n, seed = asked["n"], asked["seed"]
        seed = secrets.randbits(62) if seed is None else seed
        most = asked.get("max_completion_tokens") or asked["max_tokens"] or 0
        engine = self.service.engine
        inputs = () if isinstance(prompts[0], np.ndarray) else engine.inputs
        if len(inputs) > 1:
            raise RequestError(problem("serve.openai.several_inputs", place="prompt", inputs=inputs))
        if inputs and (limit := self._room(inputs)) is not None:
            longest = int(engine.columns[inputs[0]].lengths_of(prompts).max())
            if longest > limit:
                raise RequestError(problem("serve.openai.too_long", place="prompt", found=longest, limit=limit))
        each = [p for p in prompts for _ in range(n)]
        texts, batch = begun(self.network, engine.columns, inputs, each, most, asked["stop"])
        if not inputs:
            room = self.network.window
            longest = max(len(t.prompt) for t in texts)
            if longest >= room:
                raise RequestError(problem("serve.openai.too_long", place="prompt", found=longest, limit=room - 1))
            for t in texts:
                t.most = min(t.most, room - len(t.prompt))
        settings = {k: asked[k] for k in wanted.SAMPLING}
        settings["top_k"] = min(settings["top_k"], self.column.size)
        for i, t in enumerate(texts):
            t.sampling = Sampling(**settings, seed=seed + i % n)
        read = sum(len(t.prompt) for t in texts[::n]) - len(prompts) * (
            not inputs and not isinstance(prompts[0], np.ndarray)
        )
        if batch is not None:
            read = sum(int(mask.sum()) for _, mask in batch.inputs.values()) // n
        return texts, batch, read

    async def _run(self, compute: Callable[[], Any], call: Call, until: float) -> Any:
        """In one of the threads, in its turn. Raises Refusal for what cannot be."""
        try:
            return await self.service.wait(Job(call=compute), call, until)
        except LubanError as e:
            raise Refusal(400, e.problems[0]) from e

    async def _progress(self, order: Order, call: Call, until: float) -> AsyncIterator[None]:
        """Once whenever there is something new, until all is written. Raises Refusal where it cannot go on."""
        desk, gone = self.service.desk, asyncio.ensure_future(call.gone())
        desk.submit(order)
        try:
            while True:
                news = asyncio.ensure_future(order.news.wait())
                left = max(0.0, until - time.monotonic())
                done, _ = await asyncio.wait({news, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
                if news not in done:
                    raise self._gave_up(order, gone in done)
                order.news.clear()
                if order.error is not None:
                    self.service.failed(order.error)
                    raise Refusal(500, "serve.failed") from order.error
                over = order.done
                yield
                if over:
                    return
        finally:
            gone.cancel()
            desk.leave(order)

    def _gave_up(self, order: Order, gone: bool) -> Refusal:
        if gone:
            self.service.metrics.dropped += 1
            return Refusal(499, "serve.client_gone", close=True)
        if not order.begun:
            return Refusal(503, "serve.no_time", again=5, limit=self.limits.deadline)
        return Refusal(504, "serve.too_slow", limit=self.limits.deadline)

    async def _told(self, order: Order, progress: AsyncIterator[None], frame: shapes.Frame, read: int | None) -> Told:
        """Every piece as soon as it is sure; what goes wrong on the way is told as the last one."""
        told = [0] * len(order.texts)
        over = [False] * len(order.texts)
        async with aclosing(progress):
            if frame.chat:
                for i in range(len(told)):
                    yield frame.piece(i, "", first=True)
            try:
                while True:
                    for i, (text, reason) in enumerate(order.shown):
                        if over[i]:
                            continue
                        if len(text) > told[i]:
                            yield frame.piece(i, text[told[i] :])
                            told[i] = len(text)
                        if reason:
                            over[i] = True
                            yield frame.piece(i, "", reason)
                    if all(over):
                        break
                    await anext(progress)
            except Refusal as e:
                self.service.metrics.errors[e.problem.id] += 1
                yield shapes.refused(e.status, e.problem)
                return
            if read is not None:
                yield frame.last(read, sum(len(t.ids) for t in order.texts))

    # -- vectors -----------------------------------------------------------------------------------------------------------
    async def embed(self, call: Call) -> Json:
        """The vectors of some texts. Raises Refusal."""
        until = time.monotonic() + self.limits.deadline
        asked = wanted.read(await self.service.body(call, until), "embeddings", self.model)
        values = wanted.several(asked["input"], "input", self.limits.batch)
        found, read = await self._run(partial(self._vectors, values), call, until)
        if not np.isfinite(found).all():
            raise Refusal(400, problem("serve.not_finite", place="input", columns=[self.reads]))
        return shapes.vectors(self.model, found, asked["encoding_format"] == "base64", read)

    def _vectors(self, values: Sequence[str]) -> tuple[np.ndarray, int]:
        engine = self.service.engine
        examples, bad = encode_values(opened(engine.columns), [self.reads], [{self.reads: v} for v in values])
        if bad:
            raise RequestError(problem("serve.bad_row", place=f"input[{min(bad)}]", reason=bad[min(bad)]))
        one = _One(self, engine.columns)
        found = outputs_of(one, examples, self.limits.batch)[self.reads]
        return found, one.read


def _chances(asked: Json) -> bool:
    """Whether log-probabilities are wanted: 0 others of a completion, or `true` of a chat."""
    return asked["logprobs"] is not None and asked["logprobs"] is not False


class _One:
    """An engine that answers with the vectors of one input, and counts its tokens."""

    def __init__(self, api: Api, columns: Any):
        self.api, self.columns, self.read = api, columns, 0

    @torch.inference_mode()
    def run(self, arrays: Arrays) -> dict[str, np.ndarray]:
        api = self.api
        batch = Batch.of(arrays, api.device)
        self.read += int(arrays.inputs[api.reads][1].sum())
        vector = getattr(api.network, "vector", None) or api.network.pooled
        return {api.reads: vector(api.reads, batch).float().cpu().numpy()}


def reads(network: Any, column: Any) -> bool:
    """Whether a network makes vectors of this input, a text."""
    return column.form == "ids" and hasattr(network, "pooled")


def events(told: Told) -> AsyncIterator[bytes]:
    """Server-sent events: one a line, and the word that ends them."""

    async def lines() -> AsyncIterator[bytes]:
        async with aclosing(told):
            async for piece in told:
                yield b"data: " + json.dumps(piece, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"

    return lines()
