"""The endpoints, and the guard in front of them: who may ask, from where, and how an answer leaves the house."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from luban.stages.serve import page
from luban.stages.serve.openai import shapes
from luban.stages.serve.refusal import Refusal, plain
from luban.stages.serve.schema import openapi
from luban.stages.serve.service import Call, Service, to_json

OPEN = ("/healthz", "/readyz", "/docs")  # answered without a key: they tell nothing about the model
WORK = ("/predict", "/explain", "/v1/completions", "/v1/chat/completions", "/v1/embeddings")
SAFE = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"), (b"referrer-policy", b"no-referrer"))
HOME = ("127.0.0.1", "localhost", "::1")


def make(service: Service) -> Any:
    """The ASGI application of a service."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    api = _api(service)
    document = to_json(openapi(service, api.kinds if api else ()))

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        return _json(*await service.predict(_call(request)))

    @app.post("/explain")
    async def explain(request: Request) -> Response:
        return _json(*await service.explain(_call(request)))

    @app.get("/docs")
    async def docs() -> Response:
        text, policy = page.docs()
        return Response(text, media_type="text/html", headers={"content-security-policy": policy})

    @app.get("/openapi.json")
    async def described() -> Response:
        return Response(document, media_type="application/json")

    @app.get("/healthz")
    async def alive() -> Response:
        return _json(200, {"live": True})

    @app.get("/readyz")
    async def ready() -> Response:
        return _json(503 if service.draining else 200, {"ready": not service.draining})

    @app.get("/metrics")
    async def metrics() -> Response:
        text = service.metrics.text(service.inside, service.waiting, not service.draining)
        return Response(text, media_type="text/plain; version=0.0.4")

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        return _refused(service, error, request.url.path)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        id = "serve.wrong_method" if error.status_code == 405 else "serve.no_such_path"
        answer = _refused(service, Refusal(error.status_code, id, place=request.url.path[:80]), request.url.path)
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        service.failed(error)
        return _refused(service, Refusal(500, "serve.failed"), request.url.path)

    if api:
        from luban.stages.serve.openai.routes import mount

        mount(app, api, _call)
    return Guard(app, service)


class Guard:
    """Host, origin and key are looked at first; then the door, which counts who is inside; every answer is measured."""

    def __init__(self, app: Any, service: Service):
        self.app, self.service = app, service
        self.hosts = {*HOME, *(h.lower() for h in service.limits.hosts)}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, headers = time.monotonic(), 0, _headers(scope)

        async def sent(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *SAFE]}
            await send(message)

        entered = False
        try:
            self._allowed(scope["path"], headers)
            if scope["path"] in WORK and scope["method"] == "POST":
                self.service.enter()
                entered = True
            await self.app(scope, receive, sent)
        except Refusal as e:
            await _refused(self.service, e, scope["path"])(scope, receive, sent)
        finally:
            if entered:
                self.service.leave()
            self.service.metrics.answered(scope["path"], status, time.monotonic() - began)

    def _allowed(self, path: str, headers: Mapping[str, str]) -> None:
        """Against pages of other sites that a browser has open (CSRF, DNS rebinding), and against who has no key."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if (self.service.local or self.service.limits.hosts) and _name(host) not in self.hosts:
            raise Refusal(421, "serve.foreign_host", place="Host", found=host[:80])
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise Refusal(403, "serve.foreign_origin", place="Origin", found=origin[:80])
        if headers.get("sec-fetch-site") == "cross-site" and path not in OPEN:
            raise Refusal(403, "serve.foreign_origin", place="Sec-Fetch-Site", found="cross-site")
        key = self.service.limits.api_key
        if key and path not in OPEN and not _has_key(headers, key):
            raise Refusal(401, "serve.wrong_key")


def _has_key(headers: Mapping[str, str], key: str) -> bool:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = [headers.get("x-api-key", ""), token.strip() if scheme.lower() == "bearer" else ""]
    first, second = (secrets.compare_digest(g.encode("latin-1"), key.encode()) for g in given)
    return first or second


def _name(host: str) -> str:
    """Host without its port, lower case; IPv6 without brackets."""
    try:
        return urlsplit("//" + host).hostname or ""
    except ValueError:
        return ""


def _headers(scope: Any) -> dict[str, str]:
    """Headers by lower-case name; one that is there twice is joined, so that it fits no rule."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        name, value = name.decode("latin-1"), value.decode("latin-1")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _call(request: Request) -> Call:
    async def pieces() -> AsyncIterator[bytes]:
        try:
            async for piece in request.stream():
                yield piece
        except ClientDisconnect:
            raise Refusal(499, "serve.client_gone", close=True) from None

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            await asyncio.sleep(0)

    return Call(_headers(request.scope), pieces(), gone)


def _json(status: int, body: Any) -> Response:
    return Response(to_json(body), status, media_type="application/json")


def _refused(service: Service, error: Refusal, path: str) -> Response:
    """In our own words or, below /v1/, in those of the API that is spoken there."""
    service.metrics.errors[error.problem.id] += 1
    body = shapes.refused(error.status, error.problem) if path.startswith("/v1/") else {"error": plain(error.problem)}
    return Response(to_json(body), error.status, error.headers, "application/json")


def _api(service: Service) -> Any:
    """OpenAI's API for a network that writes or reads texts, None for other models and engines."""
    network = getattr(service.engine.engine, "network", None)
    if network is None:
        return None
    from luban.stages.serve.openai.api import Api

    found = Api(service)
    return found if found.kinds else None
