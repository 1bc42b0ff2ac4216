"""`torch.compile` for the length of a training run: the network itself stays what it is, and so do the names of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

BACKEND = "inductor"


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
