"""Pictures that strangers upload, through a real server: each gets its honest answer, and none much memory."""

import base64
import io
import resource
import subprocess
import sys
import zlib
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image

from luban.columns.base import make
from luban.data import images
from luban.errors import LubanError
from tests.serving import serving

PHOTOS = [np.full((8, 8, 3), 60 * i, np.uint8) for i in range(4)]


class Colour:
    """A photo in; out comes the mean of its red, of its upper left quarter, and of its lower right one, as one number each."""

    inputs, outputs = ("photo",), ("red", "corner", "end")

    def __init__(self):
        self.columns = {"photo": make("photo", "image", {}).fit(PHOTOS)}
        self.columns |= {n: make(n, "number", {"scale": "none"}).fit([0.0, 1.0]) for n in self.outputs}

    def run(self, arrays):
        x = arrays.inputs["photo"][0].astype(np.float32)  # (B, 3, 8, 8)
        parts = {"red": x[:, 0], "corner": x[..., :4, :4], "end": x[..., 4:, 4:]}
        return {n: p.reshape(len(x), -1).mean(1)[:, None] for n, p in parts.items()}


@pytest.fixture(scope="module")
def client():
    with serving(Colour()) as (_, client):
        yield client


def file(image, kind="PNG", **more) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


def asked(client, data: bytes):
    return client.post("/predict", json={"photo": base64.b64encode(data).decode()})


def answered(client, data: bytes) -> dict:
    reply = asked(client, data)
    assert reply.status_code == 200, reply.text
    return {n: a["value"] for n, a in reply.json()["rows"][0]["answers"].items()}


def half(mode="RGB", left=0, right=255) -> Image.Image:
    """The left half dark, the right one bright."""
    image = Image.new(mode, (40, 40), left)
    image.paste(right, (20, 0, 40, 40))
    return image


def turned(orientation: int) -> bytes:
    """Dark above, bright below, as a camera held otherwise writes it: what it saw is the same in each."""
    upright = half("RGB", (0, 0, 0), (255, 255, 255)).transpose(Image.Transpose.ROTATE_270)
    ways = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    raw, exif = upright.transpose(ways[orientation]) if orientation in ways else upright, Image.Exif()
    exif[0x0112] = orientation
    return file(raw, "JPEG", quality=95, exif=exif)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_orientation_is_heeded(client, orientation):
    found = answered(client, turned(orientation))
    assert found["corner"] < 12 and found["end"] > 240


@pytest.mark.parametrize(
    "said, kind", [(0, 3), (9, 3), (99, 3), (6, 2), (6, 7)]
)  # kinds of TIFF: 3 a number, 2 text, 7 bytes
def test_what_is_no_orientation_turns_nothing(said, kind):
    """Sides and pixels alike, so that boxes and masks lie where they should."""
    wide, exif = Image.new("RGB", (40, 20)), Image.Exif()
    exif[0x0112] = said
    data, tag = file(wide, "JPEG", exif=exif), b"\x12\x01\x03\x00"
    data = data.replace(tag, tag[:2] + bytes([kind, 0])).replace(tag[1::-1] + tag[:1:-1], tag[1::-1] + bytes([0, kind]))
    column = make("photo", "image", {"side": [20, 40]}).fit([np.zeros((20, 40, 3), np.uint8)])
    assert images.size_of(data) == (20, 40) and column.placement(data) == column.placement(file(wide, "JPEG"))
    assert np.array_equal(column.encode(data), column.encode(file(wide, "JPEG")))


def test_damaged_notes_of_a_camera_do_not_cost_the_picture():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = file(Image.new("RGB", (40, 20)), "JPEG", exif=exif)
    at = data.index(b"Exif") + 6
    column = make("photo", "image", {"side": 8}).fit([np.zeros((8, 8, 3), np.uint8)])
    assert column.encode(data[:at] + b"\xff" * 4 + data[at + 4 :]).shape == (3, 8, 8)


def test_kinds_of_pixels(client):
    grey = answered(client, file(half("L")))
    assert grey["corner"] < 12 and grey["end"] > 240 and 120 < grey["red"] < 135
    assert answered(client, file(half("1", 0, 1))) == grey
    deep = Image.fromarray(np.where(np.arange(40) < 20, 0, 65535).astype(np.uint16)[None].repeat(40, 0))
    assert answered(client, file(deep)) == grey
    palette = half("RGB", (0, 0, 0), (255, 255, 255)).convert("P")
    assert answered(client, file(palette)) == grey
    ink = half("CMYK", (0, 0, 0, 255), (0, 0, 0, 0))
    found = answered(client, file(ink, "JPEG", quality=95))
    assert found["corner"] < 8 and found["end"] > 247


