"""`torch.compile` for the length of a training run: the network itself stays what it is, and so do the names of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from luban.errors import Unsupported

BACKEND = "inductor"


def probe(compile: str, device: str) -> None:
    """Raises Unsupported where compiling was asked for and this machine cannot: no C++ compiler, no Triton, an old GPU."""
    if compile != "on":
        return
    try:
        torch.compile(lambda x: x + 1, backend=BACKEND)(torch.zeros(2, device=device))
    except (RuntimeError, ImportError, OSError) as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
        raise Unsupported("compile.not_here", reason=reason) from e


@contextmanager
def compiled(network: Any, compile: str, *, ragged: bool, backend: str | None = None) -> Iterator[None]:
    """While it lasts, `network(batch)` runs compiled, if `compile` is "on".

    `ragged`: batches are of many lengths, so one kernel for all of them is made; else one for each size that occurs. Either
    way which kernel computes a batch depends on the batch alone, not on those before it, so a resumed run goes on with
    the same bits.
    """
    if compile != "on":
        yield
        return
    network.compile(backend=backend or BACKEND, dynamic=ragged)
    try:
        yield
    finally:
        network._compiled_call_impl = None  # what nn.Module.compile set; there is no public way back
