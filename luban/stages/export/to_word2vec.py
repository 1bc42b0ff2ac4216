"""The table of word vectors of a model as word2vec's text file: a line `N D`, then a word and its D numbers a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from luban import files
from luban.bundle import Bundle
from luban.columns import tokenizer, word_vectors
from luban.errors import ExportMismatch, Unsupported

FIRST = 2  # ids below are padding and "unknown"


def to_word2vec(bundle: Bundle, out: str) -> Path:
    """Write the file and read it again. Raises Unsupported for a model whose encoder has no table of words."""
    found = [(n, getattr(getattr(bundle.network.encoder_of(n), "form", None), "table", None)) for n in bundle.inputs]
    found = [(n, t) for n, t in found if isinstance(t, nn.Embedding) and bundle.columns[n].state.get("tokenizer")]
    if not found:
        raise Unsupported("export.no_vectors", inputs=list(bundle.inputs) or "-")
    name, table = found[0]
    vectors = table.weight.detach().float().cpu().numpy()
    words = tokenizer.words(bundle.columns[name].state["tokenizer"])
    kept = [
        i for i in range(FIRST, min(len(words), len(vectors))) if words[i] and not any(c.isspace() for c in words[i])
    ]
    lines = [f"{len(kept)} {vectors.shape[1]}"]
    lines += [f"{words[i]} " + " ".join(f"{v:.7g}" for v in vectors[i]) for i in kept]
    path = Path(out)
    files.write(path, ("\n".join(lines) + "\n").encode())
    again, hits = word_vectors.read(str(path), [words[i] for i in kept], name)
    gap = np.abs(again[1:] - vectors[kept[1:]]).max(initial=0.0)  # its first row is padding there
    if hits != len(kept) or gap > 1e-5 * max(1.0, float(np.abs(vectors).max())):
        raise ExportMismatch("export.other_vectors", found=hits, want=len(kept))
    return path
