"""Annotation files of COCO, Pascal VOC and YOLO: the same boxes from each, and nothing lost."""

import json

import numpy as np
import pytest
from PIL import Image

from luban.asking import check
from luban.columns.infer import infer
from luban.data.boxes import plain
from luban.data.sources import read
from luban.errors import DataError

SIZE = (100, 80)  # width, height
SCENES = {
    "train/a": [("cat", (10, 20, 30, 40)), ("dog", (50, 8, 20, 60))],
    "train/b": [],
    "val/c": [("dog", (0, 0, 100, 80))],
    "val/d": [("cat", (25.5, 10.25, 10.5, 20))],
}
NAMES = ["cat", "dog"]


def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((SIZE[1], SIZE[0], 3), np.uint8)).save(path)


def coco(root, scenes=SCENES, change=lambda part, value: None, one=False):
    """annotations/instances_PART.json and PART/NAME.png, as the 2017 release lies."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for part in ("train", "val"):
        value = {
            "info": {},
            "images": [],
            "annotations": [],
            "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        }
        for i, (name, objects) in enumerate((n, o) for n, o in scenes.items() if n.startswith(part)):
            file = name.split("/")[1] + ".png"
            photo(root / f"{part}2017" / file)
            value["images"].append({"id": i + 10, "file_name": file, "width": SIZE[0], "height": SIZE[1]})
            for label, box in objects:
                value["annotations"].append({"image_id": i + 10, "category_id": {"cat": 3, "dog": 7}[label], "bbox": list(box), "iscrowd": 0})  # fmt: skip
        change(part, value)
        (root / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(value))
    return root


def voc(root, scenes=SCENES):
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    lists = {"train": [], "val": []}
    for name, objects in scenes.items():
        part, stem = name.split("/")
        lists[part].append(stem)
        photo(root / "JPEGImages" / f"{stem}.png")
        inside = "".join(
            f"<object><name>{k}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
            f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox><part><name>head</name></part></object>"
            for k, (x, y, w, h) in objects
        )
        text = f"<annotation><filename>{stem}.png</filename>{inside}</annotation>"
        (root / "Annotations" / f"{stem}.xml").write_text(text)
    for part, names in lists.items():
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(names) + "\n")
    return root


def yolo(root, scenes=SCENES, yaml=True):
    for name, objects in scenes.items():
        photo(root / "images" / f"{name}.png")
        (root / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
        lines = [
            f"{NAMES.index(k)} {(x + w / 2) / SIZE[0]:.6f} {(y + h / 2) / SIZE[1]:.6f} {w / SIZE[0]:.6f} {h / SIZE[1]:.6f}"
            for k, (x, y, w, h) in objects
        ]
        if lines:
            (root / "labels" / f"{name}.txt").write_text("\n".join(lines))
    if yaml:
        (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnc: 2\nnames: [cat, dog]\n")
    else:
        (root / "classes.txt").write_text("cat\ndog\n")
    return root


def boxes_of(rows):
    return {p.rsplit("/", 1)[1]: [(r.label, r.box) for r in plain(o)] for p, o in zip(*(rows.table[n].to_pylist() for n in ("image", "objects")))}  # fmt: skip


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo", "yolo-classes"])
def test_each_kind_of_file_says_the_same(tmp_path, kind):
    make = {"coco": coco, "voc": voc, "yolo": yolo, "yolo-classes": lambda root: yolo(root, yaml=False)}[kind]
    rows = read(make(tmp_path / "set"))
    found = boxes_of(rows)
    assert set(found) == {"a.png", "b.png", "c.png", "d.png"} and not rows.quarantine
    for name, objects in SCENES.items():
        mine = found[name.split("/")[1] + ".png"]
        assert [k for k, _ in mine] == [k for k, _ in objects]
        assert np.allclose([b for _, b in mine], [b for _, b in objects], atol=1e-3)
    parts = dict(zip([p[-5] for p in rows.table["image"].to_pylist()], rows.table["split"].to_pylist()))
    assert parts == {"a": "train", "b": "train", "c": "validation", "d": "validation"}


def test_one_file_of_coco_finds_its_images(tmp_path):
    coco(tmp_path)
    rows = read(tmp_path / "annotations" / "instances_train2017.json")
    assert boxes_of(rows)["a.png"][0] == ("cat", (10, 20, 30, 40)) and len(rows) == 2
    (tmp_path / "annotations" / "other.json").write_text(json.dumps({"images": 3, "annotations": "x"}))
    assert read(tmp_path / "annotations" / "other.json").columns == ["images", "annotations"]


def test_a_folder_is_understood_and_its_parts_are_kept(tmp_path):
    many = {f"{p}/{p}{i}": [("cat", (10, 20, 30, 40))] for p, n in (("train", 12), ("val", 4)) for i in range(n)}
    inferred = infer(read(coco(tmp_path, many)), target="objects")
    assert (
        inferred["objects"].type == "boxes" and inferred["image"].type == "image" and inferred["split"].type == "skip"
    )
    recipe, _, data = check(str(tmp_path))
    assert recipe.task() == "object-detection" and list(recipe.inputs) == ["image"]
    assert len(data.splits.validation) == 4 and recipe.data["split"]["column"] == "split"


# -- bad files -----------------------------------------------------------------------------------------------------------
def faults(rows):
    return {q.raw.rsplit("/", 1)[-1]: q.reason_id for q in rows.quarantine}


def test_bad_annotations_of_coco_are_told(tmp_path):
    def change(part, value):
        if part == "train":
            value["images"].append({"id": 99, "file_name": "gone.png"})
            value["images"].append({"id": 10, "file_name": "b.png"})
            value["annotations"].append({"image_id": 11, "category_id": 5, "bbox": [1, 2, 3, 4]})
            value["annotations"].append({"image_id": 12345, "category_id": 3, "bbox": [1, 2, 3, 4]})
        else:
            value["annotations"][0]["bbox"] = [1, 2, 0, 4]

    rows = read(coco(tmp_path, change=change))
    assert faults(rows) == {"gone.png": "boxes.no_file", "b.png": "boxes.same_id", "c.png": "boxes.empty"}
    assert rows.rows_in == 6 and len(rows) == 2 and len(rows.quarantine) == 4
    assert any(q.reason_id == "boxes.no_category" and "cat, dog" in q.reason for q in rows.quarantine)
    assert [n.id for n in rows.notes if n.id == "boxes.lost"] == ["boxes.lost"]


def test_regions_that_are_passed_over(tmp_path):
    def change(part, value):
        value["annotations"][0]["iscrowd"] = 1

    rows = read(coco(tmp_path / "coco", change=change))
    crowds = {
        p: [r.crowd for r in plain(o)] for p, o in zip(*(rows.table[n].to_pylist() for n in ("image", "objects")))
    }
    assert crowds["train2017/a.png"] == [True, False]
    path = voc(tmp_path / "voc") / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1", 1))
    assert [r.crowd for r in plain(read(tmp_path / "voc").table["objects"][0].as_py())] == [True, False]


def test_images_of_which_nobody_knows(tmp_path):
    def change(part, value):
        if part == "val":
            del value["annotations"]

    rows = read(coco(tmp_path, change=change))
    assert [v is None for v in rows.table["objects"].to_pylist()] == [False, False, True, True]


def test_bad_xml_is_told(tmp_path):
    root = voc(tmp_path)
    (root / "Annotations" / "a.xml").write_text("<annotation><object>")
    (root / "Annotations" / "b.xml").write_text('<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>')
    text = (root / "Annotations" / "c.xml").read_text()
    (root / "Annotations" / "c.xml").write_text(text.replace("<xmin>1<", "<xmin>left<"))
    rows = read(root)
    assert [q.reason_id for q in rows.quarantine] == ["boxes.bad_xml", "boxes.bad_xml", "boxes.not_a_box"] and len(
        rows
    ) == 1


@pytest.mark.parametrize(
    ("line", "id"),
    [
        ("5 0.5 0.5 0.1 0.1", "boxes.no_category"),
        ("0.5 0.5 0.5 0.1 0.1", "boxes.no_category"),
        ("0 0.5 0.5 0.1", "boxes.yolo_line"),
        ("cat 0.5 0.5 0.1 0.1", "boxes.yolo_line"),
        ("0 0.5 0.5 nan 0.1", "boxes.not_a_box"),
        ("0 0.5 0.5 0 0.1", "boxes.empty"),
    ],
)
def test_bad_lines_of_yolo_are_told(tmp_path, line, id):
    root = yolo(tmp_path)
    (root / "labels" / "train" / "a.txt").write_text(line + "\n")
    assert faults(read(root)) == {"a.png": id}


def test_polygons_of_yolo_count_as_their_box(tmp_path):
    root = yolo(tmp_path)
    (root / "labels" / "train" / "a.txt").write_text("1 0.1 0.2 0.5 0.25 0.3 0.75\n")
    assert boxes_of(read(root))["a.png"] == [("dog", (10, 16, 40, 44))]


def test_where_nothing_is_right_it_is_an_error(tmp_path):
    def change(part, value):
        for one in value["annotations"]:
            one["bbox"] = [1, 2]
        value["images"] = [i for i in value["images"] if any(a["image_id"] == i["id"] for a in value["annotations"])]

    with pytest.raises(DataError, match="four finite numbers"):
        read(coco(tmp_path, change=change))


def test_other_folders_stay_what_they_were(tmp_path):
    photo(tmp_path / "cat" / "1.png")
    photo(tmp_path / "dog" / "2.png")
    (tmp_path / "notes.json").write_text('{"a": 1}')
    (tmp_path / "page.xml").write_text("<html/>")
    (tmp_path / "settings.yaml").write_text("names: {a: 1}")
    assert read(tmp_path).columns == ["image", "label"]
    with pytest.raises(DataError, match="folder"):
        read(tmp_path, format="coco")
