"""Sample sets of pictures: scenes whose boxes and masks are exact, whose test drawings and photographs were never trained on."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from luban.data.samples import SAMPLES, pictures


def drawing(seed, size=(90, 70)):
    """A disc of one colour, transparent around it."""
    y, x = np.mgrid[: size[1], : size[0]]
    inside = ((x / size[0] - 0.5) ** 2 + (y / size[1] - 0.5) ** 2) < 0.2
    colour = np.random.default_rng(seed).integers(0, 256, 3)
    pixels = np.zeros((size[1], size[0], 4), np.uint8)
    pixels[inside] = [*colour, 255]
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def stock():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8))
    return pictures.Stock([photo], [[drawing(10 * k + i) for i in range(3)] for k in range(5)])


def test_boxes_are_those_of_the_mask(stock):
    names = list(pictures.OBJECTS)
    counts = set()
    for i in range(30):
        picture, objects, mask = pictures.scene(stock, np.random.default_rng(i))
        pixels = np.asarray(mask)
        assert picture.size == mask.size and set(picture.size) <= set(pictures.SIDES)
        assert {names[k - 1] for k in np.unique(pixels) if k} == {o["label"] for o in objects}
        for k, name in enumerate(names, 1):
            covered = np.zeros_like(pixels, bool)
            for o in objects:
                x, y, w, h = o["box"]
                assert x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= picture.width and y + h <= picture.height
                if o["label"] == name:
                    covered[y : y + h, x : x + w] = True
                    inside = pixels[y : y + h, x : x + w] == k
                    assert inside.any(0)[[0, -1]].all() and inside.any(1)[[0, -1]].all()  # a pixel at every edge
            assert covered[pixels == k].all()
        counts.add(len(objects))
    assert counts >= {1, 2, 3, 4, 5} and max(counts) <= 6


def test_a_scene_is_a_function_of_its_number(stock):
    one, other, third = (pictures.scene(stock, np.random.default_rng([0, n])) for n in (7, 7, 8))
    assert one[1] == other[1] and one[0].tobytes() == other[0].tobytes() and one[0].tobytes() != third[0].tobytes()


def test_parts_have_nothing_in_common():
    things = list(range(53))
    parts = [pictures._share(things, part) for part in range(3)]
    assert sorted(t for part in parts for t in part) == things and all(parts)


def packages(folder):
    """Drawings and photographs as the packages have them, with what is passed over: damaged, blank, twice, a link."""
    members = {}
    for k, (kind, below) in enumerate(pictures.OBJECTS.items()):
        for i in range(12):
            members[f"./{pictures.DRAWINGS}{below}{kind.replace(' ', '_')}_{i}.png"] = drawing(
                100 * k + i, (60 + 5 * i, 70)
            )
    files = {name: pictures._file(image, "PNG") for name, image in members.items()}
    first = next(iter(files))
    files[f"./{pictures.DRAWINGS}animals/broken.png"] = files[first][:100]
    files[f"./{pictures.DRAWINGS}animals/mammals/again.png"] = files[
        f"./{pictures.DRAWINGS}animals/mammals/mammal_3.png"
    ]
    files[f"./{pictures.DRAWINGS}animals/blank.png"] = pictures._file(Image.new("RGBA", (40, 40)), "PNG")
    files[f"./{pictures.DRAWINGS}animals/notes.txt"] = b"no drawing"
    photo = pictures._file(Image.new("RGB", (300, 260), "green"), "JPEG")
    files |= {f"./{below}{name}": photo for below, names in pictures.PHOTOS.items() for name in names}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def offline(tmp_path, monkeypatch):
    data = packages(tmp_path)
    monkeypatch.setattr(pictures.clients, "download", lambda *_: tmp_path)
    monkeypatch.setattr(pictures.clients, "deb_data", lambda *_: data)


def test_clip_art_is_a_folder_a_kind(offline, tmp_path):
    files = dict(pictures.clip_art(SAMPLES["clip-art"], tmp_path))
    kinds = [name.split("/")[0] for name in files]
    assert kinds.count("animals") == 12 and kinds.count("food") == 12 and kinds.count("recreation") == 12
    image = Image.open(io.BytesIO(next(iter(files.values()))))
    assert image.mode == "RGB" and image.getpixel((0, 0)) == (255, 255, 255)


def test_scenes_have_a_line_each(offline, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "PARTS", {"train": 4, "validation": 1, "test": 2})
    monkeypatch.setattr(pictures, "_cut_outs", lambda found: [[d for n, d in all_of if n.startswith(b)] for all_of in [list(found)] for b in pictures.OBJECTS.values()])  # fmt: skip
    files = dict(pictures.scenes(SAMPLES["clip-art-scenes"], tmp_path))
    lines = [json.loads(line) for line in files["scenes.jsonl"].splitlines()]
    assert [line["split"] for line in lines] == ["train"] * 4 + ["validation"] + ["test"] * 2
    for line in lines:
        image, mask = (Image.open(io.BytesIO(files[line[k]])) for k in ("image", "mask"))
        assert image.size == mask.size and line["objects"]


def test_what_looks_alike_is_one_drawing():
    one, same, thin = drawing(1), drawing(1), Image.new("RGBA", (90, 70))
    thin.paste((0, 0, 0, 255), (0, 0, 90, 2))
    thin.paste((0, 0, 0, 255), (0, 68, 90, 70))
    found = pictures._cut_outs(
        iter([("food/fruit/a.png", one), ("food/fruit/b.png", same), ("food/fruit/c.png", thin)])
    )
    assert [len(kind) for kind in found] == [0, 0, 1, 0, 0]
