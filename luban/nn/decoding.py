"""A few further tokens of each row through a causal Transformer with a past: what writing a text does again and again.

    step = step_of(head, past, ids, mask)   # None where a part of it is not as `transformer` made it
    logits = step(embedded, past)           # (B, T, D) -> (B, T, V), and the past is T longer

The sums of `Transformer.forward`, held against it in `tests/test_writing.py`, without what only learning and reading
need. On a processor that is what half of the time goes to. A few queries are held against their keys by a batched product:
PyTorch's fused attention is made for many, and takes up to twice as long. How weights lie, and in what they are
multiplied, see `Product`: within autocast in bf16, and all else in fp32.
Letters as in `transformer`; V words, and G heads of queries for each of the K heads of keys and values.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban import machine
from luban.nn import transformer as parts
from luban.nn.past import Past

Map = Callable[[Tensor], Tensor]
BLOCK = 64  # features of an output that are made together
FEW, MANY = 4, 15  # rows that are multiplied block by block
LEAST = 1 << 17  # weights of a matrix that is worth it
ROWS = 32  # that weights are packed for; packed for fewer, products of any number are slower
MOST = 64  # tokens of all rows that are a few
# A product of LONE rows and fewer is given FULL: oneDNN's kernel for these is slower than the one for five.
FULL, LONE = 5, 2
LARGEST = 1 << 28  # weights of a network that is packed in fp32: a gigabyte that is there twice


class Product:
    """x (B, I) -> x W' + b (B, O) with W (O, I), both in fp32.

    half: W and x rounded to bf16, W packed into the order in which oneDNN reads it; sums and b stay fp32.
    packs: W packed in fp32, where `repays` says so. Else W stays where it lies: MKL copies a large matrix
    into an order of its own before it multiplies, and for a handful of rows that takes as long as the product. Small matrices
    it leaves where they are, so for so few rows W is a batch of small ones: on Intel processors 1.3 to 2 times as fast. For
    3 rows and fewer, and from 16 on, it is slower.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, half: bool = False, packs: bool = False):
        count = len(weight) // BLOCK if weight.numel() >= LEAST and not (half or packs) else 0
        whole = count * BLOCK
        self.across, self.bias, self.half = weight.t(), bias, half
        self.packed = _packed(weight.bfloat16() if half else weight) if half or packs else None
        self.blocks = weight[:whole].view(count, BLOCK, -1).transpose(1, 2) if count else None  # (count, I, 64)
        self.offsets = None if bias is None else bias[:whole].view(count, 1, BLOCK)
        left = len(weight) > whole
        self.rest = Product(weight[whole:], None if bias is None else bias[whole:]) if count and left else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.half:
            return _times(x.bfloat16(), self.packed, self.bias).float()
        if self.packed is not None:
            if len(x) <= LONE:
                return _times(F.pad(x, (0, 0, 0, FULL - len(x))), self.packed, self.bias)[: len(x)]
            return _times(x, self.packed, self.bias)
        if self.blocks is None or not FEW <= len(x) <= MANY:
            return x @ self.across if self.bias is None else torch.addmm(self.bias, x, self.across)
        each = x.expand(len(self.blocks), *x.shape)
        if self.offsets is None:
            made = torch.bmm(each, self.blocks)
        else:
            made = torch.baddbmm(self.offsets, each, self.blocks)
        made = made.transpose(0, 1).reshape(len(x), -1)  # (B, count x 64)
        return made if self.rest is None else torch.cat([made, self.rest(x)], 1)


def _packed(weight: Tensor) -> Tensor:
    """A weight (O, I) in the order in which oneDNN reads it; as it is where torch has no oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return weight
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)


def _times(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not weight.is_mkldnn:
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def repays(model: nn.Module) -> bool:
    """Whether fp32 weights packed for oneDNN are multiplied faster than where they lie: 1.3 to 1.9 times on AMD's, for any
    number of rows; on Intel's they are not."""
    few = sum(p.numel() for p in model.parameters()) <= LARGEST
    return few and torch.backends.mkldnn.is_available() and machine.processor()["name"].startswith("AMD")