def test_what_is_transparent_lies_on_white(client):
    clear = half("RGBA", (255, 0, 0, 255), (0, 0, 0, 0))
    found = answered(client, file(clear))
    assert found["red"] > 240 and found["end"] > 240 and 75 < found["corner"] < 100
    assert answered(client, file(Image.new("LA", (9, 9), (0, 0))))["red"] > 240


def test_an_animation_answers_with_its_first_frame(client):
    frames = [Image.new("RGB", (20, 20), (v, v, v)) for v in (0, 255, 255)]
    for kind in ("GIF", "PNG", "WEBP"):
        moving = file(frames[0], kind, save_all=True, append_images=frames[1:])
        assert answered(client, moving)["red"] < 12, kind


BAD = {
    "truncated png": lambda: file(Image.fromarray(noise(64)))[:-900],
    "truncated jpeg": lambda: file(Image.fromarray(noise(64)), "JPEG")[:900],
    "damaged png": lambda: flipped(file(Image.fromarray(noise(64)))),
    "a text": lambda: b"this is no picture at all, but long enough to be one" * 4,
    "nothing": lambda: b"",
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>' * 3,
    "encapsulated postscript": lambda: file(Image.fromarray(noise(64)), "EPS"),  # Pillow would start Ghostscript
    "sgi": lambda: file(Image.fromarray(noise(64)), "SGI"),
    "bomb": lambda: bomb(12_000),
    "small file, many pixels": lambda: bomb(4_100),
}


HEADS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")


def stumbles(trials: int = 60) -> dict[str, str]:
    """What else than a LubanError comes of pictures with a few bytes of their heads changed, by format."""
    column = make("photo", "image", {"side": 16}).fit([np.full((8, 8, 3), 60 * i, np.uint8) for i in range(4)])
    column, random, found = column.guarded(), np.random.default_rng(0), {}
    for kind in HEADS:
        whole = file(Image.fromarray(noise(24)), kind)
        for _ in range(trials):
            data = bytearray(whole)
            for _ in range(random.integers(1, 6)):
                data[random.integers(min(len(data), 160))] = random.integers(256)
            for read in (column.encode, column.placement):
                try:
                    read(bytes(data))
                except LubanError:
                    pass
                except Exception as e:
                    found[kind] = type(e).__name__
    return found


def test_a_damaged_head_is_one_sentence_whatever_the_reader_stumbles_over():
    assert stumbles() == {}


def test_control_readers_do_stumble(monkeypatch):
    """Planted: what Pillow raises is passed on."""
    monkeypatch.setattr(images, "decoding", nullcontext)
    assert {"ValueError", "TypeError"} & set(stumbles().values())


def noise(side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(255 - b for b in data[middle : middle + 40]) + data[middle + 40 :]


def bomb(side: int) -> bytes:
    """A PNG of one colour, RGBA, written without holding its pixels."""
    packed, squeeze = [], zlib.compressobj(9)
    row = b"\0" * (1 + 4 * side)
    for _ in range(side):
        packed.append(squeeze.compress(row))
    packed.append(squeeze.flush())

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + b"\x08\x06\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"".join(packed)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_is_told(client, name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reply = asked(client, BAD[name]())
    assert 400 <= reply.status_code < 500 and "photo" in reply.text, reply.text
    assert len(reply.text) < 2000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KB
    assert answered(client, file(half("L")))["corner"] < 12


def test_how_many_pixels_is_a_setting_and_the_sentence_names_it():
    small = file(half("L"))
    with serving(Colour(), pixels=1_000) as (_, client):
        reply = asked(client, small)
        assert reply.status_code == 422 and "--pixels" in reply.text and "1000" in reply.text
    with serving(Colour(), pixels=17_000_000) as (_, client):
        assert asked(client, bomb(4_100)).status_code == 200
    with serving(Colour()) as (_, client):
        reply = asked(client, bomb(4_100))
        assert reply.status_code == 422 and "16000000" in reply.text and "--pixels" in reply.text


MEMORY = """
import resource, sys
from luban.columns.base import make
from tests.test_pictures_served import PHOTOS, bomb, file
from PIL import Image
column = make("photo", "image", {}).fit(PHOTOS).guarded()
column.encode(file(Image.new("RGBA", (80, 70))))
data = bomb(4000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
column.encode(data)
print(len(data), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_the_largest_picture_that_is_read_costs_little_memory():
    """64 million bytes of pixels out of a file of 62 KB: below half of what it once took."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    size, megabytes = map(int, done.stdout.split())
    assert size < 70_000 and megabytes < 350
