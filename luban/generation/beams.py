"""Beam search: of every text the likeliest few are written on (Graves 2012; Wu et al. 2016 for the length penalty)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import torch

from luban.nn.tokens import Batch

Found = tuple[list[int], list[float]]  # ids, their log-probabilities


def beams(
    network: Any, batch: Batch, most: int, width: int, length_penalty: float = 1.0, prompt: Sequence[int] = ()
) -> list[Found]:
    """What `searching` finds, all of it at once."""
    search = searching(network, batch, most, width, length_penalty, prompt)
    while True:
        try:
            next(search)
        except StopIteration as end:
            return end.value


@torch.inference_mode()
def searching(
    network: Any, batch: Batch, most: int, width: int, length_penalty: float = 1.0, prompt: Sequence[int] = ()
) -> Generator[None, None, list[Found]]:
    """Per example the text with the highest sum of log-probabilities / length ** `length_penalty` that was found.

    `width` beginnings of each are kept. `prompt`: ids that each begins with, the column's `begin` where nothing is given. A search ends when no beginning can become better than the worst of `width` whole
    texts, or at `most` tokens. It pauses before every token, so that others can be written in between.
    """
    column = network.outputs[network.written]
    device, count = next(network.parameters()).device, batch.size
    state = network.start(batch)
    ids = torch.tensor([list(prompt) or [column.begin]] * count, dtype=torch.long, device=device)  # (B, P)
    logits = network.advance(state, ids, torch.ones_like(ids, dtype=torch.bool))
    state = state.take(torch.arange(count, device=device).repeat_interleave(width))
    logits = logits.repeat_interleave(width, 0)
    total = torch.full((count, width), -torch.inf, device=device, dtype=torch.float64)
    total[:, 0] = 0.0  # at first all beginnings of an example are the same
    live: list[list[Found]] = [[([], []) for _ in range(width)] for _ in range(count)]
    done: list[list[tuple[float, Found]]] = [[] for _ in range(count)]
    open_ = set(range(count))
    for length in range(1, most + 1):
        yield
        chances = logits.float().log_softmax(-1).double().view(count, width, -1)
        vocabulary = chances.shape[2]
        best = (total[..., None] + chances).flatten(1).topk(min(2 * width, width * vocabulary), 1)
        origin, token = best.indices // vocabulary, best.indices % vocabulary
        rows, tokens = [], []
        for e in range(count):
            kept: list[tuple[int, int, float]] = []
            for rank, (o, t, s) in enumerate(zip(origin[e].tolist(), token[e].tolist(), best.values[e].tolist())):
                if t in column.stops or length == most:
                    if rank < width and e in open_ and s > -torch.inf:
                        before = live[e][o]
                        text = ([*before[0], t], [*before[1], float(chances[e, o, t])])
                        done[e].append((s / length**length_penalty, text))
                elif len(kept) < width:
                    kept.append((o, t, s))
            if length == most:
                continue
            kept += [(0, column.end, -torch.inf)] * (width - len(kept))
            done[e] = sorted(done[e], key=lambda found: -found[0])[:width]
            if len(done[e]) == width and done[e][-1][0] >= kept[0][2] / length**length_penalty:
                open_.discard(e)
            live[e] = [([*live[e][o][0], t], [*live[e][o][1], float(chances[e, o, t])]) for o, t, _ in kept]
            total[e] = torch.tensor([s for _, _, s in kept], dtype=torch.float64)
            rows += [e * width + o for o, _, _ in kept]
            tokens += [t for _, t, _ in kept]
        if not open_ or length == most:
            break
        state = state.take(torch.tensor(rows, device=device))
        ids = torch.tensor(tokens, device=device)[:, None]
        logits = network.advance(state, ids, torch.ones_like(ids, dtype=torch.bool))
    return [max(found, key=lambda f: f[0])[1] for found in done]
