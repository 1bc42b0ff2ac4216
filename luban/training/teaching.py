"""What a teacher answers to the rows that its student learns from, asked for once: each further epoch costs what it costs alone.

The teacher sees every row as it is. What is hidden of a row from the student (tokens of a text, a rare value) does not change what it is to answer; a moved or
mirrored picture is another one, and a student learns best from answers to the very view that it sees (Beyer et al. 2022, "Knowledge distillation: A good teacher
is patient and consistent"), so with kept answers it sees pictures as they are, too. Kept answers are a function of teacher and rows: a run that is taken up
again finds them as they were.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luban.columns.examples import Examples
from luban.console import Progress
from luban.machine import able
from luban.messages import say
from luban.nn.tokens import Batch, brought
from luban.training.precision import GAIN, WORTH, autocast, products

KEPT = 512 * 2**20  # bytes of answers that are kept
FEW = 32  # rows that tell how large answers are and in which precision they come fastest
AT_ONCE = 128  # rows that the teacher answers together


class Answers:
    """The answers to N examples: {output: (N, ...)}, or a list of N where they are of different lengths."""

    def __init__(self, kept: dict[str, Tensor | list[Tensor]]):
        self.kept = kept

    def of(self, places: np.ndarray, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those to some examples, (B, ...). `like`: what the student answers to them, whose number of positions theirs get, too."""
        return {n: self._one(rows, places, like[n]) for n, rows in self.kept.items()}

    @staticmethod
    def _one(rows: Tensor | list[Tensor], places: np.ndarray, like: Tensor) -> Tensor:
        if isinstance(rows, Tensor) and (rows.ndim < 3 or rows.shape[1] == like.shape[1]):
            return brought(rows[torch.from_numpy(places)], like.device)
        found = like.detach().cpu().clone()  # what a student answers to padding is what anybody does
        for mine, place in zip(found, places):
            theirs = rows[place][: len(mine)]
            mine[: len(theirs)] = theirs
        return brought(found, like.device)


def unmoved(examples: Examples) -> Examples:
    """The same examples, of which training sees nothing moved, mirrored or recoloured; `examples` itself where nothing would be."""
    still = {n: examples.columns[n].unmoved() for n in examples.inputs if examples.columns[n].moving}
    return replace(examples, columns={**examples.columns, **still}) if still else examples


@torch.no_grad()
def ask(teacher: Any, examples: Examples, device: str, precision: str = "auto") -> Answers | None:
    """The teacher's answers to all examples; None where they would take more than `KEPT` bytes, or are no tensors.

    `precision`: `auto` takes bf16 where that is faster.
    """
    few = Batch.of(examples.arrays(np.linspace(0, len(examples) - 1, min(FEW, len(examples))).astype(int)), device)
    precision = _fastest(teacher, few, device) if precision == "auto" else precision
    found = _answered(teacher, few, device, precision)
    if not all(isinstance(o, Tensor) and len(o) == few.size for o in found.values()):
        return None
    if sum(o.nbytes for o in found.values()) / few.size * len(examples) > KEPT:
        return None
    lengths = examples.lengths()
    order = np.arange(len(examples)) if lengths is None else np.argsort(lengths, kind="stable")
    progress = Progress(say("compress.asking"), len(order))
    rows: dict[str, list[Any]] = {n: [None] * len(order) for n in found}
    try:
        for start in range(0, len(order), AT_ONCE):
            piece = order[start : start + AT_ONCE]
            answers = _answered(teacher, Batch.of(examples.arrays(piece), device), device, precision)
            for name, o in answers.items():
                for place, row in zip(piece, o.cpu()):
                    rows[name][place] = row
            if progress.due():
                progress.update(start + len(piece))
    finally:
        progress.close()
    return Answers({n: torch.stack(r) if len({x.shape for x in r}) == 1 else r for n, r in rows.items()})


def _answered(teacher: Any, batch: Batch, device: str, precision: str) -> dict[str, Any]:
    with products(precision, device), autocast(precision, device):
        return {n: o.float() if isinstance(o, Tensor) else o for n, o in teacher(batch).items()}


def _fastest(teacher: Any, batch: Batch, device: str) -> str:
    """bf16 or fp32, whichever answers sooner; fp32 where little is to be gained. A GPU with bf16 is not asked."""
    if not able(device, "bf16") or device.startswith("cuda"):
        return "bf16" if able(device, "bf16") else "fp32"
    spent: dict[str, float] = {}
    for _ in range(2):  # the first of each warms up
        for precision in ("fp32", "bf16"):
            began = time.process_time()
            _answered(teacher, batch, device, precision)
            spent[precision] = time.process_time() - began
    return "bf16" if spent["fp32"] >= max(WORTH, GAIN * spent["bf16"]) else "fp32"
