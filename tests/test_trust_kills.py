"""SIGKILL at random moments, and each run comes to its end as if nothing had been: no step lost, none made twice.

What is compared with the run that nobody killed: weights and buffers, optimiser, best weights, position, step, sums and
history, the chain of the ids of every example learned from, the ledger of all attempts. See `tests/torture.py`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture import RECIPES, SABOTAGE

ROOT = Path(__file__).parent.parent
FAST = {"mlp": 10, "mlp, averaged in pieces": 10, "cnn": 10, "transformer": 10}
WORKERS = {
    "mlp": 0,
    "mlp, averaged in pieces": 2,
    "cnn": 1,
    "transformer": 2,
}  # loader workers; the slow test has all of 0, 1, 2


def server(jobs: list[dict], timeout: float) -> list[dict]:
    """The jobs in a process of their own, that forks: this one has threads."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.torture", json.dumps(jobs)], cwd=ROOT, capture_output=True,
        text=True, timeout=timeout, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def sabotaged(name: str) -> dict:
    job = {"recipe": "mlp", "kills": 60, "seed": 5, "latest": 0.6, "sabotage": name, "settings": {"epochs": 4}}
    if name == "no_average":
        job |= {"recipe": "mlp, averaged in pieces"}
    if name == "in_place":  # it ends at the first kill that falls into a save
        job |= {"kills": 200, "settings": {"epochs": 4, "checkpoint_seconds": 0}}
    return job


@pytest.fixture(scope="module")
def fast():
    jobs = [
        {"recipe": name, "kills": kills, "seed": 1, "settings": {"loader_workers": WORKERS[name]}}
        for name, kills in FAST.items()
    ] + list(map(sabotaged, SABOTAGE))
    return {(r["recipe"], r.get("sabotage")): r for r in server(jobs, 280)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_killed_forty_times(fast, recipe):
    result = fast[recipe, None]
    assert result["wrong"] == [] and result["kills"] >= FAST[recipe], result
    assert result["newer"] >= 1, "kills after a newer checkpoint are the ones that count"


@pytest.mark.parametrize("fault", SABOTAGE)
def test_control_a_resume_that_forgets_something_is_caught(fast, fault):
    assert next(r for (_, sabotage), r in fast.items() if sabotage == fault)["wrong"]


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_killed_a_thousand_times():
    """25 runs and more, with 0, 1 and 2 loader workers."""
    jobs = [
        {"recipe": name, "kills": 84, "least": 3, "seed": 10 * seed + workers, "settings": {"loader_workers": workers}}
        for seed, name in enumerate(RECIPES)
        for workers in (0, 1, 2)
    ]
    results = server(jobs, 5300)
    assert [r["wrong"] for r in results] == [[]] * len(jobs), results
    assert sum(r["kills"] for r in results) >= 1000 and sum(r["newer"] for r in results) >= 300
    assert sum(r["runs"] for r in results) >= 25, results
