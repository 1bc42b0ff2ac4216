"""What a person reads: every sentence comes out of the catalogue, and a wrong request is told all its mistakes at once.

In the language `pseudo` each sentence stands in ⟦ ⟧. Letters outside of them may only be names: of the user's data, of
what a recipe can name, of flags, metrics, packages. Each kind of name is taken from where it is defined, not listed here.
"""

import html
import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from string import Formatter

import numpy as np
import pytest

from luban import files, messages, registry
from luban.checking import DATA_KEYS, KEYS
from luban.cli import COMMON, VERBS, main
from luban.command import Verb, _metavar
from luban.data.in_memory import columns
from luban.data.models import MODELS, WEIGHTS, weightless
from luban.data.quality import check
from luban.data.samples import SAMPLES
from luban.data.samples.clients import only_file
from luban.data.sources import read
from luban.data.splits import Splits, split
from luban.data.text_file import refuse_foreign
from luban.errors import LubanError
from luban.messages import catalogue, listed, say, set_language, spoken, together
from luban.planning import hardware
from luban.planning.plan import CHOICES
from luban.report import Report
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


# -- words of code in Chinese ------------------------------------------------------------------------------------------------


def latin(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z_-]{2,}", text))


@pytest.fixture(scope="module")
def chinese(tmp_path_factory):
    """A model trained and judged in Chinese: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("chinese")
    tiny.csv(folder / "rows.csv", 60)
    words = ["train", str(folder / "rows.csv"), *TRAIN[2:-1], str(folder / "m"), "--lang", "zh"]
    done = subprocess.run([sys.executable, "-m", "luban", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-1000:]
    return folder / "m", done.stdout + done.stderr


def test_baselines_and_parts_are_said_in_chinese(chinese):
    folder, printed = chinese
    page = html.unescape(re.sub(r"<[^>]+>", " ", (folder / "report.html").read_text("utf-8").split("</style>")[-1]))
    for text in (printed, page):
        assert "多数类" in text and "线性模型" in text and not {"majority", "linear"} & latin(text)
    card = (folder / "README.md").read_text("utf-8")
    assert "个测试行" in printed and "个测试行" in card and "(test" not in card and "（test" not in card
    assert "模型报告，" in page and not re.search("[。，；：] ?[a-z_]+ 报告", page)
    assert not re.search("。 +[一-鿿]", printed + card), "no blank between sentences"
    numbers = json.loads((folder / "reports" / "evaluate.json").read_text("utf-8"))["numbers"]
    assert numbers["part"] == "test" and set(numbers["outputs"]["back"]["baselines"]) >= {"majority", "linear"}


def _raised(call: Callable[[], object]) -> str:
    with pytest.raises(LubanError) as e:
        call()
    return str(e.value)


def _sealed(folder: Path) -> str:
    (folder / "a.txt").write_text("a")
    files.seal(folder, "cache")
    return _raised(lambda: files.open_sealed(folder, "bundle"))


def _asked(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*words, "--lang", messages.language()]) == 2
    return capsys.readouterr().err


def _leaks(rows: list[dict]) -> str:
    split = Splits(np.arange(20), np.arange(20, 25), np.arange(25, 40))
    rows = [r | {"mail": f"a{i}@b.org", "back": r["back"] if i < 39 else "new"} for i, r in enumerate(rows)]
    types = {"shop": "category", "mail": "text", "back": "category"}
    found = check(read([*rows[:38], rows[0], rows[39]]), types, "back", split)
    assert {"leak", "unseen_class", "personal_cells"} <= {f.id for f in found}
    parts = [f.problem.to_json()["values"].get("part") for f in found]
    assert "test" in parts, "machines read the same in every language"
    return "\n".join(str(f.problem) for f in found)


PLACES: dict[str, tuple[Callable[..., str], set[str], list[str]]] = {
    # what happens -> words that are said in English alone, what is said in Chinese
    "leaks": (lambda **_: _leaks(tiny.rows()), {"test", "e-mail"}, ["测试部分", "电子邮件地址"]),
    "an empty part": (lambda **_: _raised(lambda: split(read(tiny.rows(2)))), {"validation"}, ["验证部分没有分到"]),
    "a number": (lambda capsys, **_: _asked(["train", "x.csv", "--seed", "one"], capsys), {"int"}, ["应为：整数"]),
    "a small number": (lambda capsys, **_: _asked(["search", "m", "q", "--top", "0"], capsys), {"integer"}, [">= 1 的整数"]),
    "a setting": (lambda place, capsys: _asked(["check", str(place / "bad.yaml")], capsys), {"encoders"}, ["> 0 的数值"]),
    "a room": (lambda **_: _raised(lambda: registry.find("encoders", "x")), {"encoders"}, ["编码器中没有"]),
    "no rows": (lambda **_: _raised(lambda: tiny.model().compress(None, prune=0.5)), {"prune"}, ["剪枝需要数据行"]),
    "a picture": (lambda **_: _raised(lambda: refuse_foreign(b"\x89PNG", "x.csv")), {"image"}, ["（图像）"]),
    "mixed kinds": (lambda **_: str(columns({"a": [1, object()]}, "x")[1][0]), {"other"}, ["int、其他"]),
    "a folder": (lambda place, **_: _sealed(place), {"bundle", "cache"}, ["编码行缓存", "已保存的模型"]),
    "a download": (lambda place, **_: _raised(lambda: only_file(place, SAMPLES["digits"])), {"download"}, ["下载"]),
    "a page": (lambda **_: re.sub("<[^>]+>", " ", Report("plan", "-").to_html().split("<footer>")[1]), {"plan"}, ["规划报告"]),
    "a list": (lambda **_: str(weightless("none.safetensors", "model.x")), set(), ["、".join(WEIGHTS)]),
}  # fmt: skip


@pytest.mark.parametrize("what", PLACES)
def test_no_word_of_code_stands_in_a_chinese_sentence(what, tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text(BAD)
    (tmp_path / "rows.csv").write_text("a\n1\n")
    happen, english, chinese = PLACES[what]
    set_language("zh")
    text = happen(place=tmp_path, capsys=capsys)
    assert not english & latin(text) and not [t for t in chinese if t not in text], text
    set_language("en")  # the control: there they are
    text = happen(place=tmp_path, capsys=capsys)
    assert english <= latin(text) and not [t for t in chinese if t in text], text


def test_every_word_of_code_has_chinese_of_its_own():
    forms = {f for text in catalogue("en").values() for _, _, f, _ in Formatter().parse(text) if f and f.endswith(".")}
    assert {"part.", "baseline.name.", "room."} <= forms
    for form in (*forms, "want."):
        words = [i for i in catalogue("en") if i.startswith(form)]
        assert words and not [i for i in words if catalogue("en")[i] == catalogue("zh")[i]], form


def test_a_hole_says_the_words_of_a_room_and_leaves_others_as_they_are():
    set_language("zh")
    assert spoken("part.", "test") == "测试" and spoken("part.", "a\nb") == "a\\nb"
    assert "多数类、mine" in say("evaluate.beaten", baselines=["majority", "mine"], metric="f1")
    assert listed(["a", "b"]) == "a、b" and listed(["a, b", "c"], "; ") == "a, b；c"
    assert together("一。", "二。") == "一。二。"
    set_language("en")
    assert "majority, mine" in say("evaluate.beaten", baselines=["majority", "mine"], metric="f1")
    assert listed(["a", "b"]) == "a, b" and listed(["a", "b"], "; ") == "a; b" and together("A.", "B.") == "A. B."
