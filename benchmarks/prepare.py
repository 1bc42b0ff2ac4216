"""Memory and time of preparing large files: read, typed, checked, split, columns fitted, every example encoded.

    python -m benchmarks.prepare [table text] [--rows 1000000 3000000 10000000] [--gigabytes 0.5 1 2] [--rivals] [--json FILE]

| row | what it is |
|---|---|
| table | N rows of 8 numbers, 3 categories and a class, as CSV (about 100 bytes a row) |
| text | documents of ten sentences of English books and package descriptions (about 1,200 characters), twenty words of each swapped, with a class, as CSV with a quoted text column |

`luban` is what `luban train` does before the first update, with torch imported as it has it. `pandas` reads the file, splits,
scales by the training rows, numbers the categories and keeps a float32 matrix (table), or tokenises with the same
tokenizer (text). Each runs in a process of its own: `peak_mb` is its `ru_maxrss`, the largest resident memory of all of it,
interpreter, libraries and mapped pages included; `cpu_seconds` are user and system time. The files are generated and deleted.
`agree`: both sides' scaled numbers of the first training rows, largest difference.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.common import finish

BLOCK = 200_000

LUBAN = """
import json, resource, sys, time
import torch
from luban import console
console.configure(quiet=True)
from luban.asking import Ask, findings, recipe_from
from luban.columns.fitting import fit_columns
from luban.columns.kept import encode_kept
from luban.data.prepare import prepare
from luban.recipe import Recipe
path, text = sys.argv[1], sys.argv[2] == "text"
spent, began = {}, time.process_time()
def done(stage):
    global began
    spent[stage] = round(time.process_time() - began, 2)
    began = time.process_time()
    peak[stage] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
peak = {"import": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
recipe, rows, _ = recipe_from(path, Ask("label"))
recipe = recipe.resolved()
done("read")
data = prepare(recipe, rows)
done("prepare")
found = findings(recipe, data)
done("check")
columns = fit_columns(recipe, data)
done("fit")
names = list(recipe.inputs)
made = {p: encode_kept(columns, names, ["label"], data.framed(p, recipe.frame)) for p in ("train", "validation", "test")}
done("encode")
batch = made["train"].arrays(torch.arange(8).numpy())
again = encode_kept(columns, names, ["label"], data.framed("train", recipe.frame))
done("again")
print(json.dumps({"rows": {p: len(e) for p, e in made.items()}, "seconds": spent, "peak": peak, "stored": bool(made["train"].stored),
    "findings": [f.id for f in found], "inputs": {n: p.type for n, p in recipe.inputs.items()},
    "tokens": int(made["train"].lengths().sum()) if text else 0,
    "ids": data.part("train")[:8].tolist(), "x": [] if text else batch.inputs["n0"][0].tolist()}))
"""

PANDAS = """
import json, resource, sys
import numpy as np, pandas as pd
path, text, train = sys.argv[1], sys.argv[2] == "text", None
frame = pd.read_csv(path)
part = np.random.default_rng(0).choice(3, len(frame), p=[0.8, 0.1, 0.1])
train = part == 0
y = frame["label"].astype("category").cat.codes.to_numpy()
if text:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    made = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"\\w+|[^\\w\\s]"), "removed", invert=True)
    made.train_from_iterator(frame["text"][train].iloc[:100_000], trainers.WordLevelTrainer(vocab_size=10_000, special_tokens=["[UNK]"], show_progress=False))
    x = [np.array(e.ids[:256], np.int32) for i in range(0, len(frame), 1000) for e in made.encode_batch_fast(frame["text"].iloc[i : i + 1000].tolist())]
    rows = len(x)
else:
    numbers = [c for c in frame if c.startswith("n")]
    mean, deviation = frame.loc[train, numbers].mean(), frame.loc[train, numbers].std(ddof=0)
    x = ((frame[numbers] - mean) / deviation).astype(np.float32).to_numpy()
    codes = np.stack([frame[c].astype("category").cat.codes.to_numpy() for c in ("c0", "c1", "c2")], 1)
    rows = len(x)
