"""The command line's own promises: JSON of every verb, flags that act or are refused, nothing left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import luban
from luban.cli import COMMON, VERBS, main
from luban.command import Verb
from luban.comparing import compare, read
from luban.messages import say, set_language
from tests import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("verbs")
    tiny.folder(place, "m")
    tiny.writer(place, "w0")
    tiny.csv(place / "rows.csv", 60)
    with pytest.MonkeyPatch.context() as patch:  # each test may run in a process of its own
        patch.chdir(place)
        assert main(["new", "tabular-regression", "new"]) == main(["train", *TRAIN, "--out", "t"]) == 0
    return place


@pytest.fixture
def there(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


NEW = ["--overwrite", "--json"]
TRAIN = ["rows.csv", "--target", "back", "--size", "nano", "--set", "train.epochs=1"]
ANSWERS = [
    (["train", *TRAIN, "--out", "t", *NEW], ["folder", "report", "evaluate"]),
    (["run", "new/recipe.yaml", "--set", "train.epochs=1", "--out", "r", "--json"], ["folder", "report", "evaluate"]),
    (["resume", "t", "--json"], ["folder", "report", "evaluate"]),
    (["check", "rows.csv", "--target", "back", "--json"], None),
    (["evaluate", "m", "rows.csv", "--json"], ["rows", "outputs"]),
    (["shots", "w0", "rows.csv", "--target", "back", "--shots", "0", "--rows", "5", "--json"], ["shots", "baselines"]),
    (["predict", "m", "rows.csv", "--out", "p.csv", *NEW], ["rows", "errors", "out"]),
    (["generate", "w0", "--prompt", "good", "--tokens", "3", "--json"], ["text", "tokens", "reason"]),
    (["explain", "m", "rows.csv", "--rows", "1", "--out", "w", *NEW], ["method", "rows", "error"]),
    (["compress", "m", "rows.csv", "--quantize", "int8", "--out", "c", *NEW], ["folder", "compress"]),
    (["audit", "m", "rows.csv", "--json"], ["rows", "outputs"]),
    (["export", "m", "rows.csv", "--out", "m.onnx", *NEW], ["path", "to"]),
    (["report", "m", "--json"], ["report", "evaluate"]),
    (["compare", "m", "--json"], ["runs"]),
    (["show", "m", "--json"], ["luban", "inputs", "history"]),
    (["list", "--json"], ["encoders"]),
    (["list", "encoders", "--json"], ["mlp"]),
    (["datasets", "--json"], ["adult"]),
    (["datasets", "digits", "--json"], ["path"]),
    (["doctor", "--json"], ["torch"]),
    (["new", "list", "--json"], ["tabular-classification"]),
    (["new", "tabular-regression", "new", *NEW], ["recipe", "rows"]),
]


IN_ORDER = sorted(ANSWERS, key=lambda a: a[0][0] != "new")  # what `new` writes is then run


@pytest.mark.parametrize(("words", "keys"), IN_ORDER, ids=[" ".join(w[:2]) for w, _ in IN_ORDER])
def test_json_is_all_that_stands_on_stdout(there, capsys, words, keys):
    assert main(words) in (0, 1)
    found = json.loads(capsys.readouterr().out)
    assert keys is None or set(keys) <= set(found)


def test_every_verb_that_has_a_result_is_among_them():
    assert {v.__name__.strip("_") for v in VERBS} - {w[0] for w, _ in ANSWERS} <= {
        "serve",
        "import",
        "tune",
        "curve",
        "plan",
        "embed",
        "index",
        "search",
    }


def test_findings_reach_programs(there, capsys):
    (there / "odd.csv").write_text("a,b,y\n" + "".join(f"{i * 7 % 13},1,{'yn'[i % 2]}\n" for i in range(60)))
    main(["check", "odd.csv", "--target", "y", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found and all(f["level"] in ("error", "warn", "info") and f["id"] and f["message"] for f in found)


def test_help_names_each_flag_once():
    for verb in VERBS:
        lines = [line.split()[0] for line in Verb(verb).help(COMMON).splitlines() if line.startswith("  --")]
        assert len(lines) == len(set(lines)) and {"--json", "--seed", "--device", "--threads", "--lang"} <= set(lines)


@pytest.mark.parametrize(
    ("flag", "value"), [("--device", "gpu"), ("--device", "cuda:x"), ("--threads", "lots"), ("--threads", "0")]
)
def test_a_device_or_a_number_of_threads_that_is_none(there, capsys, flag, value):
    for words in (["train", *TRAIN, "--out", "never"], ["predict", "m", "rows.csv"]):
        assert main([*words, flag, value]) == 2
        said = capsys.readouterr().err
        assert flag in said and value in said and len(said.splitlines()) == 1
    assert not (there / "never").exists()


@pytest.mark.parametrize("where", ["--device", "--set"])
def test_a_device_that_is_not_there(there, capsys, where):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    asked = ["--device", "cuda"] if where == "--device" else ["--set", "train.device=cuda"]
    assert main(["train", *TRAIN, "--out", "never", *asked]) == 2
    assert "cuda" in capsys.readouterr().err and not (there / "never").exists()
    if where == "--device":
        assert main(["evaluate", "m", "rows.csv", *asked]) == 2
        assert main(["predict", "m", "rows.csv", "--device", "cpu"]) == 0, "control: one that is there"
    assert main(["train", *TRAIN, "--out", "never", "--set", "train.device=tpu"]) == 2
    assert "cuda:N" in capsys.readouterr().err


def test_a_wrong_request_leaves_no_folder(there, capsys):
    assert main(["train", "rows.csv", "--target", "bakc", "--out", "never/so/deep"]) == 2
    assert not (there / "never").exists()
    (there / "mine").mkdir()
    assert main(["train", "rows.csv", "--target", "bakc", "--out", "mine"]) == 2
    assert (there / "mine").exists(), "control: what was there stays"
    capsys.readouterr()


def test_flags_may_come_before_the_verb(there, capsys):
    assert main(["--lang", "en", "--json", "list"]) == 0
    assert "encoders" in json.loads(capsys.readouterr().out)


def test_without_a_verb_there_is_help_in_the_language_asked_for(capsys, monkeypatch):
    for words, wanted in ((["--lang", "zh"], "用法"), (["--lang=en"], "Usage"), ([], "Usage")):
        monkeypatch.setenv("LUBAN_LANG", "en")
        assert main(words) == 0
        assert wanted in capsys.readouterr().out
        set_language(None)
    assert main(["--lnag", "zh"]) == 2
    set_language(None)


@pytest.mark.parametrize(
    "words", [["list", "--json"], ["train", "no.csv", "--target", "x", "--out", "never", "--json"]]
)
def test_a_reader_that_goes_away_is_no_error(place, words):
    script = f"import sys; from luban.cli import main; sys.exit(main({words!r}))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", script], cwd=place, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
    assert done.returncode == (0 if words[0] == "list" else 2)


def test_the_seed_reaches_what_is_drawn(there, capsys):
    intervals = []
    for seed in ("1", "1", "2"):
        assert main(["evaluate", "m", "rows.csv", "--json", "--seed", seed]) == 0
        intervals.append(json.loads(capsys.readouterr().out)["outputs"]["back"]["metrics"]["roc_auc"])
    assert intervals[0] == intervals[1] != intervals[2]
    model = luban.load("m")
    small = model.compress("rows.csv", prune=0.5, seed=9)
    assert small.recipe.seed == model.recipe.seed, "the rows are split by the recipe's own seed from now on, too"


def test_an_export_is_not_written_over(there, capsys):
    Path("there.onnx").write_text("mine")
    assert main(["export", "m", "rows.csv", "--out", "there.onnx"]) == 2
    assert Path("there.onnx").read_text() == "mine" and "--overwrite" in capsys.readouterr().err


def test_a_setting_by_flag_keeps_the_stages_that_a_recipe_has_by_default(there, capsys):
    Path("short.yaml").write_text("luban: 1\ndata: {rows: rows.csv}\noutputs: {back: category}\nsize: nano\n")
    assert main(["run", "short.yaml", "--set", "train.epochs=1", "--out", "short"]) == 0
    assert "evaluate" in luban.load("short").reports
    capsys.readouterr()


def test_side_by_side_a_compressed_model_has_its_own_numbers(there, tmp_path):
    model = luban.load("m")
    small = model.compress("rows.csv", prune=0.9, healing=0)
    small.save(tmp_path / "small")
    after = small.reports["compress"].to_json()["numbers"]["outputs"]["back"]["accuracy"]["after"]
    assert read(tmp_path / "small", "small").metrics()["back accuracy"] == after
    before = model.reports["evaluate"].to_json()["numbers"]["outputs"]["back"]["metrics"]["accuracy"]
    assert read(there / "m", "m").metrics()["back accuracy"] == before, "control: one that was not changed"
    assert "small" in compare(["m", tmp_path / "small"], paired=False).to_text()


def test_columns_of_lists_are_a_table(there):
    model = luban.load("m")
    rows = [{n: model.columns[n].schema()["examples"][0] for n in model.inputs}] * 3
    columns = {n: [r[n] for r in rows] for n in model.inputs}
    assert model.predict(columns) == model.predict(rows) and len(model.predict(rows[0])) == 1


def test_rows_that_could_not_be_used_lie_in_a_file(there, capsys):
    lines = tiny.csv(there / "some.csv", 60).read_text().splitlines()
    (there / "some.csv").write_text("\n".join([*lines[:5], "north,1.0", *lines[5:]]) + "\n")
    assert main(["train", "some.csv", *TRAIN[1:], "--out", "some"]) == 0
    kept = Path("some/quarantine.csv").read_text().splitlines()
    assert len(kept) == 2 and kept[1].startswith("6,") and "some/quarantine.csv" in capsys.readouterr().err
    assert main(["train", *TRAIN, "--out", "some", "--overwrite"]) == 0
    assert not Path("some/quarantine.csv").exists(), "control: of rows that are all good there is no such file"


def test_training_says_whether_it_over_fits_and_what_to_do_next(there, capsys):
    assert main(["train", *TRAIN, "--set", "train.epochs=3", "--out", "said"]) == 0
    found = luban.load("said").history[0]["diagnosis"]
    assert say(found["remedy"]) in capsys.readouterr().err


def test_a_file_that_a_column_learns_from_is_found_beside_the_recipe_or_missed_at_once(there, tmp_path, capsys):
    words = {w for r in tiny.rows() for w in r["review"].split()}
    (tmp_path / "words.txt").write_text("".join(f"{w} 0.1 0.2 {len(w)}\n" for w in sorted(words)))
    tiny.csv(tmp_path / "rows.csv")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "luban: 1\ndata: {rows: rows.csv}\ninputs: {review: {text: {vectors: words.txt}}}\noutputs: {back: category}\n"
    )
    assert main(["check", str(recipe)]) in (0, 1)
    recipe.write_text(recipe.read_text().replace("words.txt", "word.txt"))
    capsys.readouterr()
    assert main(["check", str(recipe)]) == 2
    said = capsys.readouterr().err
    assert "inputs.review.text.vectors" in said and "word.txt" in said
