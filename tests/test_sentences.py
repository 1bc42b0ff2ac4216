"""What a person reads: every sentence comes out of the catalogue, and a wrong request is told all its mistakes at once.

In the language `pseudo` each sentence stands in ⟦ ⟧. Letters outside of them may only be names: of the user's data, of
what a recipe can name, of flags, metrics, packages. Each kind of name is taken from where it is defined, not listed here.
"""

import html
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from luban import registry
from luban.checking import DATA_KEYS, KEYS
from luban.cli import COMMON, VERBS, main
from luban.command import Verb, _metavar
from luban.data.models import MODELS
from luban.data.samples import SAMPLES
from luban.messages import say, set_language
from luban.planning import hardware
from luban.planning.plan import CHOICES
from tests import tiny

WORD = re.compile(r"[A-Za-zÀ-ÖØ-öø-ɏ一-鿿][\w.+-]*")


@pytest.fixture(autouse=True)
def language():
    yield
    set_language(None)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, a model made in pseudo, and what it printed on the way."""
    folder = tmp_path_factory.mktemp("pseudo")
    tiny.csv(folder / "rows.csv", 60)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def said(place, monkeypatch, capfd):
    """Run a command in pseudo; its exit code and all that it printed."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("NO_PROGRESS", "1")

    def run(*words: str) -> tuple[int, str]:
        if not Path("m").exists() and words[0] != "train":
            assert main([*TRAIN, "--lang", "pseudo"]) == 0
        capfd.readouterr()
        code = main([*words, "--lang", "pseudo"])
        out, err = capfd.readouterr()
        return code, out + "\n" + err

    return run


RECIPE = """luban: 1
data: {rows: rows.csv}
inputs: {shop: category, price: number}
outputs: {back: category}
size: nano
stages:
  - train: {epochs: 1}
  - evaluate: {resamples: 20}
"""
TRAIN = ["train", "rows.csv", "--target", "back", "--type", "review=text", "--size", "nano", "--set", "train.epochs=2",
         "--out", "m"]  # fmt: skip


def strings(value: object) -> set[str]:
    """Every key and every text in plain data, in words."""
    if isinstance(value, dict):
        return {w for k, v in value.items() for w in strings(str(k)) | strings(v)}
    if isinstance(value, (list, tuple)):
        return {w for v in value for w in strings(v)}
    return set(WORD.findall(value)) if isinstance(value, str) else set()


@cache
def machine_names() -> set[str]:
    from luban import doctor, machine

    facts = doctor.look()[0]
    return strings(machine.environment()) | strings([n for n, _ in facts]) | strings([v for _, v in facts])


@cache
def lasting_names() -> set[str]:
    verbs = [Verb(v) for v in VERBS]
    flags = [*COMMON, *(f for v in verbs for f in v.flags)]
    return machine_names().union(
        strings(registry.everything()), strings(registry.ALIASES), strings(list(registry.ROOMS)),
        strings([v.name for v in verbs]), *(strings(f.label + _metavar(f)) for f in flags),
        strings([*KEYS, *DATA_KEYS, *SAMPLES, *MODELS]), strings(hardware._written()["devices"]), strings(CHOICES),
        {"library_name", "pipeline_tag", "tags"},  # Hugging Face's front matter of the card
        {"s", "ms", "us", "MB", "kB", "x"},  # units
        {f"{kind}-{task}" for kind in ("tabular", "text", "image", "multimodal") for task in ("classification", "regression")},
        {"True", "False"},  # settings as they are written in Python
    )  # fmt: skip


def names(place: Path) -> set[str]:
    """All words that are names, from where they are defined."""
    numbers = [json.loads(p.read_text("utf-8"))["numbers"] for p in place.glob("**/reports/*.json")]
    recipes = [p.read_text("utf-8") for p in place.glob("**/recipe.yaml")]
    history = [p.read_text("utf-8") for p in place.glob("*/history.jsonl")]
    return lasting_names().union(
        strings((place / "rows.csv").read_text()),
        strings([str(place), "m", "c", "x", "out", "rows.csv", "recipe.yaml", "report.html"]),
        strings(recipes), strings(history), strings(numbers),
    )  # fmt: skip


def outside(text: str) -> str:
    kept, depth = [], 0
    for c in text:
        depth += (c == "⟦") - (c == "⟧")
        kept.append(" " if depth or c == "⟧" else c)
    return "".join(kept)


def strange(text: str, allowed: set[str]) -> list[str]:
    """Words outside of sentences that are no names; a word with an underscore is a name by itself (a metric)."""
    return [w for w in WORD.findall(outside(text)) if "_" not in w and not {w, w.rstrip(".")} & allowed]


