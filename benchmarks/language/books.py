"""Bits per byte on held-out documents of English: what a language model must beat.

    python -m benchmarks.language.books [--json FILE]

| side | what it is |
|---|---|
| kneser_ney | interpolated modified Kneser-Ney over bytes, order up to 8 chosen on the validation documents; every document from its own beginning |
| xz | bytes that each test document adds to `xz -9e` of the training documents and the test documents before it; the window holds all |

State of the Union and World English Bible (`english-books`), split by document; nothing is fitted on validation or test text. Intervals: bootstrap over the test documents.
`copied`: 8-grams of words of the test documents that occur in training ones.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

from benchmarks.common import finish
from benchmarks.language.splits import split
from luban.evaluation.ngram import byte_model, xz_sizes
from luban.evaluation.text_metrics import bits_per_byte


def eights(text: str) -> set[int]:
    """Hashes of the runs of eight words."""
    words = text.split()
    return {hash(run) for run in zip(*(words[i:] for i in range(8)))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--whole", action="store_true", help="xz of all test documents at once: no interval, 2 runs instead of 35"
    )
    parser.add_argument("--json")
    a = parser.parse_args()
    parts = split("english-books")
    texts = {part: [row["text"] for row in rows] for part, rows in parts.items()}
    size = [len(text.encode()) for text in texts["test"]]
    started = time.process_time()
    model = byte_model(texts["train"], texts["validation"])
    nats = model.nats(texts["test"])
    seconds = time.process_time() - started
    rows: dict[str, Any] = {
        "kneser_ney": {
            "bits_per_byte": bits_per_byte(nats, size).to_json(),
            "order": model.order,
            "validation_by_order": dict(enumerate(model.bits, 1)),
            "cpu_seconds": seconds,
        }
    }
    for source in ("state-of-the-union", "web-bible"):
        chosen = [i for i, row in enumerate(parts["test"]) if row["source"] == source]
        found = bits_per_byte(nats[chosen], [size[i] for i in chosen])
        rows["kneser_ney"][source] = {**found.to_json(), "documents": len(chosen)}
    started = time.process_time()
    added = xz_sizes(texts["train"], texts["test"], each=not a.whole)
    rows["xz"] = {
        "bits_per_byte": bits_per_byte(added * (8 * math.log(2)), [sum(size)] if a.whole else size).to_json(),
        "bytes": int(added.sum()),
        "cpu_seconds": time.process_time() - started,
    }
    rows["documents"] = {part: len(t) for part, t in texts.items()}
    rows["bytes"] = {part: sum(len(x.encode()) for x in t) for part, t in texts.items()}
    seen = set().union(*map(eights, texts["train"]))
    tested = [eights(text) for text in texts["test"]]
    rows["copied"] = sum(len(t & seen) for t in tested) / sum(map(len, tested))
    finish("language-books", rows, a.json)


if __name__ == "__main__":
    main()
