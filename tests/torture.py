"""Runs that are killed, in a process that has imported everything already: each attempt is a fork of it.

    python -m tests.torture '[{"recipe": "mlp", "kills": 40, "seed": 1}, ...]'    one line of JSON a job

A job trains once without a stop. Then it starts the same run, kills it with SIGKILL at a random moment, starts it again in
the same folder, until the kills are spent and a run has come to its end; a run that ends earlier is checked and a fresh one
begun. `sabotage` breaks one part of the resume, see `SABOTAGE`: then the check must fail.
"""

import contextlib
import copy
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

import luban
from luban import console
from luban.bundle import build_network
from luban.columns.base import make
from luban.columns.examples import encode
from luban.data.frames import row
from luban.training import checkpoints, loop, snapshot
from luban.training.loop import Plan, fit
from luban.training.objectives import supervised
from luban.training.random import seed_torch
from luban.training.steps import plain

ROWS, EPOCHS, BATCH = 320, 8, 16
DROP = {"concat": {"dropout": 0.3}}
PLAN = {
    "epochs": EPOCHS,
    "batch": BATCH,
    "rate": 3e-3,
    "schedule": "cosine",
    "keep": "last",
    "checkpoint_seconds": 0.01,
}


def _table(kind: str) -> pa.Table:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, ROWS)
    if kind == "number":
        columns = {f"x{i}": rng.normal(size=ROWS) + y * (i % 2) for i in range(4)}
    elif kind == "image":
        pictures = (rng.integers(0, 200, (ROWS, 8, 8, 1)) + 55 * y[:, None, None, None]).astype(np.uint8)
        storage = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(pictures))
        columns = {"x": storage}
    else:
        words = np.array(["a", "b", "c", "d", "e", "f"])
        columns = {"x": [" ".join(rng.choice(words[v * 2 :], rng.integers(3, 9))) for v in y]}
    return pa.table(columns | {"y": np.where(y, "p", "n")})


RECIPES = {
    "mlp": ("number", {}),
    "mlp, averaged in pieces": ("number", {}),
    "cnn": ("image", {"x": {"cnn": {"channels": [4, 8]}}}),
    "transformer": ("text", {"x": {"transformer": {"dropout": 0.2}}}),
}


SETTINGS = {"mlp, averaged in pieces": {"ema": 0.9, "accumulate": 3}}  # a batch in pieces that are not of one size


@cache
def built(name: str):
    """Network, training and validation examples of a recipe."""
    kind, model = RECIPES[name]
    table = _table(kind)
    inputs = {n: kind for n in table.column_names if n != "y"}
    recipe = luban.Recipe.of(
        {"luban": 1, "inputs": inputs, "outputs": {"y": "category"}, "size": "nano", "model": model, "fusion": DROP}
    ).resolved()
    cells = {
        n: table[n].combine_chunks().to_numpy_ndarray() if kind == "image" and n == "x" else table[n]
        for n in table.column_names
    }
    columns = {
        n: make(n, p.type, dict(p.settings)).fit(cells[n]) for n, p in {**recipe.inputs, **recipe.outputs}.items()
    }
    seed_torch(0, "weights")
    network = build_network(recipe, columns)
    cut = ROWS * 7 // 8
    parts = [
        encode(columns, list(inputs), ["y"], row(table, index)) for index in (np.arange(cut), np.arange(cut, ROWS))
    ]
    return network, *parts


class Chain:
    """The plain step, with a hash over the ids of every example in the order in which it was learned from.

    The hash is a part of the run's state, so it is saved and taken up with it. Every attempt also writes what it does to
    a ledger beside.
    """

    def __init__(self, ledger: Path):
        self.hash, self.descriptor = "", os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __call__(self, state, batch, objective):
        numbers = plain(state, batch, objective)
        ids = " ".join(map(str, batch.rows.tolist()))
        self.hash = hashlib.sha256(f"{self.hash}/{ids}".encode()).hexdigest()
        os.write(self.descriptor, f"{state.step} {ids}\n".encode())
        return numbers

    def state(self):
        return {"hash": self.hash}

    def restore(self, state):
        self.hash = state["hash"]


def trained(name: str, place: Path, settings: dict) -> dict:
    """A run from where the folder has it to its end; digests of all that it left."""
    network, training, validation = copy.deepcopy(built(name))
    plan = Plan(**{**PLAN, **SETTINGS.get(name, {}), **settings})
    chain = Chain(place / "ledger")
    fit(
        network, training, validation, plan=plan, objective=supervised, step=chain, folder=place / "checkpoints",
        resume=True, data=name,
    )  # fmt: skip
    tensors, state = checkpoints.newest(place / "checkpoints")
    state.pop("spent")  # seconds
    return {
        "weights": digest(network.state_dict()),
        **{file: digest(content) for file, content in tensors.items()},
        "state": state,
        "chain": chain.hash,
    }