print(json.dumps({"rows": rows}))
"""


def table(path: Path, rows: int) -> None:
    """N rows in blocks, each a function of its number."""
    import pyarrow as pa
    from pyarrow import csv

    words = [np.array([f"{k}{i}" for i in range(n)]) for k, n in (("a", 4), ("shop", 50), ("z", 800))]
    names = [*(f"n{i}" for i in range(8)), "c0", "c1", "c2", "label"]
    with open(path, "wb") as file:
        file.write((",".join(names) + "\n").encode())
        for start in range(0, rows, BLOCK):
            rng = np.random.default_rng((1, start))
            count = min(BLOCK, rows - start)
            x = rng.normal(size=(count, 8)) * [1, 10, 100, 1, 1, 1, 1, 1] + [0, 5, 0, 0, 0, 0, 0, 0]
            label = np.where(x[:, 0] + x[:, 3] + rng.normal(size=count) > 0, "yes", "no")
            cells = [*np.round(x, 5).T, *(w[rng.integers(0, len(w), count)] for w in words), label]
            csv.write_csv(
                pa.table(cells, names=names), file, csv.WriteOptions(include_header=False, quoting_style="none")
            )


def text(path: Path, gigabytes: float) -> None:
    """Documents of ten sentences of English books and package descriptions, in any order; twenty words of each are others."""
    from luban.data import samples

    found = [samples.load(n).table[c].to_pylist() for n, c in (("english-books", "text"), ("debian-descriptions", "long"))]  # fmt: skip
    whole = " ".join(" ".join(t.split()) for t in (*found[0], *found[1])).replace('"', "'")
    pool = [s + "." for s in whole.split(". ") if 20 < len(s) < 400]
    words = whole.split(" ")
    written, number = 0, 0
    with open(path, "w", encoding="utf-8") as file:
        file.write("label,text\n")
        while written < gigabytes * 1e9:
            rng = np.random.default_rng((3, number))
            picks = rng.integers(0, len(pool), (10_000, 10)).tolist()
            others, places = rng.integers(0, len(words), (10_000, 20)).tolist(), rng.random((10_000, 20)).tolist()
            for i, (sentences, other, place) in enumerate(zip(picks, others, places)):
                cut = " ".join([pool[k] for k in sentences]).split(" ")
                for k, at in zip(other, place):
                    cut[int(at * len(cut))] = words[k]
                line = f'{("no", "yes")[sentences[0] % 2]},"{number * 10_000 + i} {" ".join(cut)}"\n'
                written += len(line)
                file.write(line)
            number += 1


def measured(code: str, path: Path, kind: str, cache: str) -> dict:
    """Peak resident memory and CPU seconds of one side in a process of its own, and what it says."""
    environment = {**os.environ, "LUBAN_CACHE": cache, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": os.getcwd()}  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path), kind], stdout=subprocess.PIPE, text=True, env=environment
    )
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{kind}: {status}")
    return {
        "peak_mb": used.ru_maxrss // 1024,
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        **json.loads(said),
    }


def row(kind: str, amount: float, rivals: bool, folder: Path) -> dict:
    path, wanted = folder / f"{kind}.csv", int(amount) if kind == "table" else amount
    code = f"from pathlib import Path; from benchmarks import prepare; prepare.{kind}(Path({str(path)!r}), {wanted})"
    subprocess.run(
        [sys.executable, "-c", code], check=True
    )  # a child begins with its parent's peak: this one stays small
    megabytes = path.stat().st_size // 1_000_000
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        result = {"row": kind, "amount": amount, "file_mb": megabytes, "luban": measured(LUBAN, path, kind, cache)}
    if rivals:
        result["pandas"] = measured(PANDAS, path, kind, "")
    path.unlink()
    print(json.dumps(result), file=sys.stderr, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=["table", "text"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 3_000_000, 10_000_000])
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.5, 1.0, 2.0])
    parser.add_argument("--rivals", action="store_true")
    parser.add_argument("--json")
    asked = parser.parse_args()
    amounts = {"table": asked.rows, "text": asked.gigabytes}
    with tempfile.TemporaryDirectory() as folder:
        found = [row(k, a, asked.rivals, Path(folder)) for k in asked.kinds for a in amounts[k]]
    finish("prepare", found, asked.json)


if __name__ == "__main__":
    main()
