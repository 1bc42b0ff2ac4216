"""Several processes for real: equal to one, killed, stopped, hung, resumed by more or fewer; each with a planted fault."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

from tests import ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not ranks.LINUX, reason="looks for processes under /proc"),
]
OFTEN = "train.checkpoint_seconds=0"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One process trained in `one`, two ranks in `ddp`."""
    folder = ranks.place(tmp_path_factory.mktemp("ranks"))
    ranks.run(folder, "one")
    ranks.run(folder, "ddp", "--ranks", "2", "--set", OFTEN)
    return folder


@pytest.fixture(autouse=True)
def no_orphans(place):
    yield
    until = time.monotonic() + 20
    while ranks.living(place) and time.monotonic() < until:
        time.sleep(0.2)
    assert not ranks.living(place), "a rank is left"


def words(out: str, *more: str) -> list[str]:
    return ["--ranks", "2", "--set", OFTEN, *more]


def plant(folder, code: str) -> dict[str, str]:
    """An environment whose Python does `code` when Luban's ranks are imported."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import sys\nif 'luban.scaling.work' in ' '.join(sys.orig_argv):\n"
        + "".join(f"    {line}\n" for line in ["import os", *code.strip().splitlines()])
    )
    return {"PYTHONPATH": str(folder)}


# -- equal --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy, count", [("ddp", 2), ("fsdp", 2), ("ddp", 3), ("fsdp", 3)])
def test_the_loss_curve_is_that_of_one_process(place, strategy, count):
    out = f"{strategy}{count}"
    ranks.run(place, out, "--ranks", str(count), "--set", f"scale.strategy={strategy}")
    assert ranks.apart(place / "one", place / out) < 1e-5
    if count == 2:
        assert ranks.weights(place / out) == ranks.weights(place / "ddp"), "the same ranks, the same bits"


def test_control_dividing_by_the_weight_of_ones_own_rows(place, tmp_path):
    fault = "import luban.training.state as s\ns.totals = lambda ranks, sums, counts=True: sums"
    ranks.run(place, "local", "--ranks", "2", "--overwrite", **plant(tmp_path / "fault", fault))
    assert ranks.apart(place / "one", place / "local") > 1e-5


PICTURES = ("run", "pictures.yaml")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """One process trained a network with batch norms in `one`. The last batch has two rows, of which the third rank has none."""
    folder = ranks.pictures(tmp_path_factory.mktemp("pictures"))
    ranks.run(folder, "one", verb=PICTURES)
    return folder


@pytest.mark.parametrize("strategy, count", [("ddp", 2), ("fsdp", 2), ("ddp", 3), ("fsdp", 3)])
def test_batch_norms_see_the_whole_batch(pictures, strategy, count):
    out = f"{strategy}{count}"
    ranks.run(pictures, out, "--ranks", str(count), "--set", f"scale.strategy={strategy}", verb=PICTURES)
    assert ranks.apart(pictures / "one", pictures / out) < 1e-5
    one, several = (load_file(pictures / n / "model.safetensors") for n in ("one", out))
    assert one.keys() == several.keys() and any("running_mean" in n for n in one), "an ordinary model"
    for name, tensor in one.items():
        assert torch.allclose(tensor.float(), several[name].float(), atol=1e-4), name


def test_control_batch_norms_of_ones_own_rows(pictures, tmp_path):
    """Each rank with the statistics of its own part is another curve, and ranks that no longer hold the same besides."""
    fault = "import luban.training.norms as n\nn._BatchNorm = type('None', (), {})"
    words = ("--ranks", "2", "--overwrite")
    said = ranks.run(pictures, "local", *words, verb=PICTURES, code=1, **plant(tmp_path / "fault", fault))
    assert "do not hold the same weights" in said
    fault += "\nimport luban.training.ranks as r\nr.Replicated.check = lambda self: None"
    ranks.run(pictures, "local", *words, verb=PICTURES, **plant(tmp_path / "silent", fault))
    assert ranks.apart(pictures / "one", pictures / "local") > 1e-3


def test_ranks_of_ones_own_torchrun_are_joined(place):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "luban"]
    done = subprocess.run(
        [*command, "run", "recipe.yaml", "--out", "joined"], cwd=place, capture_output=True, text=True, timeout=240,
        env=ranks.environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert ranks.weights(place / "joined") == ranks.weights(place / "ddp")


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'luban[ray]'")
def test_ray_trains_what_torchrun_does(place):
    ranks.run(place, "ray", "--ranks", "2", "--set", "scale.engine=ray", seconds=600)
    assert ranks.weights(place / "ray") == ranks.weights(place / "ddp")
    assert ranks.reached(place / "ray", 21), "checkpoints lie where they were asked for, not in a folder of Ray's"


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'luban[ray]'")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_under_ray_is_gone_on_with(place, number, code):
    """Ray ends workers without asking them: the driver's signal reaches them as a file, and they save before they end."""
    out, long = f"ray-stopped-{code}", ("--set", "train.epochs=20")  # the driver hears within a second or two
    running = ranks.start(place, out, *words(out, "--set", "scale.engine=ray", *long))
    ranks.wait_for(lambda: ranks.reached(place / out, 5), running, 600)
    running.send_signal(number)
    _, said = running.communicate(timeout=300)
    assert running.returncode == code, said[-2000:]
    stopped = json.loads((place / out / "history.jsonl").read_text().splitlines()[-1])
    assert stopped["stopped"] == "signal" and 5 <= stopped["steps"] < 140
    ranks.run(place, out, verb=("resume", out), seconds=600)
    ranks.run(place, f"whole-{code}", *words("", *long), seconds=600)
    assert ranks.weights(place / out) == ranks.weights(place / f"whole-{code}")


