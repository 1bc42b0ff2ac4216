"""A decoder-only language model described by its sizes, for plans: `layers=128,width=25600,heads=160,vocabulary=50000,length=2048`.

It is built, from the blocks that Luban's transformers are made of, and measured like every other network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from luban.errors import Problem, RequestError, problem, raise_all

if TYPE_CHECKING:
    from luban.nn.tokens import Batch

NEEDED = ("layers", "width", "heads", "vocabulary", "length")
KNOWN = (*NEEDED, "tokens")
MOST = 1e14  # parameters
DEEPEST = 1024  # layers, each of which is built
PER_PARAMETER = 20  # tokens for each parameter, where nothing says how many (Hoffmann et al. 2022)
# Tokens of one update, where nothing says how many: (parameters up to, tokens), as in Brown et al. 2020, table 2.1.
UPDATES = ((1e9, 1 << 19), (5e9, 1 << 20), (5e10, 1 << 21), (float("inf"), 3_200_000))


def read(shape: str | Mapping[str, Any]) -> dict[str, int]:
    """The sizes of a shape. Raises RequestError with every mistake."""
    pairs = dict(shape) if isinstance(shape, Mapping) else _pairs(shape)
    problems: list[Problem] = []
    sizes: dict[str, int] = {}
    for name, value in pairs.items():
        if name not in KNOWN:
            problems.append(problem("plan.shape_key", place="--shape", name=name, allowed=KNOWN))
            continue
        try:
            number = float(value)
            sizes[name] = int(number)
            if number < 1 or number != sizes[name]:
                raise ValueError(value)
        except (TypeError, ValueError, OverflowError):
            problems.append(problem("plan.shape_value", place=f"--shape {name}", found=str(value)))
    lacking = [n for n in NEEDED if n not in pairs]
    if lacking:
        problems.append(problem("plan.shape_lacks", place="--shape", lacking=lacking))
    if not problems and sizes["width"] % sizes["heads"]:
        problems.append(problem("plan.shape_heads", place="--shape", heads=sizes["heads"], width=sizes["width"]))
    if not problems:
        problems += _too_large(sizes)
    raise_all(RequestError, problems)
    return sizes


def _too_large(sizes: Mapping[str, int]) -> list[Problem]:
    """What no device computes, and what would take minutes to count."""
    count = 12 * sizes["layers"] * sizes["width"] ** 2 + (sizes["vocabulary"] + sizes["length"]) * sizes["width"]
    if count > MOST:
        return [problem("plan.shape_large", place="--shape", found=f"{count / 1e12:,.0f}", most=f"{MOST / 1e12:,.0f}")]
    if sizes["layers"] > DEEPEST:
        return [problem("plan.shape_deep", place="--shape", found=f"{sizes['layers']:,}", most=f"{DEEPEST:,}")]
    return []


def _pairs(text: str) -> dict[str, str]:
    found = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = item.partition("=")
        if not equals:
            raise RequestError("cli.want_pair", flag="--shape", found=item)
        if name.strip() in found:
            raise RequestError(problem("plan.shape_twice", place="--shape", found=name.strip()))
        found[name.strip()] = value.strip()
    return found


def decoder(sizes: Mapping[str, int]) -> Any:
    """The network: embedding and learnt positions, pre-norm blocks, a norm, and the embedding again as output (GPT-2)."""
    from torch import Tensor, nn

    from luban.nn.transformer import GPT2, Shape, Transformer

    width, length, vocabulary = sizes["width"], sizes["length"], sizes["vocabulary"]

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(vocabulary, width)
            shape = Shape(width, sizes["layers"], sizes["heads"], length=length, **GPT2)
            self.transformer = Transformer(shape)
            self.output_parameters = vocabulary * width  # matrices beside the blocks'

        def forward(self, batch: Batch) -> dict[str, Tensor]:
            ids, mask = batch.inputs["tokens"]
            h = self.transformer(self.embedding(ids), mask)  # (B, T, D)
            return {"tokens": nn.functional.linear(h, self.embedding.weight)}  # (B, T, V)

        def loss(self, o: Mapping[str, Tensor], batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
            ids, mask = batch.targets["tokens"]
            each = nn.functional.cross_entropy(o["tokens"].flatten(0, 1).float(), ids.flatten(), reduction="none")
            return {"tokens": (each.view_as(ids).sum(1), mask.sum(1))}

    return Decoder()