PAGES = [
    ("train", *TRAIN[1:], "--overwrite"),
    ("--help",),
    ("check", "rows.csv", "--target", "back"),
    ("run", "recipe.yaml", "--out", "out"),
    ("plan", "recipe.yaml", "--gpus", "2xL4"),
    ("evaluate", "m", "rows.csv"),
    ("predict", "m", "rows.csv", "--out", "m.jsonl", "--overwrite"),
    ("explain", "m", "rows.csv", "--rows", "2", "--out", "x", "--overwrite"),
    ("compress", "m", "rows.csv", "--quantize", "int8", "--out", "c", "--overwrite"),
    ("audit", "m", "rows.csv", "--sensitive", "shop"),
    (
        "tune",
        "rows.csv",
        "--target",
        "back",
        "--size",
        "nano",
        "--trials",
        "2",
        "--set",
        "train.epochs=1",
        "--out",
        "t",
    ),
    (
        "curve",
        "rows.csv",
        "--target",
        "back",
        "--rows",
        "0.5,1",
        "--sizes",
        "nano",
        "--set",
        "train.epochs=1",
        "--out",
        "k",
    ),
    ("report", "m"),
    ("compare", "m"),
    ("show", "m"),
    ("show", "recipe.yaml"),
    ("list",),
    *(("list", room) for room in registry.ROOMS),
    ("datasets",),
    ("doctor",),
    *((v.__name__.strip("_"), "--help") for v in VERBS),
]


@pytest.mark.parametrize("words", PAGES, ids=lambda w: " ".join(w[:2]))
def test_every_sentence_comes_from_the_catalogue(said, place, words):
    code, text = said(*words)
    assert code in (0, 1), text[-600:]
    assert "⟦" in text or words[0] in ("show", "list")
    assert not strange(text, names(place))


@pytest.mark.parametrize(
    "file",
    ["m/report.html", "m/reports/evaluate.html", "c/report.html", "x/explain.html", "t/report.html", "k/report.html"],
)
def test_every_sentence_of_a_page_comes_from_the_catalogue(said, place, file):
    made = [w for w in PAGES if "--out" in w and w[w.index("--out") + 1] == file[0]]  # by another test, or not yet
    if made and not (place / file).exists():
        assert said(*made[0])[0] == 0
    said("list")
    page = re.sub(r"<style.*?</style>|<head>.*?</head>", " ", (place / file).read_text("utf-8"), flags=re.DOTALL)
    titles = " ".join(re.findall(r'(?:title|aria-label|alt)="([^"]*)"', page))
    text = html.unescape(re.sub(r"<[^>]+>", " ", page) + " " + titles)
    assert "⟦" in text and not strange(text, names(place))


@pytest.mark.parametrize("file", ["m/README.md", "out/README.md"])
def test_every_sentence_of_a_card_comes_from_the_catalogue(said, place, file):
    said("list")
    if not (place / file).exists():
        assert said("run", "recipe.yaml", "--out", "out")[0] == 0
    text = re.sub(r"```.*?```", " ", (place / file).read_text("utf-8"), flags=re.DOTALL)
    assert "⟦" in text and not strange(text, names(place))


def test_control_a_sentence_that_goes_round_the_catalogue_is_seen(said, place, monkeypatch):
    from luban import console

    tell = console.tell
    monkeypatch.setattr(console, "tell", lambda id, **v: (tell(id, **v), console.block("Reading your file now"))[0])
    _, text = said("check", "rows.csv", "--target", "back")
    assert {"Reading", "your", "now"} <= set(strange(text, names(place)))


# -- wrong requests ---------------------------------------------------------------------------------------------------------

