"""The paths of the API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from luban.stages.serve.openai import shapes
from luban.stages.serve.openai.api import Api, Told, events
from luban.stages.serve.refusal import Refusal
from luban.stages.serve.service import Call, to_json


def mount(app: FastAPI, api: Api, call: Callable[[Request], Call]) -> None:
    """Put the paths that this model can answer into the application. `call`: a request as the service takes it."""

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse(shapes.models(api.model, api.created))

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name != api.model:
            raise Refusal(404, "serve.openai.no_model", place="model", name=name[:80], allowed=[api.model])
        return JSONResponse(shapes.model(name, api.created))

    if api.writes:

        @app.post("/v1/completions")
        async def completions(request: Request) -> Response:
            return _answer(await api.write(call(request), chat=False))

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            return _answer(await api.write(call(request), chat=True))

    if api.reads:

        @app.post("/v1/embeddings")
        async def embeddings(request: Request) -> Response:
            return _answer(await api.embed(call(request)))


def _answer(found: Any) -> Response:
    return Response(to_json(found), media_type="application/json") if isinstance(found, dict) else Stream(found)


class Stream(Response):
    """Server-sent events. The request itself watches whether its client is there still."""

    def __init__(self, told: Told):
        super().__init__(headers={"x-accel-buffering": "no"}, media_type="text/event-stream")
        del self.headers["content-length"]
        self.told = told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for line in events(self.told):
            await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
