"""What a GPT of books loses and gains in eight and in four bits, and distilled into a smaller one: bits per byte, size, tokens a second.

    python -m benchmarks.language.small_gpt [--steps 300] [--model FOLDER] [--documents 6] [--repeats 5] [--json FILE]

One model, trained here or `--model`; its int8, int4 and distilled forms, and beside the distilled one the same small network trained alike without a teacher, all judged
on the same held-out documents of english-books; differences are paired by document. Greedy writing at batch 1, CPU seconds of one thread, the forms in turn.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch

import luban
from benchmarks.common import finish
from luban.data.prepare import prepare
from luban.evaluation.intervals import mean
from luban.evaluation.table import table

LARGE, SMALL = {"width": 128, "layers": 4, "heads": 4}, {"width": 64, "layers": 2, "heads": 2}


def recipe(shape: dict[str, int], steps: int) -> dict[str, Any]:
    return {
        "luban": 1, "data": {"rows": "english-books", "split": {"column": "part"}}, "outputs": {"text": {"text": {"vocabulary": 2048}}},
        "frame": {"pack": {"length": 128}}, "model": {"text": {"llama": shape}},
        "stages": [{"train": {"steps": steps, "batch": 8, "tokens": 0, "patience": 0, "optimizer": "muon", "rate": 0.01, "keep": "last"}}],
    }  # fmt: skip


def bits(bundle: Any, data: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bits and bytes of each document."""
    found = table(bundle, data, rows).outputs["text"]
    texts = data.table["text"].take(rows).to_pylist()
    return found.losses[:, 0] / np.log(2), np.array([len(t.encode()) for t in texts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--model")
    parser.add_argument("--documents", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json")
    a = parser.parse_args()
    torch.set_num_threads(1)
    large = luban.load(a.model) if a.model else luban.train(recipe(LARGE, a.steps), evaluate=False)
    data = prepare(large.recipe)
    student, path = recipe(SMALL, a.steps), Path(mkdtemp()) / "student.yaml"
    path.write_text(json.dumps(student), encoding="utf-8")  # JSON is YAML
    forms = {
        "as it is": large,
        "int8": large.compress(data, quantize="int8", explain=0),
        "int4": large.compress(data, quantize="int4", explain=0),
        "distilled": large.compress(data, distill=str(path), explain=0),
        "small, no teacher": luban.train(student, evaluate=False),
    }
    rows = data.part("test")
    sizes = [len(t) for t in data.table["text"].take(rows).to_pylist()]
    rows = rows[np.argsort(sizes, kind="stable")[: a.documents]]
    judged = {n: bits(b, data, rows) for n, b in forms.items()}
    seconds: dict[str, list[float]] = {n: [] for n in forms}
    for turn in range(a.repeats + 1):  # the first one warms up
        for name, bundle in forms.items():
            started = time.process_time()
            bundle.generate("The state of the", tokens=64, temperature=0)
            seconds[name] += [time.process_time() - started] if turn else []
    found = {}
    for name, bundle in forms.items():
        b, size = judged[name]
        per_byte = b / size
        found[name] = {
            "bits_per_byte": float(b.sum() / size.sum()), "bytes": bundle.bytes(), "parameters": bundle.parameters(),
            "worse_by_document": mean(per_byte - judged["as it is"][0] / size).to_json(),
            "tokens_per_cpu_second": 64 / float(np.median(seconds[name])), "low": 64 / max(seconds[name]), "high": 64 / min(seconds[name]),
        }  # fmt: skip
    finish(
        "language-small-gpt",
        {"documents": len(rows), "test_bytes": int(judged["int8"][1].sum()), "steps": a.steps, "forms": found},
        a.json,
    )


if __name__ == "__main__":
    main()
