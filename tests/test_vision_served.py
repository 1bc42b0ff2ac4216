"""Models of pictures behind HTTP: boxes in the pixels of the picture that was sent, a mask of its size, a caption; each as OpenAPI says."""

import base64
import io
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from PIL import Image

import luban
from tests import scenes
from tests.serving import serving

COLOURS = {"dark": 40, "bright": 220}


def sent(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def enlarged(pixels: np.ndarray, by: int = 5) -> np.ndarray:
    """The upper three quarters of a picture, `by` times as large: another shape and size than the network's."""
    return pixels[: len(pixels) * 3 // 4].repeat(by, 0).repeat(by, 1)


def trained(recipe: dict) -> luban.Bundle:
    return luban.train(recipe, out=Path(mkdtemp(prefix="luban-served-")) / "model", evaluate=False)


@cache
def detector():
    """It has hardly learned; its surest boxes are told all the same."""
    folder = Path(mkdtemp(prefix="luban-served-"))
    recipe = scenes.recipe(folder / "rows.jsonl", "fcos", count=40, side=32, width=4, epochs=1)
    return trained(recipe | {"outputs": {"objects": {"boxes": {"score": 0.0, "most": 5}}}})


def table(kind: str, told: list) -> str:
    """Forty pictures, half dark and half bright, their left or their right half more so, and what is told of each."""
    folder = Path(mkdtemp(prefix="luban-served-"))
    lines = [f"image,{kind}"]
    for i in range(40):
        Image.fromarray(picture(i)).save(folder / f"{i}.png")
        if kind == "mask":
            Image.fromarray(told[i]).save(folder / f"m{i}.png")
        lines.append(f"{i}.png,{f'm{i}.png' if kind == 'mask' else told[i]}")
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "rows.csv")


def picture(i: int) -> np.ndarray:
    pixels = np.full((16, 16, 3), 128, np.uint8)
    pixels[:, 8 * (i % 2) :][:, :8] = COLOURS["bright" if i % 4 > 1 else "dark"]
    return pixels


@cache
def painter():
    masks = [np.uint8(picture(i)[..., 0] != 128) for i in range(40)]
    return trained({
        "luban": 1,
        "data": {"rows": table("mask", masks)},
        "inputs": {"image": {"image": {"side": 16}}},
        "outputs": {"mask": {"mask": {"labels": ["grey", "other"]}}},
        "model": {"image": {"cnn": {"channels": [8, 16]}}, "mask": {"unet": {"width": 8}}},
        "stages": [{"train": {"epochs": 4, "batch": 8, "rate": 0.01}}],
    })  # fmt: skip


@cache
def teller():
    told = [f"{'bright' if i % 4 > 1 else 'dark'} on the {'right' if i % 2 else 'left'}" for i in range(40)]
    return trained({
        "luban": 1,
        "data": {"rows": table("caption", told)},
        "inputs": {"image": {"image": {"flip": False}}},
        "outputs": {"caption": "text"},
        "model": {"image": {"cnn": {"channels": [8], "dense": []}}, "caption": {"llama": {"width": 16, "layers": 1, "heads": 2}}},
        "stages": [{"train": {"epochs": 25, "batch": 8, "optimizer": "muon", "rate": 0.02}}],
    })  # fmt: skip


def asked(client, **row):
    reply = client.post("/predict", json=row)
    assert reply.status_code == 200, reply.text
    (found,) = reply.json()["rows"]
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert not misfits(found, schemas["Answers"]["properties"]["rows"]["items"]["oneOf"][0])
    return found["answers"]


def misfits(value, schema, place="answer") -> list[str]:
    """Where a value is not as a JSON Schema says: types, lists, objects, ends; as much of it as answers need."""
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    found = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}.get(
        type(value), "number"
    )
    wrong = [] if not kinds or found in kinds else [f"{place}: {found}, not {kinds}"]
    if isinstance(value, list):
        wrong += [m for i, v in enumerate(value) for m in misfits(v, schema.get("items", {}), f"{place}[{i}]")]
    if isinstance(value, dict):
        wrong += [f"{place}.{k}: lacking" for k in schema.get("required", ()) if k not in value]
        known = schema.get("properties", {})
        wrong += [m for k, v in value.items() for m in misfits(v, known.get(k, {}), f"{place}.{k}")]
    if isinstance(value, (int, float)) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        wrong.append(f"{place}: {value} beyond its end")
    return wrong


