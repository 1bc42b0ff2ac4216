"""KernelSHAP: Luban beside the `shap` package and Captum, same network, same rows, same number of samples, in one run.

    python benchmarks/kernel_shap.py [--pairs 7] [--threads 1,2] [--json FILE]

A network of 12 features (scikit-learn's breast cancer data), 512 coalitions, one background row, 1 and 100 instances. Both
sides call the same function and alternate A B A B after a warm-up; times are CPU seconds of this process, a ratio is the
median over pairs. Quality: relative L2 error against the exact Shapley values of all 4,096 coalitions, mean of 20 seeds
(shap: 20, and 5 for 100 instances; Captum: 3). Rivals run at their defaults and at their best documented setting. Captum explains one row at a time, so its
figure for 100 instances is measured on 10 and told per instance.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

SAMPLES, FEATURES, SEED = 512, 12, 0
GOALS = {"shap": 10.0, "captum": 100.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        print(json.dumps(measure(asked.pairs)))
        return
    rows = []
    for threads in asked.threads.split(","):
        env = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)}
        command = [sys.executable, __file__, "--inside", "--pairs", str(asked.pairs)]
        done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
        rows += json.loads(done.stdout.splitlines()[-1])
        show([r for r in rows if r["env"]["threads"] == int(threads)])
        if asked.json:
            asked.json.parent.mkdir(parents=True, exist_ok=True)
            asked.json.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(0 if all(r["reached"] for r in rows) else 1)


def measure(pairs: int) -> list[dict]:
    """One process, one number of threads."""
    import numpy as np

    sys.path.insert(0, str(Path(__file__).parent.parent))
    from luban.stages.explain.shapley import design, exact_shapley, kernel_shap, masked_rows

    warnings.simplefilter("ignore")
    network, x = trained()
    score, background = scoring(network), np.zeros(FEATURES, np.float32)  # the mean of standardised features
    truth = exact_shapley(masked_rows(score, x, background), FEATURES)

    def error(w):
        return float(np.mean(np.linalg.norm(w - truth[: len(w)], axis=1) / np.linalg.norm(truth[: len(w)], axis=1)))

    rows = []
    for count in (1, 100):

        def mine(s=0, count=count):
            return kernel_shap(masked_rows(score, x[:count], background), FEATURES, samples=SAMPLES, seed=s).weights

        quality = float(np.mean([error(mine(s)) for s in range(20)]))
        for name, rival, its in rivals(network, score, x[:count], background):
            seeds = range((20 if count == 1 else 5) if name.startswith("shap") else 3)
            theirs = float(np.mean([error(seeded(s, rival)) for s in seeds]))
            ratios, a, b = alternating(mine, rival, pairs, its / count)
            ratio, goal = float(np.median(ratios)), GOALS[name.split()[0]]
            # fmt: off
            rows.append({
                "name": "kernel-shap", "rival_name": name, "instances": count, "samples": SAMPLES, "features": FEATURES,
                "metric": "cpu_ms_per_instance", "luban": 1e3 * a / count, "rival": 1e3 * b / its,
                "ratio": ratio, "lo": min(ratios), "hi": max(ratios), "n": pairs,
                "quality": "relative_error", "quality_luban": quality, "quality_rival": theirs,
                "goal": goal, "reached": ratio >= goal and quality <= theirs,
                "first_call_ms": first_call(mine, design), "env": environment(x),
            })
            # fmt: on
    return rows


def trained():
    """A small network that has learned something, and the rows to explain: seconds, no file."""
    import numpy as np
    import torch
    from sklearn.datasets import load_breast_cancer
    from torch import nn

    data = load_breast_cancer()
    x = data.data[:, :FEATURES]
    x = torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)
    y = torch.tensor(data.target, dtype=torch.float32)
    torch.manual_seed(SEED)
    network = nn.Sequential(nn.Linear(FEATURES, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(network(x)[:, 0], y).backward()
        optimizer.step()
    return network.eval(), np.ascontiguousarray(x[:100].numpy())


def scoring(network) -> Callable:
    """(B, F) numpy -> (B,) log-odds, the one function that both sides call."""
    import numpy as np
    import torch

    @torch.inference_mode()
    def score(rows):
        return network(torch.from_numpy(np.asarray(rows, np.float32)))[:, 0].numpy()

    return score


def rivals(network, score, x, background):
    """(name, call, instances it explains): each at its defaults and at its best documented setting."""
    import numpy as np
    import shap
    import torch
    from captum.attr import KernelShap

    explainer = shap.KernelExplainer(score, background[None])
    yield "shap (defaults)", lambda: explainer.shap_values(x, nsamples=SAMPLES, silent=True), len(x)
    yield "shap (no selection)", lambda: explainer.shap_values(x, nsamples=SAMPLES, l1_reg=False, silent=True), len(x)
    method, base = KernelShap(lambda rows: network(rows)[:, 0]), torch.from_numpy(background)[None]
    few = torch.from_numpy(x[:10])

    def captum(together: int):
        with torch.no_grad():
            found = [
                method.attribute(row[None], base, n_samples=SAMPLES, perturbations_per_eval=together) for row in few
            ]
        return np.concatenate([f.numpy() for f in found])

    yield "captum (defaults)", lambda: captum(1), len(few)
    yield "captum (512 together)", lambda: captum(512), len(few)


def alternating(mine: Callable, rival: Callable, pairs: int, share: float) -> tuple[list[float], float, float]:
    """Ratios rival / mine of pairs run one after the other, and both medians; `share`: part of my instances that it explains."""
    import statistics

    again = 20  # my calls are short for a clock
    mine(), rival()
    found = []
    for _ in range(pairs):
        start = time.process_time()
        for _ in range(again):
            mine()
        middle = time.process_time()
        rival()
        found.append(((middle - start) / again, time.process_time() - middle))
    ratios = [b / share / a for a, b in found]
    return ratios, statistics.median(a for a, _ in found), statistics.median(b for _, b in found)


def seeded(seed: int, rival: Callable):
    import numpy as np
    import torch

    np.random.seed(seed)
    torch.manual_seed(seed)
    return rival()


def first_call(mine: Callable, design: Callable) -> float:
    """CPU milliseconds of a call that has to draw the coalitions and solve for the matrix first."""
    design.cache_clear()
    start = time.process_time()
    mine()
    return 1e3 * (time.process_time() - start)


def environment(x) -> dict:
    import hashlib

    import torch

    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    field = lambda key: next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")  # noqa: E731
    flags = [f for f in field("flags").split() if f.startswith(("avx", "amx"))]
    packages = {name: version(name) for name in ("torch", "numpy", "shap", "captum")}
    return {"cpu": field("model name") or platform.processor(), "flags": flags, "threads": torch.get_num_threads(), "python": platform.python_version(), "packages": packages, "data": hashlib.sha256(x.tobytes()).hexdigest()[:16], "seed": SEED}  # fmt: skip


def show(rows: list[dict]) -> None:
    print(f"threads {rows[0]['env']['threads']}, {rows[0]['env']['cpu']}")
    for r in rows:
        print(
            f"  {r['instances']:>3} instances  luban {r['luban']:.3f} ms (error {100 * r['quality_luban']:.2f} %, first call {r['first_call_ms']:.1f} ms)"
            f"  {r['rival_name']} {r['rival']:.2f} ms (error {100 * r['quality_rival']:.2f} %)"
            f"  ratio {r['ratio']:.1f} [{r['lo']:.1f}, {r['hi']:.1f}], goal {r['goal']:.0f}: {'reached' if r['reached'] else 'missed'}"
        )


if __name__ == "__main__":
    main()
