"""SIGTERM at any moment: exit code 143 within 10 seconds, a checkpoint at most one step old, and an exact resume."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHOSEN = ("first", "validation", "checkpoint", "loading", "after")


def tried(moments: list, timeout: float) -> list[dict]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.preempted", json.dumps(moments)], cwd=ROOT, capture_output=True, text=True,
        timeout=timeout, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def sound(result: dict) -> bool:
    owed = result["steps"] - 1 if result["moment"] != "twice" else 0  # a second one does not wait for a checkpoint
    late = result["seconds"] > 10 or result["kept"] < owed
    return result["code"] == 143 and not late and result["exact"] and not result["left"]


def test_at_the_five_chosen_moments_and_twice_and_with_workers_that_die():
    """SIGTERM goes to the whole group. The control: a loader's worker process that is not shielded from it ends the run."""
    *results, twice, shielded, unshielded = tried([*CHOSEN, "twice", "shielded", "unshielded"], 290)
    assert all(map(sound, [*results, twice])) and len(results) == 5, results
    assert twice["seconds"] < 5, "a second one ends the process at once"
    assert sound(shielded) and not sound(unshielded), [shielded, unshielded]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_at_thirty_random_moments():
    rng, stopped = random.Random(0), []
    for _ in range(4):  # where the machine was faster than the moment there was nothing to stop, and another is drawn
        results = tried([rng.uniform(0, 0.9) for _ in range(30 - len(stopped))], 1700)
        assert all(sound(r) or (r["code"] == 0 and r["exact"]) for r in results), results
        stopped += filter(sound, results)
        if len(stopped) == 30:
            return
    pytest.fail(f"{len(stopped)} of 30 moments were met")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_control_a_validation_that_hears_nothing_is_caught():
    assert not sound(tried(["deaf"], 550)[0])