class Step:
    """A few tokens of each row. It looks at the weights that were there when it was made, see `_kept`.

    `table`: what makes logits (N, V) of states (N, D); `product`: what a linear layer does.
    """

    def __init__(self, model: parts.Transformer, table: Map, product: Callable[[nn.Module], Map]):
        shape = model.shape
        self.positions = model.positions if shape.positions in ("learnt", "sinusoidal") else None
        self.angles = model.angles if shape.positions == "rotary" else None
        self.before, self.norm = _norm(model.before), _norm(model.norm)
        self.layers = [_Layer(layer, product) for layer in model.layers]
        self.table = table

    @staticmethod
    def does(model: parts.Transformer) -> bool:
        """Whether all of it is as `transformer` made it, with nobody listening in between."""
        mine = (parts.Transformer, parts.Layer, parts.Attention, parts.Dense)
        whole = [model, *model.layers, *(m for layer in model.layers for m in layer.children() if _own(m))]
        return all(type(m) in mine and not _hooked(m) for m in whole)

    @torch.autocast("cpu", enabled=False)
    def __call__(self, h: Tensor, past: Past, last: bool = False) -> Tensor:
        """h (B, T, D): embeddings of further tokens of each row, all real. Reads them into the past; logits (B, T, V) of what
        follows each; with `last` (B, 1, V), of the last ones alone."""
        rows, count = h.shape[:2]
        end, at, real = past.room(count), past.places(count), past.visible(count)
        turn = None
        if self.positions is not None:
            h = h + self.positions[at]
        if self.angles is not None:
            turn = _turn(self.angles[at])
        h = self.before(h.flatten(0, 1))
        keys, values = past.kept.flatten(2, 3).narrow(3, 0, end).unbind(1)  # (L, B x K, end, d) each
        places = past.kept.narrow(4, at.start, count).unbind(0) if isinstance(at, slice) else [None] * len(self.layers)
        if real is None and count > 1:  # at the very beginning
            real = torch.ones(count, end, dtype=torch.bool).tril()[None, None]
        unseen = self._unseen(real, rows, count)
        read = None if past.memory_mask is None else parts.seen(past.memory_mask)[:, None, None]
        away = self._unseen(read, rows, count)
        for i, (layer, k, v, place) in enumerate(zip(self.layers, keys.transpose(2, 3), values, places)):
            if place is None:
                put = lambda new, i=i: _scatter(past.kept[i], at, new)  # noqa: E731
            else:
                put = place.copy_
            h = layer(h, rows, k, v, put, turn, unseen, past.memory[i], away)
        past.lengths = past.lengths + count
        past.longest = end
        if last:
            h = h.view(rows, count, -1)[:, -1]
        return self.table(self.norm(h)).unflatten(0, (rows, -1))

    def _unseen(self, real: Tensor | None, rows: int, count: int) -> Tensor | None:
        """real (1 or B, 1, 1 or T, n), True = seen -> what is added to energies, (1 or B x K, G x T, n): 0, or -inf; None where all
        is seen."""
        if real is None or bool(real.all()):
            return None
        heads, kv = self.layers[0].heads, self.layers[0].kv
        added = torch.zeros(real.shape).masked_fill_(~real, -torch.inf)[:, :, None]  # (1 or B, 1, 1, 1 or T, n)
        some = 1 if len(real) == 1 else kv
        return added.expand(len(real), some, heads // kv, count, -1).reshape(len(real) * some, -1, real.shape[-1])


class _Layer:
    """One layer of a `Step`, its weights at hand."""

    def __init__(self, layer: parts.Layer, product: Callable[[nn.Module], Map]):
        attention, dense = layer.attention, layer.dense
        self.pre, self.heads, self.kv, self.size = layer.pre, attention.heads, attention.kv, attention.size
        self.scale, self.nothing = self.size**-0.5, layer.before.weight.new_zeros(())
        self.norms = _norm(layer.before), _norm(layer.between)
        self.inner, self.outer = product(attention.inner), product(attention.outer)
        self.up, self.down, self.gated = product(dense.inner), product(dense.outer), dense.gated
        self.active = F.relu if dense.relu else lambda x: F.gelu(x, approximate=dense.tanh)
        self.reading = None
        if hasattr(layer, "reading"):
            self.reading = _norm(layer.aside), product(layer.reading.query), product(layer.reading.outer)

    def __call__(
        self,
        h: Tensor,
        rows: int,
        k: Tensor,
        v: Tensor,
        put: Map,
        turn: tuple[Tensor, Tensor] | None,
        unseen: Tensor | None,
        memory: tuple[Tensor, Tensor] | None,
        away: Tensor | None,
    ) -> Tensor:
        """h (B x T, D), k (B x K, d, end), v (B x K, end, d); `put` keeps (2, B, K, T, d), the keys and values of these, in both."""
        before, between = self.norms
        pre, wide = self.pre, self.heads * self.size
        x = self.inner(before(h) if pre else h)
        if turn is not None:
            at = wide + self.kv * self.size
            both = x[:, :at].view(rows, -1, self.heads + self.kv, self.size)
            both = torch.addcmul(both * turn[0], both.roll(self.size // 2, -1), turn[1]).view(len(x), -1)
            x = torch.cat([both, x[:, at:]], 1)
        put(x[:, wide:].view(rows, -1, 2, self.kv, self.size).permute(2, 0, 3, 1, 4))
        x = self.outer(self._attend(x[:, :wide], rows, k, v, unseen))
        h = x.add_(h) if pre else before(x.add_(h))
        if self.reading is not None:
            aside, query, outer = self.reading
            k, v = (m.flatten(0, 1) for m in memory)
            x = outer(self._attend(query(aside(h) if pre else h), rows, k.transpose(1, 2), v, away))
            h = x.add_(h) if pre else aside(x.add_(h))
        x = self.up(between(h) if pre else h)
        if self.gated:
            gate, x = x.chunk(2, -1)
            x = F.silu(gate).mul_(x)
        else:
            x = self.active(x)
        x = self.down(x)
        return x.add_(h) if pre else between(x.add_(h))

    def _attend(self, q: Tensor, rows: int, k: Tensor, v: Tensor, unseen: Tensor | None) -> Tensor:
        """q (B x T, H x d) over keys (B x K, d, n) and values (B x K, n, d) -> (B x T, H x d). `unseen`: see `Step._unseen`."""
        each = q.view(rows, -1, self.kv, self.heads // self.kv, self.size).permute(0, 2, 3, 1, 4)
        each = each.reshape(len(k), -1, self.size)  # (B x K, G x T, d)
        if unseen is None:
            energy = torch.baddbmm(self.nothing, each, k, beta=0, alpha=self.scale)
        else:
            energy = torch.baddbmm(unseen, each, k, alpha=self.scale)
        found = torch.bmm(energy.softmax(-1), v)
        found = found.view(rows, self.kv, self.heads // self.kv, -1, self.size).permute(0, 3, 1, 2, 4)
        return found.reshape(len(q), -1)


def _turn(turn: Tensor) -> tuple[Tensor, Tensor]:
    """Angles ([B,] T, d / 2, 2) as factors ([B,] T, 1, d) of a head and of its halves the other way round."""
    cos, sin = turn.unsqueeze(-3).unbind(-1)
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def _scatter(kept: Tensor, at: Tensor, new: Tensor) -> None:
    """new (2, B, K, T, d) into kept (2, B, K, slots, d), each row at places of its own (B, T)."""
    kept.scatter_(3, at[None, :, None, :, None].expand_as(new), new)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _own(module: nn.Module) -> bool:
    """Whether a part of a layer is one whose work is done here, not one that is called."""
    return not isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.Dropout, parts.StochasticDepth))


def _product(module: nn.Module, **how: bool) -> Map:
    """What a layer does with (B, I); the layer itself where it is not a plain one (quantised, with a LoRA ...)."""
    return Product(module.weight, module.bias, **how) if type(module) is nn.Linear and not _hooked(module) else module


def _norm(module: nn.Module) -> Map:
    if type(module) is not nn.LayerNorm or _hooked(module):
        return module
    shape, weight, bias, epsilon = list(module.normalized_shape), module.weight, module.bias, module.eps
    return lambda x: torch.native_layer_norm(x, shape, weight, bias, epsilon)[0]


def _table(head: Any, product: Callable[[nn.Module], Map], **how: bool) -> Map:
    """The last product of a head, with its embedding or a matrix of its own."""
    if head.out is not None:
        return product(head.out)
    plain = type(head.embedding) is nn.Embedding and not _hooked(head.embedding)
    embedding = head.embedding  # not the head, which would keep itself
    return Product(embedding.weight, None, **how) if plain else lambda h: F.linear(h, embedding.weight)


def step_of(head: Any, past: Past, ids: Tensor, mask: Tensor) -> Step | None:
    """How a head's next tokens are read quickly; None where they are not a few real ones of each row, on a processor, unlearned."""
    known = past.source is None or past.memory[0] is not None  # the memory's keys and values
    if not 0 < ids.numel() <= max(len(ids), MOST) or head.training or torch.is_grad_enabled() or not known:
        return None
    if ids.device.type != "cpu" or not bool(mask.all()):
        return None
    if past.step is None:
        past.step = _kept(head) or False
    return past.step or None


KEPT: WeakKeyDictionary[nn.Module, tuple[Any, Step | None]] = WeakKeyDictionary()


def _kept(head: Any) -> Step | None:
    """The step of a head's last writing while nothing of it has changed: packing its weights takes as long as some tokens do."""
    half = torch.is_autocast_enabled("cpu")
    now = half, _state(head)
    before, step = KEPT.get(head, (None, None))
    if before != now:
        how = {"half": half, "packs": not half and repays(head)}
        product = partial(_product, **how)
        step = Step(head.layers, _table(head, product, **how), product) if Step.does(head.layers) else None
        KEPT[head] = now, step
    return step


def _state(head: nn.Module) -> list[Any]:
    """What a step was made of: its modules, and where its tensors lie, how often each was written to, and what their sums are,
    since who writes to `.data` is not counted. Reading all weights once is less than reading a token."""
    tensors = [*head.parameters(), *head.buffers()]
    sums = torch.stack([t.sum(dtype=torch.float32) for t in tensors]).tolist()
    versions = [0 if t.is_inference() else t._version for t in tensors]
    return [(type(m), _hooked(m)) for m in head.modules()] + list(zip([t.data_ptr() for t in tensors], versions, sums))
