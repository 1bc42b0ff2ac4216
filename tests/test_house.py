"""House rules: who may import whom, no modality named in a stage, every sentence in the catalogue, a light door."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "luban"
FILES = sorted(PACKAGE.rglob("*.py"))
# Rooms from the ground up; a room imports from those before it and from itself.
ORDER = [
    {
        "aliases",
        "messages",
        "errors",
        "settings",
        "files",
        "yaml_file",
        "registry",
        "scale",
        "wrapping",
        "console",
        "markup",
        "machine",
        "energy",
        "command",
        "drawing",
        "plots",
        "search_plots",
        "report",
        "__init__",
    },
    {"part", "space", "checking", "changes", "recipe"},
    {"data"},
    {"columns"},
    {"engines", "openvino_engine"},
    {"nn"},
    {"generation"},
    {"card", "bundle", "huggingface", "onnx_file"},
    {"training", "evaluation"},
    {"stages", "predictions", "predicting", "showing"},
    {
        "asking",
        "pages",
        "starters",
        "starter_rows",
        "doctor",
        "foreign",
        "applying",
        "requests",
        "scaling",
        "searching",
        "prompted",
    },
    {"comparing"},
    {"tuning"},
    {"planning"},
    {"pipeline"},
    {"cli", "__main__"},
]
LEVEL = {room: i for i, rooms in enumerate(ORDER) for room in rooms}
NO_TORCH = {
    "aliases",
    "asking",
    "requests",
    "messages",
    "errors",
    "settings",
    "files",
    "yaml_file",
    "registry",
    "scale",
    "wrapping",
    "console",
    "command",
    "drawing",
    "markup",
    "search_plots",
    "space",
    "plots",
    "report",
    "recipe",
    "data",
    "columns",
    "engines",
    "openvino_engine",
    "card",
}
MODALITIES = {"text", "image", "number", "category", "audio", "series"}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found += [f"{node.module}.{a.name}" if node.module == "luban" else node.module for a in node.names]
    return found


def wrong_way(path: Path, source: str) -> list[str]:
    here = room(path)
    wrong = []
    for name in imports(ast.parse(source)):
        if not name.startswith("luban."):
            continue
        there = name.split(".")[1]
        if LEVEL.get(there, 0) > LEVEL[here]:
            wrong.append(f"{here} imports {name}")
        if here == there == "stages" and name.split(".")[2:3] != [
            path.relative_to(PACKAGE / "stages").parts[0].removesuffix(".py")
        ]:
            wrong.append(f"stage {path.name} imports {name}")
    return wrong


def test_every_room_has_its_place():
    assert {room(f) for f in FILES} <= set(LEVEL), {room(f) for f in FILES} - set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    if path.parent == PACKAGE and path.stem == "__init__":
        return  # the flat page of public names, lazy
    assert not wrong_way(path, path.read_text(encoding="utf-8"))


def test_control_an_import_upwards_is_seen():
    assert wrong_way(PACKAGE / "columns" / "x.py", "from luban.nn.tokens import Tokens")
    assert wrong_way(PACKAGE / "stages" / "a.py", "from luban.stages.b import c")


@pytest.mark.parametrize("path", [f for f in FILES if room(f) in NO_TORCH], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_torch_below_the_network(path):
    assert not [n for n in imports(ast.parse(path.read_text(encoding="utf-8"))) if n.split(".")[0] == "torch"]


@pytest.mark.parametrize(
    "path", [f for f in FILES if room(f) in ("stages", "training")], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_no_stage_names_a_modality(path):
    """Stages speak of forms and kinds of answer; an input type's name in one would mean N x M."""
    named = {
        n.value
        for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(n, ast.Constant) and n.value in ("text", "image", "audio", "series")
    }
    used = {
        n.split(".")[-1] for n in imports(ast.parse(path.read_text(encoding="utf-8"))) if n.startswith("luban.columns.")
    }
    assert not used & MODALITIES
    assert not named


PROSE = re.compile(r"\b[a-z]{2,} [a-z]{2,}\b")


def prose(source: str) -> list[tuple[int, str]]:
    """String constants that read like sentences, docstrings and type annotations apart."""
    tree = ast.parse(source)
    skip = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                skip.add(id(first.value))
    found = [
        n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in skip
    ]
    return [(n.lineno, n.value) for n in found if PROSE.search(n.value) and not MARKUP.search(n.value)]


