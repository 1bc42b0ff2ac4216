"""Two sets of drawings: clip-art by kind (`clip-art`), and scenes composited from clip-art on real photographs (`clip-art-scenes`).

Drawings are those of the Open Clip Art Library (public domain), photographs those that OpenCV and scikit-image ship with their
documentation. Scenes have exact boxes and masks, because they are made here: no drawing and no photograph of a test scene is in a
training scene. A function of the packages and a seed alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luban.data.samples import clients
from luban.data.samples.catalogue import Sample
from luban.data.samples.content import Content

DRAWINGS = "usr/share/openclipart/png/"
LARGEST = 16_000_000  # pixels of a drawing; some have 160 million
THUMBNAIL = 224
MOST = 400  # drawings of a kind
KINDS = ("animals", "computer", "food", "people", "recreation", "shapes", "signs_and_symbols", "transportation")

OBJECTS = {
    "card": "recreation/games/cards/",
    "flag": "signs_and_symbols/flags/",
    "fruit": "food/fruit/",
    "mammal": "animals/mammals/",
    "sign": "transportation/roadsigns/",
}
EACH = 200  # drawings of a class of the scenes
PHOTOS = {
    "usr/share/doc/opencv-doc/examples/": [
        "alphamat/input_images/plant.jpg",
        "data/aero1.jpg",
        "data/aloeL.jpg",
        "data/board.jpg",
        "data/box_in_scene.png",
        "data/building.jpg",
        "data/butterfly.jpg",
        "data/graf1.png",
        "data/home.jpg",
        "data/left.jpg",
        "data/left12.jpg",
        "data/leuvenA.jpg",
        "data/licenseplate_motion.jpg",
        "data/messi5.jpg",
        "data/rubberwhale1.png",
        "data/smarties.png",
        "data/stuff.jpg",
        "data/sudoku.png",
        "hfs/data/000.jpg",
        "text/scenetext03.jpg",
        "text/scenetext04.jpg",
        "text/scenetext05.jpg",
        "text/scenetext06.jpg",
    ],
    "usr/share/doc/opencv-doc/opencv4/html/": [
        "astra_color.jpg",
        "bus_det.jpg",
        "choriginal.jpg",
        "corridor_fld.jpg",
        "detect_test1.jpg",
        "handSrc.jpg",
        "ldr_robertson.jpg",
        "newspaper.jpg",
        "pexels_double_decker_bus.jpg",
        "realsense.jpg",
        "retina_TreeHdr_small.jpg",
        "space_shuttle.jpg",
        "studentsSample_input.jpg",
    ],
    "usr/lib/python3/dist-packages/skimage/data/": [
        "brick.png",
        "camera.png",
        "coffee.png",
        "coins.png",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "moon.png",
        "motorcycle_left.png",
        "retina.jpg",
        "rocket.jpg",
    ],
}
PARTS = {"train": 3000, "validation": 300, "test": 400}
SIDES = (192, 192, 224, 256)
SEED = 0


# ---- drawings


def clip_art(sample: Sample, work: Path) -> Content:
    """KIND/NAME.png, at most 224 pixels wide and high, transparency on white, each drawing once."""
    from PIL import Image

    seen: set[bytes] = set()
    counts = dict.fromkeys(KINDS, 0)
    wanted = lambda name: counts[name.split("/", 1)[0]] < MOST  # noqa: E731
    for name, drawing in _drawings(sample, work, tuple(f"{k}/" for k in KINDS), THUMBNAIL, wanted):
        kind = name.split("/", 1)[0]
        white = Image.alpha_composite(Image.new("RGBA", drawing.size, (255, 255, 255, 255)), drawing).convert("RGB")
        digest = hashlib.sha256(white.tobytes()).digest()
        blank = white.getextrema() == ((255, 255),) * 3
        if digest in seen or blank:
            continue
        seen.add(digest)
        counts[kind] += 1
        yield f"{kind}/{name.split('/', 1)[1].replace('/', '-')}", _file(white, "PNG")


def _drawings(
    sample: Sample, work: Path, below: tuple[str, ...], side: int, wanted: Callable[[str], bool] = lambda _: True
) -> Iterator[tuple[str, Any]]:
    """Names and RGBA pictures of drawings, made smaller; those that cannot be read, or are too large, are passed over.

    In an order that has nothing to do with their names, so that the first ones are any ones.
    """
    from PIL import Image

    data = clients.deb_data(clients.download(sample, sample.packages[0], work), sample)
    members = clients.tar_members(data, DRAWINGS, sample)
    found = {name: content for name, content in members if name.startswith(below) and name.endswith(".png")}
    for name in sorted(found, key=_anyhow):
        if not wanted(name):
            continue
        try:
            with _quiet():
                opened = Image.open(io.BytesIO(found[name]))
            if opened.width * opened.height > LARGEST:
                continue
            drawing = opened.convert("RGBA")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue
        drawing.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
        yield name, drawing


def _anyhow(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow warns of sizes that are refused here anyway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _file(image: Any, kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


# ---- scenes


@dataclass(frozen=True)
class Stock:
    """What the scenes of one part are made from: photographs, and drawings of each class."""

    photos: list[Any]
    drawings: list[list[Any]]


def scenes(sample: Sample, work: Path) -> Content:
    """scenes.jsonl with image, objects, mask and split; images/N.jpg; masks/N.png, whose pixels are class numbers from 1, 0 for none."""
    drawings = _cut_outs(_drawings(sample, work, tuple(OBJECTS.values()), 256))
    photos = _photos(sample, work)
    lines, number = [], 0
    for part, (name, count) in enumerate(PARTS.items()):
        stock = Stock(_share(photos, part), [_share(d, part) for d in drawings])
        for _ in range(count):
            picture, objects, mask = scene(stock, np.random.default_rng([SEED, number]))
            where = {"image": f"images/{number:05}.jpg", "mask": f"masks/{number:05}.png"}
            yield where["image"], _file(picture, "JPEG", quality=92)
            yield where["mask"], _file(mask, "PNG")
            lines.append({"image": where["image"], "objects": objects, "mask": where["mask"], "split": name})
            number += 1
    yield "scenes.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode()


def _share(things: list[Any], part: int) -> list[Any]:
    """What belongs to a part: of ten, the first two to test, the third to validation, the rest to training."""
    return [t for i, t in enumerate(things) if (2, 2, 1, 0, 0, 0, 0, 0, 0, 0)[i % 10] == part]


def _cut_outs(drawings: Iterator[tuple[str, Any]]) -> list[list[Any]]:
    """Per class its distinct drawings, cut to what is opaque; those that are little more than lines, or whole rectangles of nothing, go."""
    found: list[list[Any]] = [[] for _ in OBJECTS]
    looks: list[np.ndarray] = []
    for name, drawing in drawings:
        kind = next(i for i, below in enumerate(OBJECTS.values()) if name.startswith(below))
        box = drawing.getchannel("A").point(lambda a: 255 if a >= 128 else 0).getbbox()
        cut = drawing.crop(box) if box else drawing
        alpha = np.asarray(cut.getchannel("A")) >= 128
        if box is None or min(cut.size) < 24 or alpha.mean() < 0.3 or len(found[kind]) >= EACH:
            continue
        look = np.asarray(cut.resize((16, 16)).convert("RGBA"), np.float32)
        if any(np.abs(look - other).mean() < 4 for other in looks):
            continue
        looks.append(look)
        found[kind].append(cut)
    return found


def _photos(sample: Sample, work: Path) -> list[Any]:
    from PIL import Image

    wanted = {f"{below}{name}" for below, names in PHOTOS.items() for name in names}
    found = {}
    for package in sample.packages[1:]:
        data = clients.deb_data(clients.download(sample, package, work), sample)
        for name, content in clients.tar_members(data, "usr/", sample):
            if f"usr/{name}" in wanted:
                found[name] = Image.open(io.BytesIO(content)).convert("RGB")
    return [found[name] for name in sorted(found, key=_anyhow)]


def scene(stock: Stock, random: np.random.Generator) -> tuple[Any, list[dict[str, Any]], Any]:
    """A picture of one to six drawings on a part of a photograph; its boxes, of what is seen of each; its mask."""
    from PIL import Image

    width, height = (int(random.choice(SIDES)) for _ in range(2))
    picture = _ground(stock.photos[random.integers(len(stock.photos))], (width, height), random)
    owner = np.zeros((height, width), np.uint8)  # which object each pixel belongs to, from 1
    kinds, whole = [], []
    for _ in range(int(random.integers(1, 7))):
        kind = int(random.integers(len(stock.drawings)))
        drawing = _turned(stock.drawings[kind][random.integers(len(stock.drawings[kind]))], random)
        for _ in range(10):
            left, top = (int(random.integers(-s // 5, n - s + s // 5 + 1)) for n, s in zip((width, height), drawing.size))  # fmt: skip
            alpha = Image.new("L", (width, height))
            alpha.paste(drawing.getchannel("A"), (left, top))
            mine = np.asarray(alpha) >= 128
            hidden = np.bincount(owner[mine], minlength=len(whole) + 1)[1:]
            seen = np.array([(owner == i + 1).sum() for i in range(len(whole))]) - hidden
            if mine.sum() >= 100 and all(s >= 0.6 * w for s, w in zip(seen, whole)):
                picture.paste(drawing, (left, top), drawing)
                whole.append(int(mine.sum()))
                kinds.append(kind)
                owner[mine] = len(whole)
                break
    names, objects = list(OBJECTS), []
    for i, kind in enumerate(kinds):
        rows, columns = np.nonzero(owner == i + 1)
        x, y = int(columns.min()), int(rows.min())
        objects.append({"label": names[kind], "box": [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]})
    mask = np.concatenate([[0], np.array(kinds, np.uint8) + 1]).astype(np.uint8)[owner]
    return picture, objects, Image.fromarray(mask)


def _ground(photo: Any, size: tuple[int, int], random: np.random.Generator) -> Any:
    """A part of a photograph of the wanted shape, mirrored half of the time, lighter or darker."""
    from PIL import Image, ImageEnhance, ImageOps

    fit = min(photo.width / size[0], photo.height / size[1])
    share = random.uniform(0.5, 1.0)
    wide, high = size[0] * fit * share, size[1] * fit * share
    left, top = random.uniform(0, photo.width - wide), random.uniform(0, photo.height - high)
    ground = photo.resize(size, Image.Resampling.BILINEAR, box=(left, top, left + wide, top + high), reducing_gap=2.0)
    ground = ImageOps.mirror(ground) if random.random() < 0.5 else ground
    return ImageEnhance.Brightness(ground).enhance(random.uniform(0.7, 1.2))


def _turned(drawing: Any, random: np.random.Generator) -> Any:
    """A drawing of 32 to 112 pixels, mirrored half of the time, turned by up to 30 degrees, lighter or darker."""
    from PIL import Image, ImageEnhance, ImageOps

    side = float(np.exp(random.uniform(np.log(32), np.log(112))))
    ratio = side / max(drawing.size)
    size = tuple(max(6, round(n * ratio)) for n in drawing.size)
    done = drawing.resize(size, Image.Resampling.LANCZOS)
    done = ImageOps.mirror(done) if random.random() < 0.5 else done
    alpha = done.getchannel("A")
    done = ImageEnhance.Brightness(done.convert("RGB")).enhance(random.uniform(0.7, 1.2))
    done.putalpha(alpha)
    return done.rotate(random.uniform(-30, 30), Image.Resampling.BICUBIC, expand=True)


CONTENT = {"clip-art": clip_art, "clip-art-scenes": scenes}
