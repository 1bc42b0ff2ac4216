"""What a person asks a model to write, and what comes back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import numpy as np

from luban import machine
from luban.columns.examples import encode_values
from luban.columns.windows import SPLIT
from luban.console import tell
from luban.data.halves import broken
from luban.errors import DataError, Unsupported
from luban.generation.sampling import Precision, Sampling, checked, orderly, width, writes
from luban.generation.writing import Text, searched, streamed, written
from luban.messages import say
from luban.nn.tokens import Batch

Prompt = str | Mapping[str, Any] | Sequence[Mapping[str, Any]]


def told(texts: Sequence[Text]) -> None:
    """Say what of a prompt was left out for lack of room."""
    if cut := max((t.cut for t in texts), default=0):
        tell("generate.cut", count=cut)
    if lost := sum(t.lost > 0 for t in texts):
        tell("generate.lost", count=lost, most=max(t.lost for t in texts))


def generate(
    bundle: Any,
    prompts: Sequence[Prompt] = ("",),
    *,
    n: int = 1,
    tokens: int = 0,
    stop: Sequence[str] = (),
    seed: int | None = None,
    beams: int | None = None,
    precision: Precision = "fp32",
    **sampling: Any,
) -> list[list[Text]]:
    """`n` texts for each prompt: the beginning of the text, or a conversation to answer ([{role, content}, ...]), for a
    language model, else the input (of several, a row).

    tokens: at most so many new ones, 0 = as many as there is room for. `sampling`: settings of `Sampling`. The texts of a
    prompt differ by their seeds, `seed`, `seed + 1` ... `beams`: beginnings that are kept, for the likeliest text as a whole
    (temperature 0, one text, no penalties); None = as many as the model answers with where the likeliest text is wanted, see `width`. `precision`: bf16 where the device computes in it: weights and their inputs
    are rounded to 8 bits of fraction for products, which takes less than half of the time. Raises RequestError for settings that cannot be, or not together, Unsupported for a model that writes nothing, DataError for
    an input that it cannot read.
    """
    orderly(n=n, tokens=tokens, stop=stop, seed=seed, beams=beams, precision=precision)
    seed, sampling = bundle.recipe.seed if seed is None else seed, checked(**sampling)
    beams = width(bundle.recipe, beams, n, sampling)
    network = writer_of(bundle, precision)
    texts, batch = begun(network, bundle.columns, bundle.inputs, [p for p in prompts for _ in range(n)], tokens, stop)
    if beams > 1:
        searched(network, texts, beams, batch, precision)
        return [[t] for t in texts]
    for i, t in enumerate(texts):
        t.sampling = Sampling(seed=seed + i % n, **sampling)
    written(network, texts, batch, precision)
    return [texts[i : i + n] for i in range(0, len(texts), n)]


def stream(
    bundle: Any,
    prompt: Prompt = "",
    *,
    tokens: int = 0,
    stop: Sequence[str] = (),
    seed: int | None = None,
    precision: Precision = "fp32",
    **sampling: Any,
) -> Iterator[str]:
    """One text piece by piece, as `generate` writes it."""
    orderly(tokens=tokens, stop=stop, seed=seed, precision=precision)
    network = writer_of(bundle, precision)
    (text,), batch = begun(network, bundle.columns, bundle.inputs, [prompt], tokens, stop)
    text.sampling = Sampling(seed=bundle.recipe.seed if seed is None else seed, **checked(**sampling))
    return streamed(network, text, batch, precision)


def writer_of(bundle: Any, precision: Precision = "fp32") -> Any:
    """The network of a model that writes. Raises Unsupported for another, and for a precision that its device imitates."""
    writes(bundle.recipe)
    network = bundle.engine.network
    computes(str(next(network.parameters()).device), precision)
    return network


def computes(device: str, precision: Precision) -> None:
    """Raises Unsupported where a device would only imitate a precision, slower than fp32."""
    machine.computes(device, precision, "precision", get_args(Precision))


def _ids(column: Any, prompt: Prompt | np.ndarray) -> np.ndarray:
    """The ids that are read before anything is written."""
    if isinstance(prompt, np.ndarray):
        return prompt
    if isinstance(prompt, str):
        return column.prompt(prompt)
    if column.chat is None:
        raise Unsupported("chat.no_template", output=column.name)
    return column.chat(prompt)


def begun(
    network: Any,
    columns: Mapping[str, Any],
    inputs: Sequence[str],
    prompts: Sequence[Prompt | np.ndarray],
    tokens: int,
    stop: Sequence[str],
) -> tuple[list[Text], Batch | None]:
    """The texts to write and the inputs of each; a prompt may be ids already. Raises DataError for an input that cannot be."""
    column = network.outputs[network.written]
    if not inputs:
        for number, prompt in enumerate(prompts, 1):
            if not isinstance(prompt, np.ndarray) and broken(prompt):
                raise DataError("generate.bad_input", number=number, reason=say("data.lone_surrogate"))
        given = [_ids(column, p) for p in prompts]
        most = tokens or network.window
        return [Text(list(map(int, ids)), most, stop=tuple(stop)) for ids in given], None
    rows = [p if isinstance(p, Mapping) else {inputs[0]: p} for p in prompts]
    examples, bad = encode_values(columns, inputs, rows)
    if bad:
        raise DataError("generate.bad_input", number=min(bad) + 1, reason=bad[min(bad)])
    read = {n: columns[n].lengths_of([r[n] for r in rows]) for n in inputs if columns[n].form == "ids"}
    for name, lengths in read.items():
        if columns[name].long == SPLIT and lengths.max() > columns[name].room:
            raise DataError("generate.long", name=name, count=int(lengths.max()), most=columns[name].room)
    batch = Batch.of(examples.arrays(np.arange(len(examples))), next(network.parameters()).device)
    most = tokens or min(column.length + 1, network.window - 1)
    texts = [Text([column.begin], most, stop=tuple(stop)) for _ in rows]
    for name, lengths in read.items():
        for t, more in zip(texts, lengths - columns[name].room):
            t.lost = max(t.lost, int(more))
    return texts, batch
