"""`luban tune`: the same rows for every trial, validation rows choose, a killed search goes on, the end is an ordinary Bundle."""

import json
import signal
import sys

import numpy as np
import pytest

pytest.importorskip("optuna")

import luban
from luban import cli, pipeline
from luban.errors import MissingExtra, RequestError, Stopped, WorkError
from luban.space import Dimension
from luban.tuning import goals, jobs, search, verbs, workers
from luban.tuning.goals import Goal
from luban.tuning.study import JOURNAL, Study

SEARCH = {"train.rate": [1e-4, 0.1, "log"], "model.y.hidden": [[], [8]]}


def table(path, count=150, flip_test=False):
    """y follows a; every fifth row is for validation, every sixth for the test, where labels can be turned round."""
    rng = np.random.default_rng(0)
    lines = ["a,b,part,y"]
    for i in range(count):
        a, b = rng.normal(size=2)
        part = "validation" if i % 5 == 0 else "test" if i % 6 == 0 else "train"
        yes = (a + 0.5 * rng.normal() > 0) != (flip_test and part == "test")
        lines.append(f"{a:.4f},{b:.4f},{part},{'yes' if yes else 'no'}")
    path.write_text("\n".join(lines) + "\n")
    return path


def recipe(rows, **tune):
    return {
        "luban": 1, "data": {"rows": str(rows), "split": {"column": "part"}}, "inputs": {"a": "number", "b": "number"},
        "outputs": {"y": "category"}, "size": "nano", "stages": [{"train": {"epochs": 3, "precision": "fp32"}}],
        "tune": {"trials": 4, "search": SEARCH, **tune},
    }  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return table(tmp_path_factory.mktemp("rows") / "rows.csv")


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory):
    """One search, unbroken."""
    return luban.tune(recipe(rows), out=tmp_path_factory.mktemp("whole") / "m")


def outcome(bundle):
    """What a search found, without what the clock says."""
    return [
        {k: v for k, v in t.items() if k not in ("seconds", "energy")} for t in bundle.reports["tune"].numbers["trials"]
    ]


# -- the end is an ordinary Bundle ---------------------------------------------------------------------------------------


def test_the_best_settings_stand_in_the_recipe_and_the_search_in_the_history(whole):
    numbers = whole.reports["tune"].numbers
    best = numbers["trials"][numbers["best"]]
    assert [h["stage"] for h in whole.history] == ["tune", "train", "evaluate"]
    assert whole.recipe.stage("train").settings["rate"] == best["settings"]["train.rate"]
    assert list(whole.recipe.model["y"].settings["hidden"]) == best["settings"]["model.y.hidden"]
    assert whole.history[0]["chosen"] == best["settings"] and whole.history[0]["judged_on"] == "validation"
    assert numbers["value"] == max(t["value"] for t in numbers["trials"] if t["state"] == "complete")
    assert (
        len(numbers["trials"]) == 4 and numbers["trials"][0]["settings"]["train.rate"] == 0.003
    )  # the recipe's own first
    assert whole.history[1]["rows"] == {"train": 100, "validation": 30, "test": 20}
    assert whole.reports["evaluate"].numbers["part"] == "test" and whole.reports["evaluate"].numbers["trained_on"] == 0


def test_its_recipe_trains_the_same_weights(whole, tmp_path):
    """A search is no secret: what it found can be had without it."""
    saved = luban.load(whole.path)
    again = luban.train(whole.path / "recipe.yaml", out=tmp_path / "again", evaluate=False)
    assert again.fingerprint() == saved.fingerprint() == whole.fingerprint()


def test_the_report(whole):
    page = pipeline.full_report(whole).to_html()
    assert page.count("<svg") >= 4 and "Score by trial" in page and "Settings and score" in page
    assert whole.reports["tune"].numbers["space"]["train.rate"] == "0.0001 – 0.1 (log)"


