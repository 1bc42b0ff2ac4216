"""Several processes train one network: what is asked for, how a batch is cut, and one real run of two ranks."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import luban
from luban import registry, scale, scaling
from luban.asking import mixtures
from luban.bundle import Bundle
from luban.cli import main
from luban.data.prepare import prepare
from luban.errors import (
    BundleError,
    DataError,
    RankLost,
    RanksDiffer,
    RecipeError,
    RequestError,
    Unsupported,
    WorkError,
)
from luban.messages import set_language
from luban.recipe import Recipe
from luban.scaling import cluster, job
from luban.training import snapshot
from luban.training.plan import Plan
from luban.training.ranks import ALONE, Group, Replicated, totals
from luban.training.sharded import Sharded
from tests import ranks, tiny

WRONG = {
    "{engine: torchrum}": ["scale.engine", "torchrun"],
    "{ranks: 0}": ["scale.ranks", ">= 1"],
    "{ranks: many}": ["scale.ranks", "many"],
    "{strategy: fdsp, ranks: 2}": ["scale.strategy", "fsdp"],
    "{strategy: fsdp, ranks: 1}": ["scale.strategy", "ranks >= 2"],
    "{rank: 2}": ["scale.rank", "ranks"],
    "{timeout: 0}": ["scale.timeout"],
    "{address: 10.0.0.1}": ["scale.address", "ray"],
    "{restarts: -1}": ["scale.restarts"],
    "two": ["scale"],
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_scale_is_one_sentence_with_its_place(tmp_path, text):
    (tmp_path / "r.yaml").write_text(f"luban: 1\nscale: {text}\n")
    with pytest.raises(RecipeError) as e:
        Recipe.load(tmp_path / "r.yaml")
    assert len(e.value.problems) == 1 and "r.yaml:2" in str(e.value)
    assert not [part for part in WRONG[text] if part not in str(e.value)], str(e.value)


def test_every_default_is_shown():
    shown = Recipe.of({"luban": 1, "scale": {"ranks": 2}}).resolved().plain()["scale"]
    assert shown == {"engine": "torchrun", "ranks": 2, "strategy": "ddp", "restarts": 3, "timeout": 600.0}


def test_what_cannot_be_here_is_said_before_work_starts(tmp_path, monkeypatch):
    rows = str(tiny.csv(tmp_path / "rows.csv"))
    with pytest.raises(RequestError) as e:
        luban.train(rows, "back", size="nano", set=["scale.strategy=fsdp"])
    assert e.value.id == "scale.fsdp_alone"
    monkeypatch.setattr(scale, "find_spec", lambda name: None)
    with pytest.raises(RequestError) as e:
        luban.train(rows, "back", size="nano", set=["scale.engine=ray", "scale.ranks=2"])
    assert e.value.id == "extra.missing" and "luban[ray]" in str(e.value)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    assert scale.chosen({})["ranks"] == 4
    assert [p.id for p in scale.unready({"ranks": 2})] == ["scale.other_world"]


def test_a_saved_model_loads_wherever_it_was_trained(tmp_path, monkeypatch):
    """A recipe that asks for eight ranks on an engine that is not here is still a recipe."""
    monkeypatch.setattr(scale, "find_spec", lambda name: None)
    assert (
        Recipe.of({"luban": 1, "scale": {"engine": "ray", "ranks": 8, "strategy": "fsdp"}}).resolved().scale["ranks"]
        == 8
    )


MIXED = {
    "luban": 1, "inputs": {"price": "number"}, "outputs": {"back": "category"},
    "scale": {"strategy": "fsdp", "ranks": 2}, "stages": [{"train": {"ema": 0.99, "accumulate": 4, "optimizer": "muon"}}],
}  # fmt: skip


def test_what_cannot_be_trained_together_is_known_from_the_recipe(tmp_path, monkeypatch, capsys):
    """In check, train and run, before any rank starts, with one sentence each."""
    monkeypatch.setattr(scaling, "_launch", lambda *_: pytest.fail("a rank was started"))
    recipe = Recipe.of(MIXED | {"data": {"rows": str(tiny.csv(tmp_path / "rows.csv"))}})
    (tmp_path / "r.yaml").write_text(recipe.yaml())
    for ask in (
        lambda: luban.check(recipe),
        lambda: luban.train(recipe, out=tmp_path / "m"),
        lambda: luban.run(recipe, tmp_path / "m"),
    ):
        with pytest.raises(Unsupported) as e:
            ask()
        assert [p.id for p in e.value.problems] == ["scale.whole_matrices", "scale.ddp_only"]
        assert "ema: 0.99, accumulate: 4" in str(e.value) and not (tmp_path / "m").exists()
    assert main(["check", str(tmp_path / "r.yaml")]) == 2 and "muon" in capsys.readouterr().err
    alone = Recipe.of(MIXED | {"scale": {"ranks": 2}})
    assert not mixtures(alone), "ddp trains all of it"


def test_a_default_that_does_not_go_with_the_strategy_is_told_too():
    """Networks that write learn by muon where nothing is said."""
    plain = {"luban": 1, "inputs": {"a": "text"}, "outputs": {"b": "text"}, "scale": {"strategy": "fsdp", "ranks": 2}}
    assert [p.id for p in mixtures(Recipe.of(plain))] == ["scale.whole_matrices"]
    assert not mixtures(Recipe.of(plain | {"stages": [{"train": {"optimizer": "adamw"}}]}))


def test_the_optimisers_of_whole_matrices_are_those_that_are_named():
    names = registry.names("optimizers")
    assert [n for n in names if registry.find("optimizers", n)().hidden] == list(scale.WHOLE)


def test_a_network_that_ranks_cannot_train_is_told_before_any_starts(monkeypatch):
    """From its structure, no row being read: one that compares the rows of a batch, under both strategies. BatchNorm is trained."""
    monkeypatch.setattr(scaling, "_launch", lambda *_: pytest.fail("a rank was started"))
    plain = {"luban": 1, "inputs": {"a": "text", "b": "text"}, "fusion": "match"}
    for strategy in ("ddp", "fsdp"):
        recipe = Recipe.of(plain | {"scale": {"ranks": 2, "strategy": strategy}})
        with pytest.raises(Unsupported) as e:
            scaling.train(Bundle(recipe), None)
        assert e.value.id == "scale.compares"
        picture = {"luban": 1, "inputs": {"photo": "image"}, "outputs": {"y": "category"}}
        for encoder in ("resnet", "vit"):
            assert not scaling._unfit(Bundle(Recipe.of(picture | {"model": {"photo": encoder}})), strategy)


# -- shares ---------------------------------------------------------------------------------------------------------


def group(rank: int, world: int) -> Group:
    """A rank without others behind it: enough to cut a batch."""
    one = object.__new__(Group)
    one.rank, one.world, one.first, one.own = rank, world, rank == 0, (rank,)
    return one


@pytest.mark.parametrize("rows, world", [(10, 2), (11, 2), (7, 3), (1, 2), (2, 5), (0, 2)])
def test_shares_are_the_batch_cut_up(rows, world):
    batch = np.random.default_rng(rows).permutation(100)[:rows]
    shares = [group(r, world).share(batch) for r in range(world)]
    counted = np.concatenate([own for own, counts in shares if counts] or [batch])
    assert sorted(counted) == sorted(batch)
    assert all(len(own) == min(1, rows) for own, counts in shares if not counts)
    sizes = [len(own) for own, counts in shares if counts]
    assert not sizes or max(sizes) - min(sizes) <= 1


def test_long_rows_are_shared_out():
    """A batch stands sorted by length; halves of it would leave one rank with all the long ones."""
    lengths = np.arange(64)
    one, two = (lengths[group(r, 2).share(np.arange(64))[0]].sum() for r in (0, 1))
    assert abs(one - two) <= 32


def test_alone_nothing_is_summed_or_copied():
    sums = {"y": (torch.tensor(3.0), torch.tensor(2.0))}
    assert totals(ALONE, sums) is sums and ALONE.told({"a": 1}) == {"a": 1} and ALONE.ask(lambda: 15)() == 15


# -- the job --------------------------------------------------------------------------------------------------------


def test_a_job_is_all_that_a_rank_needs(tmp_path):
    recipe = Recipe.load(ranks.place(tmp_path) / "recipe.yaml", (f"data.rows={tmp_path / 'rows.csv'}",)).resolved()
    data, bundle = prepare(recipe), Bundle(recipe)
    job.write(tmp_path / "job", bundle, data, {"epochs": 2}, scale.chosen({"ranks": 2}))
    again, same = job.read(tmp_path / "job")
    assert again.recipe.plain() == recipe.plain() and same.table.equals(data.table) and len(same.rows) == len(data.rows)
    assert all((same.part(p) == data.part(p)).all() for p in ("train", "validation", "test"))
    assert not [p for p in (tmp_path / "job").iterdir() if p.suffix in (".pt", ".pkl", ".bin")]


@pytest.mark.parametrize(
    "error",
    [
        DataError("data.none_named"),
        WorkError("io.failed", path="x", reason="full"),
        BundleError("ranks.differ", what="data", world=2),
        Unsupported("scale.ddp_only", settings=["ema", "accumulate"]),
        Unsupported("scale.scalar", names=[f"norm{i}" for i in range(20)]),
    ],
)
def test_a_mistake_of_a_rank_is_raised_in_the_launcher(tmp_path, error):
    job.fail(tmp_path, error)
    with pytest.raises(type(error)) as e:
        job.result(tmp_path, Bundle(Recipe()))
    assert str(e.value) == str(error) and e.value.exit_code == error.exit_code
    assert "[" not in str(e.value), "no list as Python writes it"
    assert "norm4 and 15 more" in str(e.value) or "norm0" not in str(e.value)


def test_what_ranks_differ_in_is_said_in_the_language_of_the_launcher(tmp_path):
    job.fail(tmp_path, RanksDiffer("ranks.differ", what="weights", world=2))
    set_language("zh")
    try:
        with pytest.raises(RanksDiffer, match="2 个进程的权重不一致") as e:
            job.result(tmp_path, Bundle(Recipe()))
        assert e.value.to_json()["problems"][0]["values"] == {"what": "weights", "world": 2}, (
            "machines read it as it is"
        )
    finally:
        set_language(None)


def test_a_module_of_ones_own_cannot_be_sent(tmp_path):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 2)

        def forward(self, price):
            return self.layer(price[:, None])

    with pytest.raises(Unsupported) as e:
        luban.train(tiny.rows(), "back", inputs=["price"], model=Net(), epochs=1, set=["scale.ranks=2"])
    assert e.value.id == "scale.own_module"


# -- two real ranks ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch is built without torch.distributed")
def test_two_ranks_train_what_one_does(tmp_path):
    """The same loss curve as one process within 1e-5 in fp32 without dropout, and an ordinary Bundle."""
    folder = ranks.place(tmp_path)
    changes = (
        f"data.rows={folder / 'rows.csv'}",
        "stages=[{train: {epochs: 2, precision: fp32, augment: false, batch: 32}}]",
    )
    one = luban.train(Recipe.load(folder / "recipe.yaml", changes), evaluate=False)
    two = luban.train(
        Recipe.load(folder / "recipe.yaml", (*changes, "scale.ranks=2", "scale.timeout=60")),
        out=folder / "two",
        evaluate=False,
    )
    for a, b in zip(one.metrics, two.metrics, strict=True):
        assert abs(a["loss"] - b["loss"]) < 1e-5 and abs(a["validation_loss"] - b["validation_loss"]) < 1e-5
    assert two.history[-1]["ranks"] == 2 and "ranks" not in one.history[-1]
    assert two.history[-1]["steps"] == one.history[-1]["steps"] and two.tables["trained"].num_rows == len(
        one.tables["trained"]
    )
    saved = luban.load(folder / "two")
    assert saved.predict(str(folder / "rows.csv")) == two.predict(str(folder / "rows.csv"))
    assert not (folder / "two" / scaling.FOLDER).exists(), "the job goes when it is done"


def test_control_a_lost_rank_is_named():
    from types import SimpleNamespace

    from luban.scaling.torchrun import _lost
    from luban.scaling.work import LOST

    ends = {0: SimpleNamespace(exitcode=LOST), 1: SimpleNamespace(exitcode=-9), 2: SimpleNamespace(exitcode=-15)}
    from pathlib import Path

    e = _lost(ends, scale.chosen({"ranks": 3, "restarts": 0}), Path("logs"))
    assert isinstance(e, RankLost) and "Rank 1 of 3" in str(e) and "SIGKILL" in str(e) and json.dumps(e.to_json())
    ends[1].exitcode = 3
    set_language("zh")
    try:
        assert "退出码 3" in str(_lost(ends, scale.chosen({"ranks": 3, "restarts": 0}), Path("logs")))
    finally:
        set_language(None)


def test_a_run_whose_batches_were_cut_for_memory_does_not_go_on_with_sharded_weights():
    """Ranks with few rows would make fewer passes than others, and each pass waits for all."""
    plan = Plan(epochs=1, batch=4, rate=0.1)
    saved = {"plan": asdict(plan), "examples": 3, "data": "", "history": {"pieces": 2}}

    def run(in_pieces):
        weights = SimpleNamespace(in_pieces=in_pieces)
        return SimpleNamespace(
            plan=plan, training=[1, 2, 3], data="", folder="f", state=SimpleNamespace(weights=weights)
        )

    snapshot.same_run(run(Replicated.in_pieces), saved)
    with pytest.raises(Unsupported) as e:
        snapshot.same_run(run(Sharded.in_pieces), saved)
    assert "accumulate: 2" in str(e.value) and "ddp" in str(e.value)
    snapshot.same_run(run(Sharded.in_pieces), saved | {"history": {"pieces": 0}})


class _Busy:
    """A Ray whose cluster comes at the try that is given, and never where that is 0."""

    def __init__(self, comes: int):
        self.comes, self.tries, self.ended = comes, 0, 0

    def init(self, **settings):
        self.tries += 1
        if self.tries != self.comes:
            raise Exception("The current node timed out during startup.\nThis could happen because ...")

    def shutdown(self):
        self.ended += 1


@pytest.mark.skipif(not ranks.LINUX, reason="looks for processes under /proc")
def test_a_ray_that_does_not_start_leaves_no_servers(monkeypatch):
    import subprocess
    import sys

    begun = []

    class Left(_Busy):
        def init(self, **settings):
            for name in ("ray server", "another"):
                begun.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", name]))
            super().init()

    monkeypatch.setattr(cluster, "TRIES", 1)
    with pytest.raises(WorkError):
        cluster.begin(Left(0), patience=60)
    assert begun[0].wait(20) == -9 and begun[1].poll() is None, "what is not Ray's is left alone"
    begun[1].kill()
    begun[1].wait()


def test_a_ray_that_does_not_start_is_tried_again_and_then_one_sentence(capsys):
    late = _Busy(2)
    cluster.begin(late, patience=60)
    assert (late.tries, late.ended) == (2, 1) and "tried again" in capsys.readouterr().err
    for ray, patience, address, id in (
        (_Busy(0), 60, None, "scale.ray_not_started"),
        (_Busy(2), 0, None, "scale.ray_not_started"),
        (_Busy(2), 60, "10.0.0.1:6379", "scale.no_cluster"),
    ):
        with pytest.raises(WorkError) as e:
            cluster.begin(ray, patience=patience, address=address)
        assert e.value.id == id and len(str(e.value).splitlines()) == 1
        assert ray.tries == (cluster.TRIES if patience and not address else 1)
