"""A device that is not there: tensors of the meta device, and a mode that sees what an accelerator would have to wait for.

The meta device has shapes and no numbers, so what reads one, or mixes it with a tensor of the processor, is found without a GPU:
`Far` notes it with the line of Luban that asked for it, and goes on with a made-up number.
"""

from __future__ import annotations

import traceback
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental import _config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
READING = {  # CUDA's kernels of these end in a number or a size that the processor has to know
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.bincount, aten._unique2, aten.unique_dim,
    aten.unique_consecutive,
}  # fmt: skip
COPIES = {aten._to_copy, aten.copy_}
UNKNOWN = {aten._fused_sgd_}  # in place, and the meta device has none


class Far(TorchDispatchMode):
    """`waits`: operations that make an accelerator wait; `mixed`: those of tensors of two devices; `copies`: those that bring
    tensors over; each with how often. `ops`: how many operations there were on the far device."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.mixed: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.ops = 0

    def __enter__(self) -> Far:
        self._sizes = _config.patch(meta_nonzero_assume_all_nonzero=True)
        self._sizes.__enter__()
        return super().__enter__()

    def __exit__(self, *e: Any) -> None:
        super().__exit__(*e)
        self._sizes.__exit__(*e)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = kwargs or {}, func._overloadpacket
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        far = [t for t in tensors if t.is_meta]
        near = [t for t in tensors if not t.is_meta]
        goes = torch.device(kwargs.get("device") or "meta").type == "meta"
        if packet in COPIES and (near or not goes):
            if packet is aten._to_copy and not goes and far:
                self.waits[_where(func)] += 1
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
            if goes and (packet is aten._to_copy or args[0].is_meta):
                self.copies[_where(func)] += 1
        elif far:
            self.ops += 1
            if any(t.ndim for t in near):
                self.mixed[_where(func)] += 1
            if packet in READING or _by_mask(packet, args):
                self.waits[_where(func)] += 1
            if packet is aten._local_scalar_dense:
                return 1.0 if far[0].is_floating_point() else 1
        return None if far and packet in UNKNOWN else func(*args, **kwargs)


def _by_mask(packet: Any, args: Any) -> bool:
    """Whether places are chosen by a mask: how many they are has to be known, but where one number is written to all."""
    if packet not in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
        return False
    masks = any(t is not None and t.dtype is torch.bool for t in args[1])
    return masks and (packet is aten.index or args[2].ndim > 0)


def _where(func: Any) -> str:
    """The operation, and the innermost line of Luban that led to it."""
    frames = [f for f in traceback.extract_stack() if "/luban/" in f.filename]
    return f"{func} {frames[-1].filename.split('/luban/')[-1]}:{frames[-1].lineno}" if frames else str(func)
