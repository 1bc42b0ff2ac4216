"""Files made to harm, and the canary that would tell: each function changes a copy of a good Bundle and seals it again.

Whoever made the file can make the hashes, so it is never the manifest alone that protects.
"""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from luban import files

CANARY = "canary"


class Gadget:
    """Unpickled, it leaves a file behind."""

    def __init__(self, place: Path):
        self.command = f"touch {place / CANARY}"

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def pickled(place: Path) -> bytes:
    return pickle.dumps(Gadget(place))


def torch_zip(place: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": Gadget(place)}, buffer)
    return buffer.getvalue()


def torch_legacy(place: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": Gadget(place)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def torch_flipped(place: Path) -> bytes:
    """The zip with its magic broken, so that a careful loader fails and a careless one tries the next way."""
    data = torch_zip(place)
    return b"PK\x07\x08" + data[4:]


def torch_nested(place: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(place))
        archive.writestr("archive/inner.zip", torch_zip(place))
    return buffer.getvalue()


def zip_slip(place: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../" * 12 + str(place / CANARY).lstrip("/"), "x")
        archive.writestr(str(place / CANARY), "x")
    return buffer.getvalue()


def tar_slip(place: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, str(place)
        archive.addfile(link)
        inner = tarfile.TarInfo(f"out/{CANARY}")
        inner.size = 1
        archive.addfile(inner, io.BytesIO(b"x"))
    return buffer.getvalue()


EXECUTABLE = {
    f.__name__: f for f in (pickled, torch_zip, torch_legacy, torch_flipped, torch_nested, zip_slip, tar_slip)
}


def safetensors(header: Any, body: bytes = b"\0" * 64, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor(start: int, end: int, shape: list[int], kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


WEIGHTS = {
    "overlap": safetensors({"a": tensor(0, 32, [8]), "b": tensor(16, 48, [8])}),
    "hole": safetensors({"a": tensor(0, 16, [4]), "b": tensor(32, 64, [8])}),
    "beyond": safetensors({"a": tensor(0, 2**40, [2**38])}),
    "huge_shape": safetensors({"a": tensor(0, 64, [2**62, 2**62])}),
    "negative": safetensors(b'{"a":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}'),
    "unknown_type": safetensors({"a": tensor(0, 64, [1], "PICKLE")}),
    "twice": safetensors(
        b'{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]},"a":{"dtype":"F32","shape":[8],"data_offsets":[32,64]}}'
    ),
    "no_utf8": safetensors(b'{"\xff":1}'),
    "long_header": safetensors(b"{}", length=2**63 - 1),
    "header_over_100MB": safetensors(b"{}", length=100_000_001),
    "no_header": b"",
    "no_json": safetensors(b"os.system('x')"),
    "deep_json": safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "metadata_only": safetensors({"__metadata__": {"a": "x" * 2_000_000}}, b""),
    "other_names": safetensors({"__class__": tensor(0, 64, [16])}),
}


def write(folder: Path, name: str, data: bytes | str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)


def seal(folder: Path, **extra: Any) -> None:
    """A manifest that fits, with what is in `extra` besides."""
    path = folder / files.MANIFEST
    names = [n for n in json.loads(path.read_text())["files"] if (folder / n).exists()]
    files.seal(folder, "bundle", names)
    if extra:
        manifest = json.loads(path.read_text())
        manifest["files"] |= extra
        path.write_text(json.dumps(manifest))


def listing(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    path = folder / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def recipe(folder: Path, old: str, new: str) -> None:
    path = folder / "recipe.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8)
)
TAG = "luban: 1\ndata: !!python/object/apply:os.system ['touch canary']\n"
RECIPES = {
    "alias_bomb": "luban: 1\n" + BOMB,
    "merge": "luban: 1\nx: &x {a: 1}\ninputs: {<<: *x}\n",
    "python_tag": TAG,
    "python_new": "luban: 1\ninputs: !!python/object/new:subprocess.Popen [['touch','canary']]\n",
    "own_tag": "luban: 1\ninputs: !evil {shop: number}\n",
    "twice": "luban: 1\nseed: 1\nseed: 2\n",
    "ten_megabytes": "luban: 1\ninputs: {" + ", ".join(f"c{i}: number" for i in range(700_000)) + "}\n",
    "deep": "luban: 1\ninputs: " + "[" * 5_000 + "]" * 5_000 + "\n",
    "deep_block": "luban: 1\ninputs:\n" + "".join(" " * i + "a:\n" for i in range(1, 200)),
    "two_documents": "luban: 1\n---\nluban: 1\n",
    "nul": "luban: 1\ninputs: {sh\0op: number}\n",
    "not_utf8": b"luban: 1\ninputs: {\xff\xfe: number}\n",
    "dotted_type": "luban: 1\ninputs: {shop: os.system}\noutputs: {back: category}\n",
    "colon_type": "luban: 1\ninputs: {shop: 'subprocess:Popen'}\noutputs: {back: category}\n",
    "module_key": "luban: 1\nmodule: subprocess\n_target_: os.system\n",
    "dotted_encoder": "luban: 1\ninputs: {shop: number}\noutputs: {back: category}\nmodel: {shop: {torch.load: {f: x}}}\n",
    "dunder_encoder": "luban: 1\ninputs: {shop: number}\noutputs: {back: category}\nmodel: {shop: __import__}\n",
    "dotted_fusion": "luban: 1\nfusion: builtins.eval\n",
    "dotted_stage": "luban: 1\nstages: [{os.system: {command: touch canary}}]\n",
    "dunder_setting": "luban: 1\ninputs: {shop: {number: {__class__: x}}}\n",
    "state_setting": "luban: 1\ninputs: {shop: {category: {state: {labels: [x]}}}}\n",
    "interpolated_seed": "luban: 1\nseed: ${HOME}\n",
    "interpolated_size": "luban: 1\nsize: '{{ 7 * 7 }}'\n",
    "shell_rows": "luban: 1\ndata: {rows: '$(touch canary).csv'}\noutputs: {back: category}\n",
    "not_a_mapping": "- os.system\n",
}


def _columns(change: Callable[[dict], Any]) -> Callable[[Path], None]:
    return lambda folder: listing(folder, "columns.json", lambda cs: [change(c) or c for c in cs])


def _link(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        away = folder.parent / "outside"
        (folder / name).rename(away)
        (folder / name).symlink_to(away)

    return make


DEEP = "[" * 200_000 + "]" * 200_000
CHANGES: dict[str, Callable[[Path], Any]] = {
    "column_type_dotted": _columns(lambda c: c.update(type="os.system")),
    "column_type_colon": _columns(lambda c: c.update(type="subprocess:Popen")),
    "column_type_dunder": _columns(lambda c: c.update(type="__class__")),
    "column_settings_list": _columns(lambda c: c.update(settings=[1])),
    "column_state_missing": _columns(lambda c: c.update(state={})),
    "column_state_text": _columns(lambda c: c.update(state="x")),
    "columns_a_dict": lambda f: write(f, "columns.json", "{}"),
    "columns_of_numbers": lambda f: write(f, "columns.json", "[1]"),
    "columns_deep": lambda f: write(f, "columns.json", DEEP),
    "columns_none": lambda f: write(f, "columns.json", "[]"),
    "tokenizer_elsewhere": _columns(lambda c: c["state"].update(tokenizer={"file": "../../../etc/passwd"})),
    "tokenizer_absolute": _columns(lambda c: c["state"].update(tokenizer={"file": "/etc/passwd"})),
    "tokenizer_a_list": _columns(lambda c: c["state"].update(tokenizer={"file": ["x"]})),
    "tokenizer_class": lambda f: write(f, "tokenizer.json", '{"auto_map": "os.system", "model": {"type": "os.system"}}'),
    "tokenizer_deep": lambda f: write(f, "tokenizer.json", DEEP),
    "edit_dotted": lambda f: write(f, "edits.json", '[{"edit": "os.system", "command": "touch canary"}]'),
    "edit_dunder": lambda f: write(f, "edits.json", '[{"edit": "quantize_linear", "layers": ["__class__"]}]'),
    "edit_of_a_list": lambda f: write(f, "edits.json", '[{"edit": ["x"]}]'),
    "edit_arguments": lambda f: write(f, "edits.json", '[{"edit": "low_rank", "ranks": {"": 3}, "x": 1}]'),
    "edits_text": lambda f: write(f, "edits.json", '"os.system"'),
    "edits_deep": lambda f: write(f, "edits.json", DEEP),
    "history_text": lambda f: write(f, "history.jsonl", '"os.system"\n'),
    "history_half": lambda f: write(f, "history.jsonl", '{"stage": "tr'),
    "report_type": lambda f: write(f, "reports/evaluate.json", '{"kind": "x", "blocks": [{"type": "os.system"}]}'),
    "report_deep": lambda f: write(f, "reports/evaluate.json", DEEP),
    "table_garbage": lambda f: write(f, "tables/trained.arrow", b"ARROW1\0\0" + b"\xff" * 400 + b"ARROW1"),
    "giant_layer": lambda f: recipe(f, "hidden: [", "hidden: [9000000, 9000000, "),
    "link_weights": _link("model.safetensors"),
    "link_recipe": _link("recipe.yaml"),
    "link_folder": _link("reports"),
    "link_manifest": _link(files.MANIFEST),
    **{
        f"{how}_as_{name}": lambda f, how=how, name=name: write(f, name, EXECUTABLE[how](f.parent))
        for how, name in [
            *((h, "model.safetensors") for h in EXECUTABLE),
            *(("pickled", n) for n in ("recipe.yaml", "columns.json", "edits.json", "history.jsonl", "tokenizer.json")),
            ("pickled", "tables/trained.arrow"), ("pickled", "reports/evaluate.json"), ("pickled", files.MANIFEST),
        ]
    },
    **{f"weights_{n}": lambda f, d=d: write(f, "model.safetensors", d) for n, d in WEIGHTS.items()},
    **{f"recipe_{n}": lambda f, d=d: write(f, "recipe.yaml", d) for n, d in RECIPES.items()},
}  # fmt: skip
NAMES = (
    "../outside",
    "/etc/passwd",
    "reports/../../outside",
    "a\0b",
    "..\\outside",
    "../shop_evil/x",
    "%2e%2e/outside",
)
ADDED = {  # files that the manifest names, so that they are sealed
    "pth": ("evil.pth", "import os; os.system('touch canary')\n"),
    "code": ("luban_plugin.py", "import os; os.system('touch canary')\n"),
    "pickle": ("model.pkl", "cos\nsystem\n(S'touch canary'\ntR."),
    "torchscript": ("model.pt2", "PK"),
    "package": ("luban/__init__.py", "raise SystemExit"),
}


def folders() -> list[str]:
    return [*CHANGES, *(f"named_{i}" for i in range(len(NAMES))), *(f"added_{n}" for n in ADDED), "manifest_deep"]


def make(kind: str, folder: Path) -> Path:
    """Turn a good Bundle into the hostile one of that name."""
    if kind in CHANGES:
        CHANGES[kind](folder)
        if "manifest" not in kind.lower() and not kind.endswith(files.MANIFEST):
            seal(folder)
    elif kind.startswith("named_"):
        (folder.parent / "outside").write_text("x")
        seal(folder, **{NAMES[int(kind[6:])]: files.digest(folder.parent / "outside")})
    elif kind == "manifest_deep":
        write(folder, files.MANIFEST, DEEP)
    else:
        name, text = ADDED[kind[6:]]
        write(folder, name, text)
        seal(folder, **{name: files.digest(folder / name)})
    return folder
