"""Word vectors from raw text: a word's vector tells which words stand near it (Mikolov et al. 2013, "word2vec")."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.errors import Unsupported
from luban.settings import Count, Fraction, NonNegative

A, B, M = 2_654_435_761, 40_503, 1_000_003  # of a hash that spreads ids and places evenly


class SkipGram(nn.Module):
    """Use to learn word vectors from raw text without any answers; `bag`, whose table they are, comes with it.

    Skip-gram with negative sampling: the vector of a word and that of each word at most `window` places away have a large
    product, those of it and of `negatives` words drawn for it a small one. Words are drawn as often as they stand in the texts, to the
    power `power`. Of words that make up more than `subsample` of a text some are left out, the commoner the more (0 = none).
    B texts, T places, K negatives, D features.
    """

    def __init__(
        self,
        column: Any,
        encoder: Any,
        *,
        window: Count = 5,
        negatives: Count = 5,
        subsample: NonNegative = 1e-3,
        power: Fraction = 0.75,
    ):
        super().__init__()
        table = getattr(getattr(encoder, "form", None), "table", None)
        if not isinstance(table, nn.Embedding):
            raise Unsupported("skip_gram.no_table", input=column.name, encoder=type(encoder).__name__)
        self.window, self.negatives, self.subsample, self.power = window, negatives, subsample, power
        self.table = [table]  # a list: the encoder's, not ours
        if getattr(column, "table", None) is None:  # else vectors of a file are learned further
            nn.init.uniform_(table.weight, -0.5 / table.embedding_dim, 0.5 / table.embedding_dim)
        self.near = nn.Embedding(column.size, table.embedding_dim)  # what each word is as a neighbour
        nn.init.zeros_(self.near.weight)
        self.register_buffer("counts", torch.zeros(column.size, dtype=torch.float64))  # of the words learned so far

    def told(self, encoder: Any, x: Tensor, mask: Tensor) -> Tensor:
        """(B, 4): of each text the loss of its pairs, how many they are, how often the neighbour was likelier than the first
        word drawn, and how often it was the commoner of the two.

        While training chance says what is left out, how far a word looks (up to `window`) and what is drawn; else nothing is left
        out, every word looks as far as it can, and what is drawn depends on the text alone.
        """
        mask = mask & (x > 1)  # padding and unknown words are nobody's neighbours
        if self.training:
            self.counts.index_add_(0, x.flatten(), mask.flatten().double())
            x, mask = self._thinned(x, mask)
            reach = torch.randint(1, self.window + 1, x.shape, device=x.device)
        else:
            reach = torch.full_like(x, self.window)
        other = self._drawn(x)  # (B, T, K)
        v, u = self.table[0](x), self.near(x)
        against = torch.einsum("btd,btkd->btk", v, self.near(other)).float()
        wrong = F.softplus(against).sum(2)
        found = v.new_zeros(len(x), 4, dtype=torch.float32)
        for d in range(1, min(self.window, x.shape[1] - 1) + 1):
            for here, there in ((slice(None, -d), slice(d, None)), (slice(d, None), slice(None, -d))):
                pair = mask[:, here] & mask[:, there] & (reach[:, here] >= d)
                product = (v[:, here] * u[:, there]).sum(2).float()
                right = (product > against[:, here, 0]).float()
                commoner = self.counts[x[:, there]] - self.counts[other[:, here, 0]]
                each = (
                    F.softplus(-product) + wrong[:, here],
                    torch.ones_like(product),
                    right,
                    commoner.sign().float() / 2 + 0.5,
                )
                found = found + torch.stack([torch.where(pair, e, 0).sum(1) for e in each], 1)
        return found

    def _thinned(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Texts without some of their common words; the others move together."""
        if not self.subsample:
            return x, mask
        share = (self.counts / self.counts.sum().clamp(min=1)).clamp(min=1e-12)
        stay = ((self.subsample / share).sqrt() + self.subsample / share).float()[x]
        kept = mask & (torch.rand(x.shape, device=x.device) < stay)
        order = (~kept).long().argsort(dim=1, stable=True)
        return x.gather(1, order), kept.gather(1, order)

    def _drawn(self, x: Tensor) -> Tensor:
        """Words that stand for no neighbours, (B, T, K)."""
        sums = (self.counts**self.power).cumsum(0)
        if self.training:
            u = torch.rand(*x.shape, self.negatives, device=x.device, dtype=torch.float64)
        else:
            place = torch.arange(x.shape[1], device=x.device)[:, None]
            number = torch.arange(self.negatives, device=x.device) * 7919
            u = ((x[..., None] * A + place * B + number * A) % M / M).double()
        return torch.searchsorted(sums, u * sums[-1], right=True).clamp(max=len(sums) - 1)


def nearest(vectors: Tensor, ids: Tensor, count: int, first: int = 2) -> tuple[Tensor, Tensor]:
    """(n, count) ids and cosines of the words nearest to each of some words, themselves apart. vectors (V, D), from id `first` on."""
    unit = F.normalize(vectors.float(), dim=1)
    near = unit[ids] @ unit.T
    near[:, :first] = -2.0
    near[torch.arange(len(ids)), ids] = -2.0
    found = near.topk(min(count, near.shape[1] - first - 1), 1)
    return found.indices, found.values