# -- a rank that fails ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(20))
def test_a_rank_killed_at_a_random_point(place, number):
    """Counted in checkpoints: every update writes one, so that the same points are met on a slow machine."""
    dice = random.Random(number)
    rank, point, strategy = dice.randrange(2), dice.randrange(-4, 17), ("ddp", "fsdp")[number % 4 == 3]
    out = f"killed{number}"
    running = ranks.start(place, out, *words(out, "--set", f"scale.strategy={strategy}"))
    ranks.wait_for(lambda: len(ranks.living(running.pid)) == 2, running)
    if point < 0:
        time.sleep(dice.random() * 4)  # while it starts
    ranks.wait_for(lambda: point < 0 or ranks.reached(place / out, point + 1), running)
    struck = ranks.kill(running.pid, rank)
    _, said = running.communicate(timeout=240)
    assert struck and running.returncode == 0, said[-2000:]
    assert ranks.weights(place / out) == ranks.weights(place / "ddp"), said[-500:]


def test_a_dead_rank_without_a_restart_is_one_sentence(place):
    running = ranks.start(place, "dead", *words("dead", "--set", "scale.restarts=0"))
    ranks.wait_for(lambda: any((place / "dead" / "checkpoints").glob("step-*")), running)
    assert ranks.kill(running.pid, 1)
    _, said = running.communicate(timeout=120)
    last = said.strip().splitlines()[-1]
    assert running.returncode == 1 and "Traceback" not in said
    assert "Rank 1 of 2" in last and "SIGKILL" in last and "rank-1.log" in last and "luban resume" in last
    ranks.run(place, "dead", verb=("resume", "dead"))
    assert ranks.weights(place / "dead") == ranks.weights(place / "ddp")


def test_a_rank_that_leaves_out_a_sum_does_not_hang(place, tmp_path):
    """Rank 1 leaves out one all_reduce: the others are out of step with it and end, within the timeout."""
    fault = """
import luban.training.ranks as r
real, seen = r.Replicated.reduce, []
def once(self, flat):
    seen.append(1)
    if not (os.environ['RANK'] == '1' and len(seen) == 3):
        real(self, flat)
r.Replicated.reduce = once
"""
    began = time.monotonic()
    more = ("--set", "scale.restarts=0", "--set", "scale.timeout=15", "--overwrite")
    said = ranks.run(place, "skipped", *words("skipped", *more), code=1, **plant(tmp_path / "fault", fault))
    assert "Rank" in said.strip().splitlines()[-1] and time.monotonic() - began < 150


def test_weights_that_drift_apart_are_seen(place, tmp_path):
    """Every rank leaves out every sum of gradients: nothing hangs, and yet it is no longer one network."""
    fault = "import luban.training.ranks as r\nr.Replicated.reduce = lambda self, flat: None"
    said = ranks.run(place, "drifted", *words("drifted", "--overwrite"), code=1, **plant(tmp_path / "fault", fault))
    assert "do not hold the same weights" in said


def test_a_rank_that_hangs_is_ended(place):
    running = ranks.start(place, "hung", *words("hung", "--set", "scale.restarts=0", "--set", "scale.timeout=8"))
    ranks.wait_for(lambda: any((place / "hung" / "checkpoints").glob("step-*")), running)
    os.kill(ranks.living(running.pid)[1], signal.SIGSTOP)
    _, said = running.communicate(timeout=200)
    assert running.returncode == 1 and "Traceback" not in said and "Rank" in said.strip().splitlines()[-1]


# -- stopped, and gone on with by others ------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy, then", [("ddp", 1), ("ddp", 3), ("fsdp", 1), ("fsdp", 3)])
def test_another_number_of_ranks_goes_on(place, strategy, then):
    """SIGTERM in the middle of an epoch; the same order of rows, the loss within 1e-5."""
    out = f"stopped-{strategy}-{then}"
    running = ranks.start(place, out, *words(out, "--set", f"scale.strategy={strategy}"))
    ranks.wait_for(lambda: ranks.reached(place / out, 5), running)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=120)
    assert running.returncode == 143, said[-2000:]
    stopped = json.loads((place / out / "history.jsonl").read_text().splitlines()[-1])
    assert stopped["stopped"] == "signal" and 5 <= stopped["steps"] < 21
    ranks.run(place, out, "--ranks", str(then), "--set", "scale.strategy=ddp", verb=("resume", out))
    assert ranks.apart(place / "one", place / out) < 1e-5


def test_one_process_is_gone_on_with_by_sharded_ranks(place):
    running = ranks.start(place, "grown", "--set", OFTEN)
    ranks.wait_for(lambda: ranks.reached(place / "grown", 5), running)
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=120) == 143
    running.communicate()
    ranks.run(place, "grown", "--ranks", "2", "--set", "scale.strategy=fsdp", verb=("resume", "grown"))
    assert ranks.apart(place / "one", place / "grown") < 1e-5


def test_a_launcher_that_is_killed_leaves_no_rank(place):
    running = ranks.start(place, "orphans", *words("orphans"))
    ranks.wait_for(lambda: any((place / "orphans" / "checkpoints").glob("step-*")), running)
    running.kill()
    running.communicate()
    until = time.monotonic() + 60
    while ranks.living(place) and time.monotonic() < until:
        time.sleep(0.2)
    assert not ranks.living(place)
    ranks.run(place, "orphans", verb=("resume", "orphans"))
    assert ranks.weights(place / "orphans") == ranks.weights(place / "ddp")
