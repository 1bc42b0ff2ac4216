"""A text written by a checkpoint's own network, through the `transformers` library: causal ones, and decoders of T5, BART ..."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from luban.errors import RequestError, problem
from luban.nn.encoders.pretrained import built, loaded
from luban.nn.heads.text import Written
from luban.nn.tokens import Tokens
from luban.nn.transformer import seen
from luban.settings import Fraction, Model, Positive

ROOMS = ("MODEL_FOR_CAUSAL_LM_MAPPING", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING")  # without inputs, and with
BY_LENGTH = ("dynamic", "longrope")  # rotary positions that turn otherwise where a text is long


class Pretrained(Written):
    """Use for a checkpoint that writes and that `luban import` has no place for. Instead: `llama` or `gpt`, which are faster.

    `name`: as of the encoder `pretrained`. Without inputs a causal network (Qwen3, Gemma, Phi ...); with one the decoder of an
    encoder-decoder (T5, BART, Marian ...), whose encoder is the input's: `{pretrained: {name: ...}}` of the same checkpoint.
    """

    brings = "tokens_of"
    share = 0.015  # of the rate: what is learned is soon forgotten at that of new layers

    def __init__(
        self,
        column: Any,
        size: int,
        *,
        name: Annotated[str, Model()],
        label_smoothing: Fraction = 0.0,
        weight: Positive = 1.0,
    ):
        super().__init__()
        self.column, self.smoothing, self.weight = column, label_smoothing, weight
        config = column.state.get("config")
        if not isinstance(config, dict) or column.tokens_of != name:
            raise RequestError(problem("model.other_tokens", place=column.name, name=name, found=str(column.tokens_of)))
        self.reads = bool(size)
        room = ROOMS[self.reads]
        source = column.source if torch.get_default_device().type != "meta" else None
        self.model = loaded(source, config, name, room) if source else built(config, name, room)
        self.learned = source is not None
        if self.reads:
            width = self.model.config.hidden_size
            if width != size:
                raise RequestError(problem("model.other_memory", place=column.name, name=name, found=size, want=width))
            encoder = self.model.get_encoder()
            owner = next(m for m in self.model.modules() if any(c is encoder for c in m.children()))
            key = next(k for k, c in owner.named_children() if c is encoder)
            setattr(owner, key, Given())  # the input's encoder stands for it

    @property
    def window(self) -> int:
        """Tokens that it can look back on: no more than the positions that it has."""
        return min(self.column.length + 1, self.column.state.get("window") or self.column.length + 1)

    @property
    def last(self) -> list[nn.Module]:
        return []

    @property
    def verifies(self) -> bool:
        """Whether all that it keeps of a text lies in its cache, and what is read beyond a token does not change how that is read."""
        # A name, or one for each kind of layer.
        turns = (str(getattr(m, "rope_type", "")) for m in self.model.modules())
        return not self.model._is_stateful and not any(kind in turn for turn in turns for kind in BY_LENGTH)

    def _asked(self, memory: Tensor | None, real: Tensor | None, ids: Tensor, mask: Tensor | None) -> dict[str, Any]:
        if not self.reads:
            return {"input_ids": ids, "attention_mask": mask}
        from transformers.modeling_outputs import BaseModelOutput

        given = {"encoder_outputs": BaseModelOutput(last_hidden_state=memory), "attention_mask": seen(real).long()}
        return {"decoder_input_ids": ids, **given}

    def logits(self, tokens: Tokens | None, ids: Tensor, mask: Tensor) -> Tensor:
        """Padding stands at the end, where no real position sees it."""
        memory, real = (None, None) if tokens is None else tokens[:2]
        return self.model(**self._asked(memory, real, ids, None), use_cache=False).logits

    @property
    def embedding(self) -> nn.Module:
        """ids (B, T) -> what the network takes in their place, (B, T, D)."""
        return self.model.get_input_embeddings()

    def continued(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """Embedded tokens (B, T, D) of a causal network -> logits (B, T, V) of what follows each; padding stands at the end."""
        return self.model(inputs_embeds=embedded, use_cache=False).logits

    def start(self, tokens: Tokens | None, rows: int) -> Reading:
        memory, real = (None, None) if tokens is None else tokens[:2]
        device = next(self.parameters()).device
        return Reading([Group(torch.arange(rows, device=device), 0, None, memory, real)])

    def advance(self, state: Reading, ids: Tensor, mask: Tensor) -> Tensor:
        result = None
        groups = []
        for group in state.groups:
            lengths = mask[group.rows].sum(1)
            for count in sorted(set(lengths.tolist())):
                part = group.take((lengths == count).nonzero()[:, 0]) if bool((lengths != count).any()) else group
                logits = self._further(part, ids[part.rows, :count])[:, -1].float()
                result = logits.new_zeros(len(ids), logits.shape[1]) if result is None else result
                result[part.rows] = logits
                groups.append(part)
        state.groups = groups
        assert result is not None
        return result

    def verify(self, state: Reading, ids: Tensor) -> Tensor:
        """Only where the state `rewinds`: every text is a group by itself."""
        found = []
        for group in state.groups:
            found.append(self._further(group, ids[group.rows]).float())
        return torch.cat(found)[torch.cat([g.rows for g in state.groups]).argsort()]

    def _further(self, group: Group, ids: Tensor) -> Tensor:
        """Read ids (B, n) into a group; logits (B, n, V) of what follows each."""
        asked = self._asked(group.memory, group.real, ids, None)
        out = self.model(**asked, past_key_values=group.cache, use_cache=True)
        group.cache, group.length = out.past_key_values, group.length + ids.shape[1]
        return out.logits


class Given(nn.Module):
    """In the place of an encoder that is somewhere else."""


@dataclass
class Group:
    """Texts that are equally long: `rows` of the whole, `cache` as the library keeps it, the memory that they read."""

    rows: Tensor
    length: int
    cache: Any
    memory: Tensor | None
    real: Tensor | None

    def take(self, places: Tensor) -> Group:
        """Some of them, several times where they are named so."""
        import copy

        cache = copy.deepcopy(self.cache)
        if cache is not None:
            cache.reorder_cache(places)
        pick = lambda t: None if t is None else t.index_select(0, places)  # noqa: E731
        return Group(self.rows[places], self.length, cache, pick(self.memory), pick(self.real))

    @property
    def rewinds(self) -> bool:
        """One text, of which the cache keeps all positions: windows that slide and linear attention cannot go back."""
        from transformers.cache_utils import DynamicLayer, EncoderDecoderCache

        own = self.cache.self_attention_cache if isinstance(self.cache, EncoderDecoderCache) else self.cache
        return len(self.rows) == 1 and all(type(layer) is DynamicLayer for layer in getattr(own, "layers", [None]))

    def rewind(self, length: int) -> None:
        if length < self.length:
            self.cache.crop(length - self.length)
            self.length = length


@dataclass
class Reading:
    """What has been read of some texts, those of one length together: the library's caches have no gaps then, so that
    positions are right for every kind of network. Texts of many different lengths are read group by group.
    """

    groups: list[Group]

    @property
    def lengths(self) -> Tensor:
        rows, counts = torch.cat([g.rows for g in self.groups]), [g.length for g in self.groups for _ in g.rows]
        return torch.tensor(counts, device=rows.device)[rows.argsort()]

    @property
    def longest(self) -> int:
        return max((g.length for g in self.groups), default=0)

    @property
    def rewinds(self) -> bool:
        """Whether each text can go back by itself: those of one length would be torn apart."""
        return all(g.rewinds for g in self.groups)

    def rewind(self, lengths: Tensor) -> None:
        for g in self.groups:
            g.rewind(int(lengths[g.rows[0]]))

    def take(self, rows: Tensor) -> Reading:
        groups = []
        for g in self.groups:
            places = (rows[:, None] == g.rows[None]).nonzero()  # (new row, place in the group)
            if len(places):
                part = g.take(places[:, 1])
                part.rows = places[:, 0]
                groups.append(part)
        return Reading(groups)

    def join(self, other: Reading) -> Reading:
        count = sum(len(g.rows) for g in self.groups)
        for g in other.groups:
            g.rows = g.rows + count
        return Reading([*self.groups, *other.groups])