def test_boxes_are_in_the_pixels_of_the_picture_that_was_sent():
    model = detector()
    small = scenes.scene(np.random.default_rng(3), side=32)[0]
    image = enlarged(small)  # 120 x 160 pixels
    with serving(model) as (_, client):
        answer = asked(client, image=sent(image))["objects"]
        (again,) = asked(client, image="data:image/png;base64," + sent(image))["objects"]["value"][:1]
    boxes = np.array([found["box"] for found in answer["value"]])
    assert len(boxes) == 5 and again == answer["value"][0] and answer["probability"] == again["score"]
    corners = boxes[:, :2] + boxes[:, 2:]
    assert (boxes >= 0).all() and (corners <= [160.001, 120.001]).all() and corners.max() > 64
    assert answer["value"] == model.predict([{"image": sent(image)}])[0]["objects"]


def test_control_boxes_in_the_pixels_of_the_network_are_told_apart(monkeypatch):
    """Planted fault: a server that forgets whose boxes they are."""
    model, image = detector(), enlarged(scenes.scene(np.random.default_rng(3), side=32)[0])
    right = model.predict([{"image": sent(image)}])[0]["objects"]
    column = type(model.columns["objects"])
    monkeypatch.setattr(column, "decode_all", lambda self, array, mask=None, of=None: [self.decode(a) for a in array])
    with serving(model) as (_, client):
        wrong = asked(client, image=sent(image))["objects"]["value"]
    assert wrong != right and max(w["box"][0] + w["box"][2] for w in wrong) <= 32.001


@pytest.mark.slow
def test_an_exported_detector_is_served_alike(tmp_path):
    pytest.importorskip("onnxruntime")
    model, image = detector(), enlarged(scenes.scene(np.random.default_rng(3), side=32)[0])
    path = model.export("onnx", out=tmp_path / "d.onnx", data=scenes.rows(6, side=32))
    with serving(path) as (_, client):
        found = asked(client, image=sent(image))["objects"]["value"]
    expected = model.predict([{"image": sent(image)}])[0]["objects"]
    assert [f["label"] for f in found] == [e["label"] for e in expected]
    assert np.allclose([f["box"] for f in found], [e["box"] for e in expected], atol=0.1)


def test_a_mask_has_the_size_of_the_picture_that_was_sent():
    image = enlarged(picture(0))  # 60 x 80
    with serving(painter()) as (_, client):
        answer = asked(client, image=sent(image))["mask"]
    classes = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["value"]))))
    assert classes.shape == (60, 80) and 0 <= answer["probability"] <= 1
    assert answer["shares"] == {
        k: pytest.approx((classes == i).mean(), abs=1e-6) for i, k in enumerate(("grey", "other"))
    }
    assert answer["value"] == painter().predict([{"image": sent(image)}])[0]["mask"]


def test_a_picture_is_told_in_words():
    model, image = teller(), sent(picture(2))
    with serving(model) as (_, client):
        answer = asked(client, image=image)["caption"]
        assert answer["value"] == model.predict([{"image": image}])[0]["caption"] == "bright on the left"
        asked_of = {"model": client.get("/v1/models").json()["data"][0]["id"], "prompt": image, "temperature": 0}
        reply = client.post("/v1/completions", json=asked_of)
        assert reply.status_code == 200 and reply.json()["choices"][0]["text"] == answer["value"], reply.text
        reply = client.post("/v1/completions", json=asked_of | {"prompt": "a cat"})
        assert reply.status_code == 400 and "image" in reply.json()["error"]["message"]


@pytest.mark.parametrize("made", [detector, painter, teller])
def test_what_is_no_picture_is_said_and_no_file_is_opened(made, tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "there.png")
    with serving(made()) as (_, client):
        for value in (str(tmp_path / "there.png"), base64.b64encode(b"GIF89a").decode(), 3):
            reply = client.post("/predict", json={"rows": [{"image": value}, {"image": sent(picture(1))}]}).json()
            first, second = reply["rows"]
            assert set(first) == {"error"} and first["error"]["message"] and set(second) == {"answers"}


def test_control_a_misfit_is_seen():
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "array", "items": {"type": "string"}}}}
    assert not misfits({"a": ["x"]}, schema)
    assert misfits({"a": [{}]}, schema) and misfits({}, schema) and misfits({"a": "x"}, schema)
