"""serve: a model behind HTTP, for one machine: typed requests, bounded work, batches without waiting."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from luban.errors import RequestError, Unsupported, need
from luban.generation.sampling import Precision
from luban.settings import Range

BODY, BODY_OF_FILES = 2_000_000, 20_000_000  # bytes; the second lets a file of 15 MB through as base64
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    bundle: Any,
    data: Any = None,
    *,
    port: Annotated[int, Range(low=0, high=65_535)] = 8000,
    host: str = "127.0.0.1",
    api_key: str | None = None,
    engine: Literal["auto", "torch", "onnx"] = "auto",
    batch: Annotated[int, Range(low=1, high=4096)] = 32,
    queue: Annotated[int, Range(low=1, high=100_000)] = 256,
    deadline: Annotated[float, Range(above=0, high=3600)] = 30.0,
    body: Annotated[int, Range(low=100, high=1_000_000_000)] | None = None,
    pixels: Annotated[int, Range(low=1, high=64_000_000)] = 16_000_000,
    workers: Annotated[int, Range(low=0, high=1024)] = 0,
    hosts: list[str] = (),
    precision: Precision = "fp32",
) -> None:
    """Answer HTTP requests until SIGTERM or Ctrl-C; requests that were accepted by then are answered first.

    bundle: a Bundle, its folder, or an `.onnx` file (then torch is never imported); `data` is not used. `engine` auto
    takes the model.onnx of the folder where it fits the model. `port` 0: any free one. `batch`: rows of one request, and
    rows that are run together. `queue`: requests in the house at once, above which 429 is answered. `deadline`: seconds
    for a request; `body`: bytes, otherwise 2 MB, and 20 MB (a camera's JPEG) where an input takes whole files. `pixels`: of
    a picture that a request may send, whatever its bytes: one of 16 million may take 300 MB for a moment. `workers`: threads that compute, 0 = one a processor. `hosts`: names besides this
    machine's own that requests may ask for (a proxy's). `precision`: what texts are written in, see `generate`.
    Raises RequestError where the host is not this machine and no key is set, or the port is taken; MissingExtra; Unsupported
    for a precision that the device imitates, or of a model that writes no text.
    """
    server = prepare(
        bundle, port=port, host=host, api_key=api_key, engine=engine, batch=batch, queue=queue, deadline=deadline,
        body=body, pixels=pixels, workers=workers, hosts=hosts, precision=precision,
    )  # fmt: skip
    server.run()


def prepare(
    bundle: Any,
    *,
    port: int = 8000,
    host: str = "127.0.0.1",
    engine: str = "auto",
    body: int | None = None,
    pixels: int = 0,
    **limits: Any,
) -> Any:
    """The `Server` of `serve`, bound to its port and not yet running: `run()` blocks, `url` says where."""
    from luban.stages.serve.service import Limits

    limits = Limits(**{**limits, "hosts": tuple(limits.get("hosts") or ())}).settled()
    if not limits.api_key and host not in LOOPBACK:
        raise RequestError("serve.key_needed", host=host)
    need("fastapi", "serve")
    need("uvicorn", "serve")
    from luban.stages.serve.engine import choose
    from luban.stages.serve.server import Server
    from luban.stages.serve.service import Service

    chosen = choose(bundle, engine, limits.threads)
    if limits.precision != "fp32":
        _computes(chosen, limits.precision)
    chosen.limit(pixels)
    files = any(chosen.columns[n].endings for n in chosen.inputs)
    limits = replace(limits, body=body or (BODY_OF_FILES if files else BODY))
    return Server(Service(chosen, limits, local=host in LOOPBACK), host, port)


def _computes(chosen: Any, precision: Precision) -> None:
    """Raises Unsupported where no text is written in that precision."""
    from luban.generation.asking import computes

    if not hasattr(getattr(chosen.engine, "network", None), "written"):
        raise Unsupported("generate.writes_nothing", outputs=list(chosen.outputs))
    computes(str(chosen.engine.device), precision)
