"""Annotation files of object detection as rows: COCO's JSON, Pascal VOC's XML, YOLO's text files.

Each gives the columns `image` (a path relative to the folder) and `objects` (see `luban.data.boxes`), and `split` where the files say which
images are for training. An image with a fault goes to the quarantine with the reason, never only its bad box.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa

from luban.data import boxes
from luban.data.images import ENDINGS, image_fault, size_of
from luban.data.json_lines import strict
from luban.data.rows import BadRow, Quarantined, Rows, csv_line
from luban.data.splits import part_of
from luban.errors import DataError, Problem, RecipeError, problem
from luban.messages import listed
from luban.yaml_file import read as read_yaml

LONGEST_XML = 10 << 20  # bytes of one annotation file
_HEAD = re.compile(rb'\s*\{\s*"(info|images|licenses|annotations|categories)"\s*:')
_NAMES = ("classes.txt", "obj.names", "labels/classes.txt")


@dataclass
class Picture:
    """One image: its path below the folder, its objects as cells have them (None: nobody knows), and why it cannot be used."""

    path: str
    objects: list[dict[str, Any]] | None
    part: str | None = None
    fault: tuple[str, dict[str, Any]] | None = None


@dataclass
class Found:
    """What a set of annotation files says."""

    root: Path
    pictures: list[Picture] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)


def folder(root: Path, source: str, kind: str = "auto") -> Rows | None:
    """Rows of a folder with annotation files (of `kind`: coco, voc, yolo); None where there are none. Raises DataError."""
    for name, read in (("coco", coco_folder), ("voc", voc_folder), ("yolo", yolo_folder)):
        if kind in ("auto", name) and (found := read(root, source)) is not None:
            return _rows(found, source)
    return None


def _rows(found: Found, source: str) -> Rows:
    """The table; what has a fault goes aside. Raises DataError where no image can be used."""
    good: list[Picture] = []
    lines, quarantine, texts = [], [], []
    for line, picture in enumerate(found.pictures, 1):
        try:
            regions = None if picture.objects is None else boxes.plain(picture.objects)
            fault = picture.fault or _missing(found.root / picture.path)
        except BadRow as e:
            fault = (e.id, {"column": "objects", "of": "image", **e.values})
        if fault:
            quarantine.append(Quarantined(line, *fault, csv_line([picture.path])))
            continue
        good.append(picture)
        lines.append(line)
        texts.append(None if regions is None else boxes.text_of(regions))
    if not good:
        first = quarantine[0] if quarantine else Quarantined(1, "data.no_rows")
        raise DataError(
            problem(first.reason_id, place=f"{source}:{found.pictures[0].path if quarantine else ''}", **first.values)
        )
    columns = {"image": pa.array([p.path for p in good], pa.string()), "objects": pa.array(texts, pa.string())}
    notes = list(found.notes)
    if len({p.part for p in good if p.part}) > 1:
        columns["split"] = pa.array([p.part or "train" for p in good], pa.string())
        notes.append(problem("data.split_column", place=source, column="split"))
    return Rows(
        pa.table(columns), np.array(lines, np.int64), source, found.root, quarantine, len(found.pictures), tuple(notes)
    )


def _missing(path: Path) -> tuple[str, dict[str, Any]] | None:
    return image_fault(path) if path.is_file() else ("boxes.no_file", {"file": path.name})


def _part(path: str | Path) -> str | None:
    """What a path says of the part that it is in: `train2017`, `valid`, `images/val`; the last word that is one."""
    words = re.split(r"[^a-z]+", str(path).lower())
    return next((part for word in reversed(words) if (part := part_of(word))), None)


# ---- COCO


def is_coco(head: bytes) -> bool:
    """Whether a JSON file begins as one of COCO does."""
    return _HEAD.match(head) is not None


def coco_folder(root: Path, source: str) -> Found | None:
    """Every file of COCO's in a folder and the folders just below it, such as `annotations/instances_val2017.json`."""
    files = [p for p in sorted([*root.glob("*.json"), *root.glob("*/*.json")]) if is_coco(_head(p))]
    found = Found(root)
    for path in files:
        _coco(path, root, found, f"{source}/{path.relative_to(root).as_posix()}", _part(path.relative_to(root)))
    return found if found.pictures else None


def coco_file(path: Path, source: str) -> Rows | None:
    """Rows of one file; its images lie beside it, or in a folder nearby. None where it is something else."""
    root = path.parent if path.parent.name != "annotations" else path.parent.parent
    found = Found(root)
    _coco(path, root, found, source, None)
    return _rows(found, source) if found.pictures else None


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(512)