BAD = """luban: 1
data: {rows: rows.csv, splt: {test: 0.1}}
inputs: {shop: categry, price: number}
outputs: {back: category}
sise: nano
model: {pryce: mlp, shop: transformr}
stages:
  - train: {epochz: 1, rate: -1, optimizer: adamm}
  - evaluat: {}
"""
# words of the command -> what the answer must hold
WRONG: list[tuple[list[str], list[str]]] = [
    (["trian", "rows.csv"], ["trian", "train"]),
    (["train", "rows.csv", "--tarjet", "back", "--out", "o"], ["--tarjet", "--target"]),
    (["train", "rows.csv", "--target", "bakc", "--out", "o"], ["bakc", "back", "rows.csv"]),
    (["train", "rows.csv", "--target", "back", "--inputs", "shp,prise", "--out", "o"], ["shp", "shop", "prise", "price"]),
    (["train", "rows.csv", "--target", "back", "--type", "price=nmber", "--out", "o"], ["nmber", "number", "--type price"]),
    (["train", "rows.csv", "--target", "back", "--type", "prize=number", "--out", "o"], ["prize", "price"]),
    (["train", "rows.csv", "--target", "back", "--type", "price", "--out", "o"], ["--type", "price"]),
    (["train", "rows.csv", "--target", "back", "--model", "review=lstmm", "--out", "o"], ["lstmm", "lstm", "model.review"]),
    (["train", "rows.csv", "--target", "back", "--model", "reveiw=lstm", "--out", "o"], ["reveiw", "review"]),
    (["train", "rows.csv", "--target", "back", "--size", "hugh", "--out", "o"], ["hugh", "nano", "small", "base"]),
    (["train", "rows.csv", "--target", "back", "--set", "train.epochz=3", "--out", "o"], ["epochz", "epochs"]),
    (["train", "rows.csv", "--target", "back", "--set", "train.epochs=0", "--out", "o"], ["epochs", "0", ">= 1"]),
    (["train", "rows.csv", "--target", "back", "--set", "train.optimizer=adan", "--out", "o"], ["adan", "adam"]),
    (["train", "rows.csv", "--target", "back", "--set", "trian.epochs=1", "--out", "o"], ["trian", "train"]),
    (["train", "rows.csv", "--target", "back", "--seed", "one", "--out", "o"], ["--seed", "one", "int"]),
    (["train", "rows.csv", "--target", "back"], ["--out"]),
    (["train", "rows.csv", "--out", "o"], ["back", "shop"]),
    (["train", "rows.csv", "--target", "back", "--out", "full"], ["full", "--overwrite"]),
    (["train", "rows.csv", "--target", "back", "--out", "full", "--overwrite"], ["full", "mine.txt"]),
    (["train", "row.csv", "--target", "back", "--out", "o"], ["row.csv", "rows.csv"]),
    (["train", "rows.docx", "--target", "back", "--out", "o"], ["rows.docx"]),
    (["train", "binary.csv", "--target", "back", "--out", "o"], ["binary.csv"]),
    (["tune", "rows.csv", "--target", "back", "--search", "train.rte=[1, 2]", "--out", "o"], ["train.rte", "train.rate"]),
    (["tune", "rows.csv", "--target", "back", "--metric", "acuracy", "--out", "o"], ["acuracy", "accuracy"]),
    (["tune", "rows.csv", "--target", "back", "--trials", "0", "--out", "o"], ["trials", ">= 1"]),
    (["tune", "rows.csv", "--target", "back", "--set", "data.split.validation=0", "--out", "o"], ["validation"]),
    (["curve", "rows.csv", "--target", "back", "--sizes", "nano,smal", "--out", "o"], ["smal", "small"]),
    (["curve", "rows.csv", "--target", "back", "--rows", "0.01,1", "--out", "o"], ["curve.rows", "8"]),
    (["train", "rows.csv", "more.csv", "--target", "back", "--out", "o"], ["more.csv"]),
    (["train"], ["DATA"]),
    (["run", "bad.yaml", "--out", "o"], ["bad.yaml:2", "splt", "split", "categry", "category", "bad.yaml:5", "sise", "size",
      "bad.yaml:8", "epochz", "epochs", "rate", "adamm", "adam", "bad.yaml:9", "evaluat", "evaluate", "pryce", "transformr"]),
    (["check", "bad.yaml"], ["bad.yaml:3", "categry", "category", "bad.yaml:6"]),
    (["run", "none.yaml", "--out", "o"], ["none.yaml"]),
    (["run", "half.yaml", "--out", "o"], ["half.yaml:4", "]"]),
    (["run", "recipe.yaml", "--set", "seed", "--out", "o"], ["seed"]),
    (["check", "rows.csv", "--target", "bck"], ["bck", "back"]),
    (["plan", "recipe.yaml", "--gpus", "8xH10", "--price", "-1"], ["H10", "H100", "--price"]),
    (["plan", "--shape", "layers=2,widht=8", "--gpus", "8xH100"], ["widht", "width"]),
    (["plan", "bad.yaml", "--gpus", "2xL4"], ["bad.yaml:3", "categry", "category"]),
    (["resume", "nowhere"], ["nowhere"]),
    (["evaluate", "nowhere", "row.csv"], ["nowhere", "row.csv", "rows.csv"]),
    (["shots", "m", "row.csv", "--target", "back", "--shots", "0,-1", "--draws", "0"], ["row.csv", "rows.csv", "--shots", ">= 0", "--draws"]),
    (["shots", "m", "rows.csv", "--target", "back"], ["m", "inputs"]),
    (["predict", "nowhere", "rows.csv"], ["nowhere"]),
    (["predict", "m", "row.csv"], ["row.csv", "rows.csv"]),
    (["predict", "m", "rows.csv", "--out", "a.xlsx"], ["a.xlsx", ".csv"]),
    (["embed", "nowhere", "rows.csv", "--out", "v.txt"], ["v.txt", ".npy"]),
    (["index", "m", "row.csv", "--out", "o"], ["row.csv", "rows.csv"]),
    (["search", "nowhere", "red shoes", "--top", "5"], ["nowhere"]),
    (["predict", "no.onnx", "rows.csv"], ["no.onnx"]),
    (["generate", "m"], ["back", "predict"]),
    (["generate", "m", "--temperature", "-1", "--top-p", "2"], ["temperature", "top_p", "0", "1"]),
    (["generate", "m", "--n", "0"], ["--n", "0", "1"]),
    (["explain", "m", "rows.csv", "--method", "limee", "--rows", "0", "--out", "o"], ["limee", "lime", "--rows", ">= 1"]),
    (["explain", "m", "row.csv", "--rows", "two", "--out", "o"], ["--rows", "two"]),
    (["compress", "m", "rows.csv", "--quantize", "int3", "--out", "full"], ["int3", "int8", "full"]),
    (["export", "m", "rows.csv", "--to", "onx", "--out", "o"], ["onx", "onnx"]),
    (["audit", "nowhere", "rows.csv"], ["nowhere"]),
    (["serve", "m", "--port", "99999999", "--engine", "onx"], ["--port", "onx", "onnx"]),
    (["serve", "nowhere"], ["nowhere"]),
    (["report", "full"], ["full", "MANIFEST.json"]),
    (["compare", "nowhere", "m"], ["nowhere"]),
    (["show", "nowhere"], ["nowhere"]),
    (["list", "encodrs"], ["encodrs", "encoders"]),
    (["datasets", "digit"], ["digit", "digits"]),
    (["new", "tabulr", "o"], ["tabulr"]),
    (["check", "rows.csv", "--target", "back", "--lang", "xx"], ["xx", "en", "zh"]),
]  # fmt: skip
ASK = """
import sys, json, io, contextlib
from luban.cli import main
wrong = json.loads(sys.argv[1])
found = []
for words in wrong:
    out = io.StringIO()
    with contextlib.redirect_stderr(out), contextlib.redirect_stdout(out):
        try:
            code = main(words)
        except Exception as e:
            code = f"{type(e).__name__}: {e}"
    found.append([code, out.getvalue(), "torch" in sys.modules])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """All wrong requests in one process, one after another: exit code, what was said, whether torch was imported."""
    place = tmp_path_factory.mktemp("wrong")
    tiny.folder(place, "m")
    tiny.csv(place / "rows.csv", 60)
    (place / "full").mkdir()
    (place / "full" / "mine.txt").write_text("mine")
    (place / "bad.yaml").write_text(BAD)
    (place / "recipe.yaml").write_text(RECIPE)
    (place / "half.yaml").write_text("luban: 1\ninputs:\n  shop: [category\n")
    (place / "rows.docx").write_bytes(b"PK\x03\x04" + bytes(40))
    (place / "binary.csv").write_bytes(bytes(range(256)) * 4)
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps([w for w, _ in WRONG])], cwd=place, capture_output=True, text=True, timeout=120
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-1000:]
    assert (place / "full" / "mine.txt").read_text() == "mine"
    return json.loads(done.stdout)


@pytest.mark.parametrize("number", range(len(WRONG)), ids=[" ".join(w) for w, _ in WRONG])
def test_a_wrong_request_is_refused_in_a_few_lines(answers, number):
    _, expected = WRONG[number]
    code, text, torch = answers[number]
    assert code == 2, f"{code} {text}"
    lines = text.strip().splitlines()
    assert 1 <= len(lines) <= 12, text
    assert not [part for part in expected if part not in text], text
    assert not torch, "torch was imported before the request was known to be right"


def test_there_are_wrong_requests_for_every_verb():
    asked = {w[0] for w, _ in WRONG}
    assert len(WRONG) >= 25
    assert {v.__name__.strip("_") for v in VERBS} - asked <= {"doctor", "import"}


def test_mistakes_are_told_to_programs_too(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    (place / "bad.yaml").write_text(BAD)
    assert main(["check", "bad.yaml", "--json"]) == 2
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert len(problems) >= 8 and all(p["id"] and p["place"] and p["message"] for p in problems)
    assert "epochs" in [p["nearest"] for p in problems]


def test_a_hundred_mistakes_are_twelve_lines(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    (place / "many.yaml").write_text("luban: 1\n" + "".join(f"key{i}: 1\n" for i in range(100)))
    assert main(["check", "many.yaml"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 12 and say("error.more_lines", count=89) == lines[-1]