# -- test rows never choose settings ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flipped(tmp_path_factory):
    return table(tmp_path_factory.mktemp("flipped") / "rows.csv", flip_test=True)


def test_other_test_rows_change_nothing_that_is_chosen(whole, flipped, tmp_path):
    other = luban.tune(recipe(flipped), out=tmp_path / "m")
    assert outcome(other) == outcome(whole) and other.fingerprint() == whole.fingerprint()
    accuracy = [b.reports["evaluate"].numbers["outputs"]["y"]["metrics"]["accuracy"]["value"] for b in (whole, other)]
    assert accuracy[0] > 0.5 > accuracy[1]  # they were turned round indeed


def test_control_a_search_that_looks_at_test_rows_is_seen(rows, flipped, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "blind", lambda data: data)
    monkeypatch.setattr(
        jobs, "score", lambda bundle, data, goal, **more: goals.score(bundle, data, goal, "test", **more)
    )
    a, b = (luban.tune(recipe(r), out=tmp_path / n) for r, n in ((rows, "a"), (flipped, "b")))
    assert outcome(a) != outcome(b)


def test_no_test_row_is_handed_to_another_process(rows, tmp_path):
    from luban.data.prepare import prepare
    from luban.recipe import Recipe

    asked = Recipe.of(recipe(rows)).resolved()
    data = prepare(asked)
    jobs.save_rows(data, tmp_path)
    back = jobs.load_rows(tmp_path, asked)
    kept = {*zip(back.table["a"].to_pylist(), back.table["b"].to_pylist())}
    test = data.table.take(data.part("test"))
    assert not kept & {*zip(test["a"].to_pylist(), test["b"].to_pylist())} and len(back.part("test")) == 0
    for part in ("train", "validation"):
        assert back.table.take(back.part(part))["a"].to_pylist() == data.table.take(data.part(part))["a"].to_pylist()
    assert len(jobs.blind(data).part("test")) == 0


# -- killed and gone on with -----------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def broken_at(monkeypatch, trial, epoch, act):
    real = search.Board.epoch

    def epoch_(self, it, numbers):
        if it.number == trial and numbers["epoch"] == epoch:
            act()
        return real(self, it, numbers)

    monkeypatch.setattr(search.Board, "epoch", epoch_)


def kill():
    raise Killed


@pytest.mark.parametrize("again", ["tune", "resume"])
def test_a_killed_search_goes_on(rows, whole, tmp_path, monkeypatch, again):
    with monkeypatch.context() as patch:
        broken_at(patch, 2, 2, kill)
        with pytest.raises(Killed):
            luban.tune(recipe(rows), out=tmp_path / "m")
    made, real = [], jobs.work
    monkeypatch.setattr(workers, "work", lambda job, *rest: made.append(job["folder"][-1]) or real(job, *rest))
    done = luban.tune(recipe(rows), out=tmp_path / "m") if again == "tune" else pipeline.resume(tmp_path / "m")
    assert made == ["2", "3"], "finished trials are not made again"
    assert outcome(done) == outcome(whole) and done.fingerprint() == whole.fingerprint()