MARKUP = re.compile(r"[<>{};]|^[\w./-]+( --?[\w-]+)+")  # HTML, CSS and command lines are not sentences


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_sentence_outside_the_catalogue(path):
    assert not prose(path.read_text(encoding="utf-8"))


def test_control_a_sentence_in_code_is_seen():
    assert prose('print("the file was not found")')


CATALOGUE = json.loads((PACKAGE / "messages" / "en.json").read_text(encoding="utf-8"))
ID = re.compile(
    r'(?:say|tell|problem|Error|Unsupported|MissingExtra|Diverged|ExportMismatch|DataError|known)\(\s*"([a-z_]+(?:\.[A-Za-z_0-9-]+)+)"'
)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_id_has_a_sentence(path):
    assert not [i for i in ID.findall(path.read_text(encoding="utf-8")) if i not in CATALOGUE]


CHINESE = json.loads((PACKAGE / "messages" / "zh.json").read_text(encoding="utf-8"))


def test_catalogues_are_sorted_and_every_sentence_is_there_in_both_languages():
    assert list(CATALOGUE) == sorted(CATALOGUE) and list(CHINESE) == sorted(CHINESE)
    assert set(CHINESE) == set(CATALOGUE)


@pytest.mark.parametrize("room", sorted({k.split(".")[0] for k in CATALOGUE}))
def test_a_sentence_says_the_same_in_chinese(room):
    assert not list(unlike({k: v for k, v in CATALOGUE.items() if k.split(".")[0] == room}, CHINESE))


def unlike(english: dict[str, str], chinese: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Where values, code or flags are not the same, or a mark of one language stands in the other."""
    fields = lambda t: sorted((f, s, c) for _, f, s, c in Formatter().parse(t) if f is not None)  # noqa: E731
    code = lambda t: sorted(re.findall(r"`[^`]*`|--[a-z-]+", t))  # noqa: E731
    for key, said in english.items():
        other = chinese[key]
        if fields(said) != fields(other) or said.count("\n") != other.count("\n"):
            yield key, "values"
        if code(said) != code(other):
            yield key, "code"
        if re.search(r"[一-鿿][,;:?!]|[一-鿿]\.(\s|$)|[,;:][一-鿿]", other):
            yield key, "marks"
        if (said.endswith(".") and not said.endswith("...")) != other.endswith("。"):
            yield key, "end"


def test_control_chinese():
    english = {"a.b": "{count} rows in `x` with --out."}
    assert not list(unlike(english, {"a.b": "`x` 中有 {count} 行（--out）。"}))
    for wrong in (
        "`x` 中有行（--out）。",
        "`y` 中有 {count} 行（--out）。",
        "`x` 中有 {count} 行, --out。",
        "`x` 中有 {count} 行（--out）",
    ):
        assert list(unlike(english, {"a.b": wrong})), wrong


def test_schema_is_what_the_signatures_say():
    from luban import registry

    assert json.loads((PACKAGE / "schema.json").read_text(encoding="utf-8")) == json.loads(
        json.dumps(registry.everything())
    ), "run: make schema"


def test_every_name_has_a_word_on_its_use():
    from luban import registry

    listed = [
        f"use.{room}.{name}"
        for room in ("columns", "encoders", "fusions", "heads", "stages", "edits", "optimizers", "schedules")
        for name in registry.ROOMS[room]
    ]
    assert not [i for i in listed if i not in CATALOGUE]


def modules_after(*words: str) -> set[str]:
    code = f"import sys; from luban.cli import main; main({list(words)!r}); print('\\n' + ' '.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("words", [("--help",), ("train", "--help"), ("list", "encoders"), ("trian",)])
def test_light_at_the_door(words):
    heavy = {"torch", "numpy", "pandas", "pydantic", "rich", "pyarrow", "sklearn", "yaml"} & modules_after(*words)
    assert not heavy


def test_check_needs_no_torch(tmp_path):
    (tmp_path / "recipe.yaml").write_text("luban: 1\nstages:\n  - train: {epochz: 5}\n  - trian: {}\n")
    assert not {"torch", "sklearn", "pandas"} & modules_after("check", str(tmp_path / "recipe.yaml"))


def test_public_names_are_sorted_and_there():
    import luban

    assert luban.__all__ == sorted(luban.__all__)
    assert all(hasattr(luban, n) for n in luban.__all__)
