"""A text, written token by token: Transformer decoders over what the inputs say, or over nothing but the text so far."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.nn.before import behind, closed_up
from luban.nn.decoding import step_of
from luban.nn.past import Past
from luban.nn.tokens import Tokens
from luban.nn.transformer import CLASSIC, GPT2, LLAMA, Shape, Transformer
from luban.settings import Count, Dial, Fraction, Natural, Positive

GIVEN = 0  # a target id below this is ~id: read by the network, not to be learned (a prompt, what somebody else said)


class Written(nn.Module):
    """What all heads of text share. Training reads the true text up to a token to predict it (teacher forcing).

    Targets x (B, T): ids that end with the column's end token; ~id where a token is given and not to be learned. The
    decoder reads [begin, x[:-1]], so padding, which stands at the end, is seen by no real token.
    """

    accepts = ("text",)
    writes = True
    verifies = False
    smoothing: float
    weight: float
    column: Any

    def logits(self, tokens: Tokens | None, ids: Tensor, mask: Tensor) -> Tensor:
        """ids (B, T) that were read -> logits (B, T, V) of what follows each."""
        raise NotImplementedError

    def start(self, tokens: Tokens | None, rows: int) -> Any:
        """The state of `rows` texts of which nothing is written: it has `take`, `join`, `lengths`, `longest`."""
        raise NotImplementedError

    def advance(self, state: Any, ids: Tensor, mask: Tensor) -> Tensor:
        """Read further ids (B, n), mask (B, n), into the state; logits (B, V) of what follows each row's last real one."""
        raise NotImplementedError

    def verify(self, state: Any, ids: Tensor) -> Tensor:
        """Read ids (B, n), all real, into the state; logits (B, n, V) of what follows each. Only where it `verifies` and
        the state `rewinds`: it can go back to where what was read turned out to be right."""
        raise NotImplementedError

    def forward(self, tokens: Tokens | None, x: Tensor, mask: Tensor) -> Tensor:
        return self.logits(tokens, self.shifted(x), mask)

    def shifted(self, x: Tensor) -> Tensor:
        """Targets (B, T) -> the ids that are read to tell each of them: [begin, x[:-1]]."""
        ids = torch.where(x < GIVEN, ~x, x)
        return torch.cat([ids.new_full((len(ids), 1), self.column.begin), ids[:, :-1]], 1)

    def loss(self, o: Tensor, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(sum of the losses of its tokens (B,), how many those are (B,)); `weight` is in the sum alone."""
        truth = torch.where(mask & (x >= GIVEN), x, -1)
        each = F.cross_entropy(
            o.flatten(0, 1), truth.flatten(), reduction="none", ignore_index=-1, label_smoothing=self.smoothing
        )
        each = each.view_as(truth).sum(1)
        return (each if self.weight == 1 else each * self.weight), self.weigh(x, mask)

    def weigh(self, x: Tensor, mask: Tensor) -> Tensor:
        """Tokens that each example is to learn, (B,)."""
        return (mask & (x >= GIVEN)).sum(1).to(torch.float32)

    def divergence(
        self, o: Tensor, teacher: Tensor, temperature: float = 1.0, target: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """KL(teacher || student) of a token, (B,), times temperature squared: the mean over the tokens of `target` (x, mask) that are to be
        learned, over all positions without it.
        """
        mine, theirs = (F.log_softmax(z / temperature, -1) for z in (o, teacher))
        each = F.kl_div(mine, theirs, log_target=True, reduction="none").sum(-1) * temperature**2  # (B, T)
        if target is None:
            return each.mean(1)
        x, mask = target
        return (each * (mask & (x >= GIVEN))).sum(1) / self.weigh(x, mask).clamp(min=1)

    def score(self, o: Tensor, answers: Tensor) -> Tensor:
        """Log-probability of a fixed text, (B,). answers: ids (B, T), below 0 what is not scored; o as `forward` gave for them."""
        each = o.log_softmax(-1).gather(2, answers.clamp(min=0)[..., None])[..., 0]
        return (each * (answers >= 0)).sum(1)

    def glance(self, o: Tensor, x: Tensor, mask: Tensor) -> tuple[str, Tensor, Tensor]:
        counts = mask & (x >= GIVEN)
        return "token_accuracy", ((o.argmax(-1) == x) & counts).sum(1), counts.sum(1)


class TransformerText(Written):
    """The decoder of every `Shape`. `size`: features of the memory that it reads, 0 = it reads none (decoder-only).

    `before`: positions of the inputs that it reads in the text's own sequence, see `luban.nn.before`.
    """

    joins = True
    verifies = True

    def __init__(
        self,
        column: Any,
        size: int,
        before: int,
        shape: dict[str, Any],
        *,
        tied: bool,
        dropout: float,
        label_smoothing: float,
        weight: float,
        **sizes: Any,
    ):
        super().__init__()
        self.column, self.smoothing, self.weight = column, label_smoothing, weight
        given = {
            **shape,
            **sizes,
            "causal": True,
            "memory": size,
            "dropout": dropout,
            "length": before + column.length + 1,
        }
        shape = Shape(**given)
        self.before = before
        self.embedding = nn.Embedding(column.size, shape.width)
        self.layers = Transformer(shape)
        self.out = None if tied else nn.Linear(shape.width, column.size, bias=False)
        _initialise(self, shape)

    @property
    def last(self) -> list[nn.Module]:
        """What stands for the head of another network, the layers before it being a network of their own."""
        return [] if self.out is None else [self.out]

    @property
    def window(self) -> int:
        """Tokens of one text that it can look back on."""
        return self.layers.shape.length - self.before

    def _vocabulary(self, h: Tensor) -> Tensor:
        return F.linear(h, self.embedding.weight) if self.out is None else self.out(h)

    def logits(self, tokens: Tokens | None, ids: Tensor, mask: Tensor) -> Tensor:
        h = self.embedding(ids)
        if self.before:
            whole, real, at = behind(tokens, h, mask)
            h = self.layers(whole, real)
            return self._vocabulary(h.gather(1, at.clamp(max=h.shape[1] - 1)[..., None].expand(-1, -1, h.shape[2])))
        memory, real = (None, None) if tokens is None else tokens[:2]
        return self._vocabulary(self.layers(h, mask, memory, real))

    def continued(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """Embedded tokens (B, T, D) of a decoder without memory -> logits (B, T, V) of what follows each."""
        return self._vocabulary(self.layers(embedded, mask))

    def start(self, tokens: Tokens | None, rows: int) -> Past:
        first = self.layers.layers[0].attention
        past = Past.empty(
            len(self.layers.layers), rows, first.kv, min(256, self.window), first.size, self.embedding.weight
        )
        if self.before:
            self.layers(*closed_up(tokens.x, tokens.mask), past=past)
        elif tokens is not None:
            past.source, past.memory_mask = tokens.x, tokens.mask
        return past

    def advance(self, state: Past, ids: Tensor, mask: Tensor) -> Tensor:
        step = step_of(self, state, ids, mask)
        if step is not None:
            return step(self.embedding(ids), state, last=True)[:, 0].float()
        h = self.layers(self.embedding(ids), mask, state.source, state.memory_mask, state)
        if h.shape[1] > 1:
            h = h[torch.arange(len(h), device=h.device), mask.sum(1).clamp(min=1) - 1][:, None]
        return self._vocabulary(h)[:, 0].float()

    def verify(self, state: Past, ids: Tensor) -> Tensor:
        real = torch.ones_like(ids, dtype=torch.bool)
        step = step_of(self, state, ids, real)
        if step is not None:
            return step(self.embedding(ids), state).float()
        return self._vocabulary(self.layers(self.embedding(ids), real, state.source, state.memory_mask, state)).float()


def _initialise(head: TransformerText, shape: Shape) -> None:
    """Small weights, and smaller ones where a branch is added to what was (Radford et al. 2019)."""
    for name, p in head.named_parameters():
        if p.ndim > 1:
            deep = name.endswith("outer.weight")
            nn.init.normal_(p, 0, 0.02 / (2 * shape.layers) ** 0.5 if deep else 0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(p)


class Llama(TransformerText):
    """Use first for a text that is to be written, with inputs or (a language model) without any. RMSNorm before each branch,
    rotary positions, SwiGLU, `kv_heads` of keys and values (0 = as many as heads) (Touvron et al. 2023). `base`, `scaling`:
    of the positions; `qkv_bias`: as Qwen2 has it.
    """

    def __init__(
        self,
        column: Any,
        size: int,
        before: int = 0,
        *,
        width: Annotated[Count, Dial(nano=128, small=256, base=768)] = 256,
        layers: Annotated[Count, Dial(nano=4, small=6, base=12)] = 6,
        heads: Annotated[Count, Dial(nano=4, small=4, base=12)] = 4,
        kv_heads: Natural = 0,
        hidden: Natural = 0,
        base: Positive = 10_000.0,
        scaling: dict[str, Positive] = None,
        epsilon: Positive = 1e-5,
        bias: bool = False,
        qkv_bias: bool = False,
        tied: bool = True,
        dropout: Fraction = 0.0,
        label_smoothing: Fraction = 0.0,
        weight: Positive = 1.0,
    ):
        super().__init__(
            column, size, before, LLAMA, width=width, layers=layers, heads=heads, kv_heads=kv_heads, hidden=hidden, base=base,
            scaling=scaling, epsilon=epsilon, bias=bias, qkv_bias=qkv_bias, tied=tied, dropout=dropout, label_smoothing=label_smoothing, weight=weight,
        )  # fmt: skip


class GPT(TransformerText):
    """Use for GPT-2 and what is like it: LayerNorm before each branch, learnt positions, GELU (Radford et al. 2019);
    `bias: false` leaves those of all layers and norms out. Instead: `llama`, which learns faster.
    """

    def __init__(
        self,
        column: Any,
        size: int,
        before: int = 0,
        *,
        width: Annotated[Count, Dial(nano=128, small=256, base=768)] = 256,
        layers: Annotated[Count, Dial(nano=4, small=6, base=12)] = 6,
        heads: Annotated[Count, Dial(nano=4, small=4, base=12)] = 4,
        hidden: Natural = 0,
        epsilon: Positive = 1e-5,
        bias: bool = True,
        tied: bool = True,
        dropout: Fraction = 0.0,
        label_smoothing: Fraction = 0.0,
        weight: Positive = 1.0,
    ):
        super().__init__(
            column, size, before, GPT2, width=width, layers=layers, heads=heads, hidden=hidden, epsilon=epsilon, bias=bias,
            tied=tied, dropout=dropout, label_smoothing=label_smoothing, weight=weight,
        )  # fmt: skip


class Classic(TransformerText):
    """Use for the decoder of the textbook: sinusoidal positions, ReLU, the norm behind each branch or, with `order: pre`,
    before it (Vaswani et al. 2017). Instead: `llama`, which learns faster.
    """

    def __init__(
        self,
        column: Any,
        size: int,
        before: int = 0,
        *,
        width: Annotated[Count, Dial(nano=128, small=256, base=512)] = 256,
        layers: Annotated[Count, Dial(nano=2, small=4, base=6)] = 4,
        heads: Annotated[Count, Dial(nano=4, small=4, base=8)] = 4,
        hidden: Natural = 0,
        order: Literal["pre", "post"] = "post",
        tied: bool = True,
        dropout: Fraction = 0.1,
        label_smoothing: Fraction = 0.1,
        weight: Positive = 1.0,
    ):
        super().__init__(
            column, size, before, {**CLASSIC, "order": order}, width=width, layers=layers, heads=heads, hidden=hidden, tied=tied,
            dropout=dropout, label_smoothing=label_smoothing, weight=weight,
        )  # fmt: skip