def digest(tensors) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().contiguous()
        found.update(f"{name}/{t.dtype}/{tuple(t.shape)}/".encode() + t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


# -- planted faults ------------------------------------------------------------------------------------------------------


def no_rng():
    """Random numbers are a stream that begins anew with the process."""
    real, begun = loop.seed_torch, []

    def once(*a):
        if not begun:
            begun.append(real(0, "stream"))

    loop.seed_torch = once


def _after_put_back(change):
    real = snapshot.put_back

    def broken(run, tensors, state):
        real(run, tensors, state)
        change(run)

    snapshot.put_back = broken


def no_position():
    _after_put_back(lambda run: setattr(run, "position", 0))


def no_schedule():
    def anew(run):
        real, begun = run.state.factor, run.state.step
        run.state.factor = lambda step: real(step - begun)

    _after_put_back(anew)


def no_average():
    """The average begins anew with the weights as they are."""
    _after_put_back(
        lambda run: [kept.copy_(live) for kept, live in zip(run.state.average.kept, run.state.average.live)]
    )


def no_optimizer():
    _after_put_back(lambda run: [t.zero_() for t in run.state.optimizer.tensors().values()])


def in_place():
    """One folder, written over, held together by nothing."""
    from safetensors.torch import load_file

    from luban import files

    def save(folder, step, tensors, state, **_):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in tensors.items():
            files.put(folder / f"{name}.safetensors", checkpoints.pieces(content))
        files.put(folder / "state.json", json.dumps(state))

    def newest(folder, **_):
        if not (folder / "state.json").exists():
            return None
        tensors = {p.stem: load_file(p) for p in folder.glob("*.safetensors")}
        return tensors, json.loads((folder / "state.json").read_text())

    checkpoints.save, checkpoints.newest = save, newest


SABOTAGE = {f.__name__: f for f in (no_rng, no_position, no_schedule, no_optimizer, no_average, in_place)}


# -- the killer ----------------------------------------------------------------------------------------------------------


def forked(work) -> int:
    """Run `work` in a child that ends with it; its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        code = work() or 0
    except SystemExit as e:
        code = e.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def attempt(job: dict, place: Path, after: float | None) -> str:
    """One start of the run: "killed" `after` so many seconds, "ended", or "failed"."""

    def work():
        console.configure(quiet=True)
        if job.get("sabotage"):
            SABOTAGE[job["sabotage"]]()
        result = trained(job["recipe"], place, job.get("settings", {}))
        (place / "result.tmp").write_text(json.dumps(result))
        os.replace(place / "result.tmp", place / "result.json")

    child = forked(work)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "killed"
    return "ended" if os.WEXITSTATUS(status) == 0 else "failed"


def newest_step(place: Path) -> int:
    steps = [int(p.name[5:]) for p in (place / "checkpoints").glob("step-*")] if place.exists() else []
    return max(steps, default=-1)


def ledger(place: Path) -> dict[int, set[str]]:
    """What was learned from in each step, by any attempt; the last line may be half."""
    found: dict[int, set[str]] = {}
    for line in (place / "ledger").read_text().splitlines():
        step, _, ids = line.partition(" ")
        found.setdefault(int(step), set()).add(ids)
    return found


def checked(place: Path, whole: Path) -> list[str]:
    """What is wrong with a run that was killed and came to its end."""
    got, want = (json.loads((p / "result.json").read_text()) for p in (place, whole))
    wrong = [key for key in want if got.get(key) != want[key]]
    steps, sound = ledger(place), ledger(whole)
    wrong += ["steps lost"] * (steps.keys() != sound.keys())
    wrong += ["other rows"] * any(ids != sound.get(step) for step, ids in steps.items())
    left = [p.name for p in (place / "checkpoints").iterdir() if p.name.startswith(".")]
    return wrong + [f"left {n}" for n in left]


def tortured(job: dict, root: Path) -> dict:
    rng, kills, newer, runs, wrong = random.Random(job["seed"]), 0, 0, 0, []
    whole = root / "whole"
    whole.mkdir()
    began = time.monotonic()
    assert attempt({**job, "sabotage": None}, whole, None) == "ended"
    length = time.monotonic() - began
    early = lambda: kills < 3 * job["kills"] and not newer  # noqa: E731  the machine is slower than it was: no checkpoint was met yet
    while not wrong and (kills < job["kills"] or runs < job.get("least", 1) or early()):
        share = -(-job["kills"] // job.get("least", 1)) * (runs + 1)  # of the kills: each of the least runs has some
        place = root / f"run-{runs}"
        place.mkdir()
        outcome = "killed"
        while outcome == "killed":
            before = newest_step(place)
            late = kills >= job["kills"] and early()
            latest = 0.9 if late else job.get("latest", 0.15)
            after = rng.uniform(0.002, latest * length) if late or kills < min(share, job["kills"]) else None
            outcome = attempt(job, place, after)
            kills += outcome == "killed"
            newer += outcome == "killed" and newest_step(place) > before
        runs += 1
        wrong = ["cannot go on"] if outcome == "failed" else checked(place, whole)
        shutil.rmtree(place)
    return {"kills": kills, "newer": newer, "runs": runs, "wrong": wrong, "seconds": round(time.monotonic() - began, 1)}


def memory() -> str | None:
    """Where a folder costs no fsync, on Linux: a SIGKILL does not tell it from a disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def main(jobs: list[dict]) -> None:
    torch.set_num_threads(1)
    for job in jobs:
        root = Path(tempfile.mkdtemp(prefix="luban-torture-", dir=memory()))
        (root / "warm").mkdir()
        console.configure(quiet=True)
        trained(
            job["recipe"], root / "warm", job.get("settings", {}) | {"epochs": 1}
        )  # what is imported at the first step
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, root, ignore_errors=True)
            print(json.dumps({**job, **tortured(job, root)}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