def test_a_signal_is_a_stop_that_can_be_gone_on_with(rows, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        broken_at(patch, 1, 1, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Stopped) as e:
            luban.tune(recipe(rows), out=tmp_path / "m")
    assert e.value.exit_code == 143 and "luban resume" in str(e.value)
    assert outcome(pipeline.resume(tmp_path / "m")) == outcome(whole)


def test_half_a_line_at_the_end_of_the_journal(rows, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        broken_at(patch, 2, 1, kill)
        with pytest.raises(Killed):
            luban.tune(recipe(rows), out=tmp_path / "m")
    with open(tmp_path / "m" / ".tune" / JOURNAL, "ab") as file:
        file.write(b'{"op_code":8,"trial_id":2,"st')
    torn = (tmp_path / "m" / ".tune" / JOURNAL).read_bytes()
    assert outcome(luban.tune(recipe(rows), out=tmp_path / "m")) == outcome(whole)
    monkeypatch.setattr("luban.tuning.study._mend", lambda path: None)  # control: what Optuna alone makes of it
    (tmp_path / "m" / ".tune" / JOURNAL).write_bytes(torn)
    with pytest.raises(ValueError):
        for _ in range(2):
            luban.tune(recipe(rows), out=tmp_path / "m")


def test_more_trials_later(rows, whole, tmp_path):
    luban.tune(recipe(rows, trials=2), out=tmp_path / "m")
    assert outcome(luban.tune(recipe(rows), out=tmp_path / "m")) == outcome(whole)


def test_another_search_in_the_folder_is_refused(rows, whole):
    begun = whole.path / verbs.TUNE / verbs.BEGUN
    before = begun.read_text()
    with pytest.raises(RequestError) as e:
        luban.tune(recipe(rows, search={"size": ["nano", "small"]}), out=whole.path)
    assert e.value.id == "tune.other_search" and begun.read_text() == before


def test_a_whole_run_searches_where_its_recipe_asks_for_it(rows, whole, tmp_path, monkeypatch):
    """The stages after it work on the tuned model; stopped in the search it goes on, and done it is not searched again."""
    asked = recipe(rows)
    asked["stages"] += [{"evaluate": {"baselines": False}}, {"compress": {"explain": 0}}]
    with monkeypatch.context() as patch:
        broken_at(patch, 2, 1, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Stopped) as e:
            pipeline.run(asked, tmp_path / "m")
        assert e.value.exit_code == 130
    done = pipeline.resume(tmp_path / "m")
    assert outcome(done) == outcome(whole) and [h["stage"] for h in done.history] == [
        "tune",
        "train",
        "evaluate",
        "compress",
    ]
    monkeypatch.setattr(workers, "work", kill)
    assert outcome(pipeline.run(asked, tmp_path / "m")) == outcome(whole)


def test_what_was_begun_in_a_folder_before_is_not_gone_on_with(tmp_path):
    for path in (verbs.RUN, f"{verbs.CURVE}/recipe.yaml", f"{verbs.TUNE}/recipe.yaml"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("luban: 1")
    verbs._alone(tmp_path, verbs.TUNE)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["recipe.yaml"]
    verbs.forget(tmp_path)
    assert not (tmp_path / verbs.TUNE).exists()


# -- what can go wrong -----------------------------------------------------------------------------------------------------


def test_failed_trials_are_told_and_the_rest_goes_on(rows, tmp_path):
    """Real ones: a rate that makes weights infinite, a layer larger than any memory."""
    huge = [10**5, 10**11]  # more than any address space: refused at once, nothing is filled before
    asked = recipe(rows, trials=9, search={"train.rate": [0.01, 1e38], "model.y.hidden": [[], huge], "train.clip": [0]})
    own, *others = outcome(luban.tune(asked, out=tmp_path / "m"))
    found = {(t["settings"]["train.rate"], bool(t["settings"]["model.y.hidden"])): t for t in others}
    assert len(found) == len(others) == 4, "every combination once, and none twice"
    assert found[0.01, False]["state"] == own["state"] == "complete"
    assert found[0.01, True]["state"] == "failed" and "memory" in found[0.01, True]["why"]
    assert found[1e38, False]["state"] == "failed" and "finite" in found[1e38, False]["why"]


def test_no_trial_succeeds(rows, tmp_path):
    asked = recipe(rows, search={"train.optimizer": ["adamw", "sgd"]})
    asked["stages"][0]["train"] |= {"rate": 1e38, "clip": 0}
    with pytest.raises(WorkError) as e:
        luban.tune(asked, out=tmp_path / "m")
    assert e.value.id == "tune.none" and "finite" in str(e.value)


def test_one_huge_number_can_be_drawn():
    from luban import search_plots

    drawn = search_plots.parallel(["train.rate"], [[1e38, None]], [0.5, None], higher=True, score_name="accuracy")
    assert drawn.count("<path") == 1


def test_of_equal_trials_the_first_is_drawn_as_the_best_and_an_axis_of_one_value_names_it_alone():
    from luban import search_plots

    drawn = search_plots.parallel(["train.rate"], [[0.1, 0.2, 0.3]], [0.9, 0.9, 0.9], higher=True)
    last = drawn[drawn.rindex("<path") :]  # the best lies on top
    first = search_plots.parallel(["train.rate"], [[0.1, 0.2, 0.3]], [0.9, None, 0.8], higher=True)
    assert first[first.rindex("<path") :].split('"')[1].split("L")[0] == last.split('"')[1].split("L")[0]
    assert drawn.count(">0.9<") == 1 and "1.4" not in drawn


def test_without_optuna_it_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra) as e:
        luban.tune("nowhere.csv", "y", out=tmp_path / "m")
    assert str(e.value).count("\n") == 0 and "pip install 'luban[tune]'" in str(e.value)


@pytest.mark.parametrize("verb", ["tune", "curve"])
def test_not_in_the_ranks_of_a_torchrun(rows, tmp_path, monkeypatch, verb):
    """Nothing is begun: each rank would search by itself."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RequestError) as e:
        getattr(luban, verb)(recipe(rows), out=tmp_path / "m")
    assert e.value.id == "tune.in_ranks" and "2" in str(e.value) and not (tmp_path / "m").exists()


def test_without_validation_rows(rows, tmp_path):
    asked = recipe(rows)
    asked["data"]["split"] = {"validation": 0.0, "test": 0.2}
    with pytest.raises(RequestError) as e:
        luban.tune(asked, out=tmp_path / "m")
    assert e.value.id == "tune.no_validation"


def test_an_error_that_is_not_of_the_settings_is_no_bad_trial(rows, tmp_path, monkeypatch):
    def broken(*a, **k):
        raise KeyError("ours")

    monkeypatch.setattr(jobs, "score", broken)
    with pytest.raises(KeyError):
        luban.tune(recipe(rows), out=tmp_path / "m")


# -- budget, pruning, order ------------------------------------------------------------------------------------------------


def test_minutes(rows, tmp_path):
    bundle = luban.tune(recipe(rows, trials="auto", minutes=1e-4), out=tmp_path / "m")
    assert len(outcome(bundle)) == 1 and outcome(bundle)[0]["state"] == "complete"  # the first always ends


def study(folder, prune=True, seed=0):
    space = [Dimension("train.rate", (), 1e-4, 1e-1, "log"), Dimension("size", ("nano", "small"))]
    return Study(folder, space, Goal("accuracy", "y", True), seed, about="x", prune=prune)


def test_the_first_trial_is_the_recipe_itself(tmp_path):
    """Also where the space does not hold its settings: `auto`, or a rate that nobody wants to search."""
    made = study(tmp_path)
    made.begin({"train.rate": 5.0, "size": "small"})
    trial, values = made.next()
    assert values == {"size": "small"}
    del trial
    ((_, again),) = study(tmp_path).interrupted()
    assert again == {"size": "small"}
    assert set(made.next()[1]) == {"train.rate", "size"}


def test_killed_between_two_settings_it_draws_the_same(tmp_path, monkeypatch):
    straight = study(tmp_path / "a").next()[1]
    made, choose = study(tmp_path / "b"), "optuna.trial.Trial.suggest_categorical"
    with monkeypatch.context() as patch:
        patch.setattr(choose, lambda *a: kill())
        with pytest.raises(Killed):
            made.next()
    ((trial, again),) = study(tmp_path / "b").interrupted()
    assert again == straight and trial.number == 0


def test_a_trial_that_dies_at_the_same_place_again_and_again_has_failed(tmp_path):
    """But not one that was killed as often and got further each time: that was not its fault."""
    for folder, moves in (("stuck", False), ("moves", True)):
        made = study(tmp_path / folder)
        trial, _ = made.next()
        for life in range(5):
            if moves:
                made.epoch(trial, life + 1, 0.5)
            made = study(tmp_path / folder)
            again = made.interrupted()
            trial = again[0][0] if again else trial
        assert [t.state for t in made.trials()] == (["running"] if moves else ["failed"])


def draws(made, count):
    found = []
    for _ in range(count):
        trial, values = made.next()
        made.finish(trial, {"state": "complete", "value": values["train.rate"]})
        found.append(values)
    return found


def test_draws_are_a_function_of_seed_and_number(tmp_path):
    straight = draws(study(tmp_path / "a"), 10)
    broken = [v for _ in range(5) for v in draws(study(tmp_path / "b"), 2)]  # opened anew for every two
    assert straight == broken
    assert draws(study(tmp_path / "c", seed=1), 3) != straight[:3]
    best = study(tmp_path / "a").best()
    assert best.score == max(v["train.rate"] for v in straight) and len({v["train.rate"] for v in straight}) == 10


@pytest.mark.parametrize("prune", [True, False])
def test_a_hopeless_trial_is_pruned_by_its_validation_losses(tmp_path, prune):
    made = study(tmp_path, prune)
    for _ in range(5):
        trial, _ = made.next()
        for epoch in range(1, 7):
            assert not made.epoch(trial, epoch, 1.0 / epoch), "none is above the median of equals"
        made.finish(trial, {"state": "complete", "value": 0.5})
    trial, _ = made.next()
    said = [made.epoch(trial, epoch, 5.0) for epoch in range(1, 7)]
    assert said == ([False, False, True, True, True, True] if prune else [False] * 6)


def test_importance_points_at_what_matters(tmp_path):
    made = study(tmp_path)
    draws(made, 16)
    found = made.importance()
    assert found["train.rate"] > 0.7 and abs(sum(found.values()) - 1) < 1e-6


def test_goals(rows):
    from luban.recipe import Recipe

    one = Recipe.of(recipe(rows))
    two = Recipe.of({**recipe(rows), "inputs": {"a": "number"}, "outputs": {"y": "category", "b": "number"}})
    assert goals.goal_of(one, "auto") == Goal("accuracy", "y", True) and goals.goal_of(two, "auto") == Goal("loss")
    assert goals.goal_of(two, "b.rmse") == Goal("rmse", "b", False) and goals.goal_of(one, "y.f1") == Goal(
        "f1", "y", True
    )


# -- several processes -----------------------------------------------------------------------------------------------------


def test_a_worker_answers_jobs(rows, tmp_path):
    """The process's own loop, in this one: a job in, epochs out and answered, a result."""
    import io

    from luban.data.prepare import prepare
    from luban.recipe import Recipe
    from luban.tuning import worker

    asked = Recipe.of(recipe(rows))
    jobs.save_rows(prepare(asked.resolved()), tmp_path / "rows")
    job = {
        "recipe": asked.plain(),
        "folder": str(tmp_path / "t"),
        "goal": {"metric": "accuracy", "output": "y", "higher": True},
    }
    answers = [{"prune": None}, {"prune": "enough"}]
    out = io.StringIO()
    worker.serve(tmp_path / "rows", io.StringIO("\n".join(map(json.dumps, [job, *answers])) + "\n"), out)
    said = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [m["epoch"]["epoch"] for m in said[:2]] == [1, 2] and said[2]["found"]["state"] == "pruned"
    assert said[2]["found"]["why"] == "enough" and len(said) == 3


def test_in_processes_it_finds_the_same(rows, whole, tmp_path):
    """Two at a time, through pipes and saved rows. Trial 0 has the recipe's own settings wherever it runs."""
    bundle = luban.tune(recipe(rows, parallel=2, trials=3), out=tmp_path / "m")
    found = outcome(bundle)
    assert len(found) == 3 and all(t["state"] == "complete" for t in found)
    assert found[0] == outcome(whole)[0]


def test_workers_share_the_cards(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert workers.cards_for(3) == ["2", "5", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert workers.cards_for(2) == [None, None]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_random_moments_it_ends_as_if_nothing_had_been(rows, whole, tmp_path):
    """SIGKILL to the real command, six times, each time started again."""
    import random
    import subprocess
    import time

    import yaml

    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(rows), sort_keys=False))
    command = [
        sys.executable,
        "-m",
        "luban",
        "tune",
        str(tmp_path / "recipe.yaml"),
        "--out",
        str(tmp_path / "m"),
        "--quiet",
    ]
    draw, killed = random.Random(0), 0
    for _ in range(30):
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        journal = tmp_path / "m" / ".tune" / JOURNAL
        size = journal.stat().st_size if journal.is_file() else 0
        size += draw.randint(150, 1200)
        while running.poll() is None and killed < 6:  # somewhere within the next dozen lines of the journal
            if journal.is_file() and journal.stat().st_size >= size:
                running.kill()
                break
            time.sleep(0.005)
        said = running.communicate()[1]
        if running.returncode == 0:
            break
        assert running.returncode == -signal.SIGKILL, said
        killed += 1
    done = luban.load(tmp_path / "m")
    assert killed >= 3 and outcome(done) == outcome(whole) and done.fingerprint() == whole.fingerprint()


@pytest.mark.slow
def test_a_worker_that_is_killed_is_made_anew(rows, tmp_path, monkeypatch):
    import os

    killed, real = [], search.Board.epoch

    def epoch(self, trial, numbers):
        if trial.number == 1 and not killed:
            killed.append(1)
            for process in self.crew_pids():
                os.kill(process, signal.SIGKILL)
        return real(self, trial, numbers)

    made, start = [], workers.Process._start
    monkeypatch.setattr(workers.Process, "_start", lambda self: made.append(start(self)) or made[-1])
    monkeypatch.setattr(
        search.Board, "crew_pids", lambda self: [p.pid for p in made if p.poll() is None], raising=False
    )
    monkeypatch.setattr(search.Board, "epoch", epoch)
    bundle = luban.tune(recipe(rows, parallel=2, trials=4), out=tmp_path / "m")
    assert killed and len(made) > 2 and [t["state"] for t in outcome(bundle)] == ["complete"] * 4


@pytest.mark.slow
def test_through_ray(rows, whole, tmp_path):
    pytest.importorskip("ray")
    bundle = luban.tune(recipe(rows, parallel=2, engine="ray", trials=3), out=tmp_path / "m")
    found = outcome(bundle)
    assert len(found) == 3 and all(t["state"] == "complete" for t in found) and found[0] == outcome(whole)[0]


# -- on the command line ---------------------------------------------------------------------------------------------------


def test_on_the_command_line(rows, tmp_path, capsys):
    words = ["tune", str(rows), "--target", "y", "--inputs", "a,b", "--size", "nano", "--set", "train.epochs=2", "--trials", "2",
             "--search", "train.rate=[1e-3, 1e-2, log]", "--metric", "log_loss", "--out", str(tmp_path / "m")]  # fmt: skip
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert "y.log_loss" in said.out and "Trial 0 of 2" in said.err and (tmp_path / "m" / "report.html").is_file()
    assert cli.main([*words, "--json"]) == 0  # nothing left to do: the same answer again
    assert json.loads(capsys.readouterr().out)["metric"] == "y.log_loss"
    assert cli.main([*words[:-4], "--out", str(tmp_path / "m")]) == 2 and "another --out" in capsys.readouterr().err
    assert (
        cli.main(["tune", str(rows), "--target", "y", "--search", "train.rte=[1, 2]", "--out", str(tmp_path / "n")])
        == 2
    )
    assert "train.rate" in capsys.readouterr().err
    assert verbs.TUNE in {p.name for p in (tmp_path / "m").iterdir()}
