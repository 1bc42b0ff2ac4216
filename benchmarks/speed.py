"""CPU seconds of whole commands, each beside its rival in the same run.

    python -m benchmarks.speed [startup check cancer life] [--pairs 5] [--json FILE]

| row | what is timed | beside |
|---|---|---|
| startup | `luban --help` | the interpreter alone |
| check | `luban check` on a recipe with two typos | the interpreter alone |
| cancer | breast cancer: CSV to saved report with baselines | plain PyTorch: read, scale, 30 epochs, accuracy |
| life | Adult: data, train, evaluate, compress, explain 100 rows, audit, export; then again with one setting changed | |
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.common import cpu_seconds, finish, luban, pairs
from luban.data import samples

PLAIN = """
import numpy as np, torch, csv, sys
rows = list(csv.reader(open(sys.argv[1])))
x = np.array([r[:-1] for r in rows[1:]], np.float32); y = np.array([r[-1] == "malignant" for r in rows[1:]], np.float32)
order = np.random.default_rng(0).permutation(len(x)); test, train = order[:57], order[57:]
x = (x - x[train].mean(0)) / x[train].std(0)
x, y = torch.tensor(x), torch.tensor(y)
net = torch.nn.Sequential(torch.nn.Linear(30, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
opt = torch.optim.AdamW(net.parameters(), 1e-3, fused=True)
for epoch in range(30):
    for i in torch.randperm(len(train)).split(16):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(net(x[train[i]])[:, 0], y[train[i]])
        opt.zero_grad(); loss.backward(); opt.step()
print("accuracy", float(((net(x[test])[:, 0] > 0) == y[test]).float().mean()))
"""
TYPOS = """luban: 1
data: {rows: adult.csv}
outputs: {income: categry}
stages:
  - train: {epochz: 5}
"""
LIFE = """luban: 1
data: {rows: adult.csv, split: {validation: 0.1, test: 0.3333}}
outputs: {income: category}
stages:
  - train
  - evaluate
  - compress: {quantize: int8}
  - explain: {rows: 100}
  - audit: {sensitive: sex}
  - export: {to: onnx}
"""


def startup(work: Path, count: int) -> dict:
    return pairs(luban("--help"), [sys.executable, "-c", "pass"], count)


def check(work: Path, count: int) -> dict:
    recipe = work / "typos.yaml"
    recipe.write_text(TYPOS)
    return pairs(luban("check", str(recipe)), [sys.executable, "-c", "pass"], count)


def cancer(work: Path, count: int) -> dict:
    data, script = work / "cancer.csv", work / "plain.py"
    samples.save("breast-cancer", str(data))
    script.write_text(PLAIN)
    mine = luban("train", str(data), "--target", "diagnosis", "--out", str(work / "model"), "--overwrite", "--quiet")
    theirs = [sys.executable, str(script), str(data)]
    result = pairs(mine, theirs, count)
    return result | {
        "luban_says": cpu_seconds(mine)[1].splitlines()[1].strip(),
        "rival_says": cpu_seconds(theirs)[1].strip(),
    }


def life(work: Path, count: int) -> dict:
    samples.save("adult", str(work / "adult.csv"))
    (work / "life.yaml").write_text(LIFE)
    run = luban("run", str(work / "life.yaml"), "--out", str(work / "life"), "--quiet")
    shutil.rmtree(work / "life", ignore_errors=True)
    whole, _ = cpu_seconds(run)
    again, _ = cpu_seconds(run)
    one_changed, _ = cpu_seconds([*run, "--set", "explain.rows=50"])
    history = [json.loads(line) for line in (work / "life" / "history.jsonl").read_text().splitlines()]
    stages = {h["stage"]: h.get("cpu_seconds") for h in history}
    return {"whole": whole, "again": again, "explain_changed": one_changed, "stages": stages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = {"startup": startup, "check": check, "cancer": cancer, "life": life}
    parser.add_argument("rows", nargs="*", default=list(rows))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        finish("speed", {name: rows[name](Path(work), asked.pairs) for name in asked.rows}, asked.json)


if __name__ == "__main__":
    main()