def _coco(path: Path, root: Path, found: Found, source: str, part: str | None) -> None:
    try:
        value = strict(path.read_bytes())
    except BadRow as e:
        raise DataError(problem(e.id, place=source, **e.values)) from e
    if not isinstance(value, Mapping) or not isinstance(value.get("images"), list):
        return
    places = _places(path, root)
    names = {c.get("id"): str(c.get("name") or "") for c in _mappings(value.get("categories"))}
    annotated = isinstance(value.get("annotations"), list)
    pictures: dict[Any, Picture] = {}
    for image in _mappings(value["images"]):
        name, number = str(image.get("file_name") or ""), image.get("id")
        at = next((p for p in places if name and (p / name).is_file()), places[0]) / name
        picture = Picture(_below(at, root), [] if annotated else None, part)
        picture.fault = ("boxes.same_id", {"id": str(number)}) if number in pictures else None
        pictures.setdefault(number, picture)
        found.pictures.append(picture)
    lost = 0
    for one in _mappings(value.get("annotations")):
        picture = pictures.get(one.get("image_id"))
        if picture is None:
            lost += 1
        elif one.get("category_id") not in names:
            values = {"id": str(one.get("category_id")), "known": _some(names.values())}
            picture.fault = picture.fault or ("boxes.no_category", values)
        elif picture.objects is not None:
            crowd = bool(one.get("iscrowd") or one.get("ignore"))
            told = {"box": one.get("bbox"), "crowd": crowd, "area": one.get("area")}
            picture.objects.append({"label": names[one["category_id"]], **told})
    if lost:
        found.notes.append(problem("boxes.lost", place=source, count=lost))


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return listed([*names[:10], *(["..."] if len(names) > 10 else [])])


def _mappings(values: Any) -> list[Mapping[str, Any]]:
    return [v for v in values if isinstance(v, Mapping)] if isinstance(values, list) else []


def _places(path: Path, root: Path) -> list[Path]:
    """Folders that the images of an annotation file may lie in, the likeliest first."""
    word = re.sub(r"^(instances|annotations)_", "", path.stem)
    near = [path.parent, root]
    inside = [n / w for n in near for w in (word, "images", f"images/{word}")]
    return [p for p in dict.fromkeys([*inside, *near, *sorted(p for p in root.iterdir() if p.is_dir())]) if p.is_dir()]


def _below(path: Path, root: Path) -> str:
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return str(path)


# ---- Pascal VOC


def voc_folder(root: Path, source: str) -> Found | None:
    """A folder of VOC: `Annotations/*.xml` with `JPEGImages/` and, where they are there, the lists of `ImageSets/Main`; or XML beside images."""
    files = sorted(root.glob("Annotations/*.xml")) or sorted([*root.glob("*.xml"), *root.glob("*/*.xml")])
    found = Found(root)
    parts = _lists(root / "ImageSets" / "Main")
    for path in files:
        told = _voc(path)
        if told is None:
            continue
        objects, name, fault = told
        folders = (root / "JPEGImages", path.parent, path.parent.parent / "images", root)
        names = [name, *(path.stem + e for e in ENDINGS)] if name else [path.stem + e for e in ENDINGS]
        at = next((f / n for f in folders for n in names if (f / n).is_file()), folders[0] / (name or path.stem))
        part = parts.get(path.stem) if parts else _part(path.parent.relative_to(root))
        found.pictures.append(Picture(_below(at, root), objects, part, fault))
    return found if found.pictures else None


def _lists(folder: Path) -> dict[str, str]:
    """Image -> part, of `train.txt`, `val.txt` and `test.txt`."""
    found = {}
    for word in ("train", "val", "test"):
        path = folder / f"{word}.txt"
        if path.is_file():
            found |= {line.split()[0]: part_of(word) for line in path.read_text("utf-8").splitlines() if line.strip()}
    return found


def _voc(path: Path) -> tuple[list[dict[str, Any]], str, tuple[str, dict[str, Any]] | None] | None:
    """Objects, the image's name and a fault of one file; None where it is no annotation.

    Corners are pixel numbers from 1, both included, as the VOC devkit has them: 1 to W is the whole width.
    """
    data = path.read_bytes()
    try:
        if len(data) > LONGEST_XML or b"<!ENTITY" in data or b"<!DOCTYPE" in data:
            raise ElementTree.ParseError(path.name)
        tree = ElementTree.fromstring(data)
    except ElementTree.ParseError:
        return [], "", ("boxes.bad_xml", {"file": path.name})
    if tree.tag != "annotation":
        return None
    objects = []
    for one in tree.iter("object"):
        corners = [one.findtext(f"bndbox/{k}") for k in ("xmin", "ymin", "xmax", "ymax")]
        try:
            x0, y0, x1, y1 = (float(c or "") for c in corners)
            box: Any = [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1]
        except ValueError:
            box = str(corners)
        difficult = (one.findtext("difficult") or "0").strip() == "1"
        objects.append({"label": (one.findtext("name") or "").strip(), "box": box, "difficult": difficult})
    return objects, (tree.findtext("filename") or "").strip(), None


# ---- YOLO


def yolo_folder(root: Path, source: str) -> Found | None:
    """A folder of YOLO: a YAML file with `names` (and `train`, `val`, `test`), or `classes.txt`; one text file an image, in `labels/` or beside it.

    A line of it is class, x and y of the centre, width, height, all but the first as shares of the image; a polygon counts as its box. An
    image without a text file has nothing on it.
    """
    found = _yolo_data(root, source)
    if found is None:
        return None
    names, parts = found
    pictures = []
    for part, files in parts:
        for path in files:
            objects, fault = _yolo(path, _beside(path), names)
            pictures.append(Picture(_below(path, root), objects, part, fault))
    return Found(root, pictures) if any(_beside(root / p.path).is_file() for p in pictures) else None


def _yolo_data(root: Path, source: str) -> tuple[list[str], list[tuple[str | None, list[Path]]]] | None:
    """The classes, and the images of each part."""
    for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        try:
            value = read_yaml(path)[0]
        except RecipeError:
            continue
        names = value.get("names") if isinstance(value, Mapping) else None
        if isinstance(names, Mapping):
            names = (
                [names[k] for k in sorted(names, key=lambda k: int(k))]
                if all(str(k).isdecimal() for k in names)
                else None
            )
        if isinstance(names, list) and names:
            base = root / str(value.get("path") or "")
            base = base if base.is_dir() else root
            parts = [(part_of(w), _images(base, root, value[w])) for w in ("train", "val", "test") if value.get(w)]
            return [str(n) for n in names], parts or [(None, _pictures(root))]
    path = next((root / n for n in _NAMES if (root / n).is_file()), None)
    if path is None:
        return None
    names = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    by_part: dict[str | None, list[Path]] = defaultdict(list)
    for image in _pictures(root):
        by_part[_part(image.parent.relative_to(root))].append(image)
    return names, sorted(by_part.items(), key=lambda pair: str(pair[0]))


def _images(base: Path, root: Path, named: Any) -> list[Path]:
    """The images of a folder, of several, or of a list in a text file."""
    found: list[Path] = []
    for name in named if isinstance(named, list) else [named]:
        tried = (base / str(name), root / str(name), root / str(name).removeprefix("../"))
        at = next((p for p in tried if p.exists()), None)
        if at is not None and at.is_dir():
            found += _pictures(at)
        elif at is not None:
            lines = [line.strip() for line in at.read_text("utf-8").splitlines() if line.strip()]
            found += [at.parent / line for line in lines]
    return found


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file() and not p.is_symlink())


def _beside(image: Path) -> Path:
    """The text file of an image: `labels` for the last `images` of its path, or beside it."""
    parts = list(image.with_suffix(".txt").parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i] == "images":
            return Path(*parts[:i], "labels", *parts[i + 1 :])
    return Path(*parts)


def _yolo(
    image: Path, labels: Path, names: list[str]
) -> tuple[list[dict[str, Any]], tuple[str, dict[str, Any]] | None]:
    size = size_of(str(image))
    if not labels.is_file() or size is None:
        return [], None
    objects = []
    for number, line in enumerate(labels.read_text("utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            kind, *shares = (float(w) for w in line.split())
            box = _box(shares, size)
        except ValueError:
            return [], ("boxes.yolo_line", {"file": labels.name, "line": number, "value": line[:60]})
        if not 0 <= kind < len(names) or kind != int(kind):
            return [], ("boxes.no_category", {"id": f"{kind:g}", "known": _some(names)})
        objects.append({"label": names[int(kind)], "box": box})
    return objects, None


def _box(shares: Iterable[float], size: tuple[int, int]) -> list[float]:
    """x, y, width, height in pixels of a line of YOLO. Raises ValueError."""
    shares, (height, width) = list(shares), size
    if len(shares) == 4:
        x, y, w, h = shares
        corners = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    elif len(shares) >= 6 and len(shares) % 2 == 0:
        corners = min(shares[::2]), min(shares[1::2]), max(shares[::2]), max(shares[1::2])
    else:
        raise ValueError(len(shares))
    x0, y0, x1, y1 = (c * n for c, n in zip(corners, (width, height, width, height)))
    return [round(n, 4) for n in (x0, y0, x1 - x0, y1 - y0)]
