"""One picture or one video given to `predict` instead of a table."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from luban.cli import main
from luban.columns.base import make
from luban.columns.lone import lone
from luban.errors import DataError
from luban.predictions import predict_file

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)


class Bright:
    """An engine that tells the mean of what it is shown; its inputs by name and type."""

    outputs = ("light",)

    def __init__(self, **inputs):
        values = {"image": [PHOTO], "video": [np.stack([PHOTO] * 3)], "text": ["a", "b"], "noise": [0]}
        self.columns = {n: make(n, t, {}).fit(values[t]) for n, t in inputs.items()}
        self.columns["light"] = make("light", "number", {"scale": "none"}).fit([0.0, 255.0])
        self.inputs = tuple(inputs)

    def run(self, arrays):
        x = arrays.inputs[self.inputs[0]][0]
        return {"light": x.reshape(len(x), -1).mean(1, keepdims=True).astype(np.float32)}


@pytest.fixture
def files(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "photo.PNG")
    Image.fromarray(PHOTO).save(tmp_path / "photo.jpg")
    frames = [Image.fromarray(PHOTO // (i + 1)) for i in range(3)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "call.wav").write_bytes(b"RIFF\x24\0\0\0WAVEfmt ")
    (tmp_path / "clip.avi").write_bytes(b"RIFF\x24\0\0\0AVI LIST")
    return tmp_path


def told(engine, path, tmp_path):
    predict_file(engine, path, tmp_path / "out.jsonl")
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


def test_one_file_is_one_row(files, tmp_path, monkeypatch):
    monkeypatch.chdir(files)  # named from here, and by its whole path
    for engine, name in (
        (Bright(photo="image"), "photo.PNG"),
        (Bright(photo="image"), str(files / "photo.jpg")),
        (Bright(photo="image", seed="noise"), "photo.PNG"),
        (Bright(clip="video"), "clip.gif"),
    ):
        (row,) = told(engine, name, tmp_path)
        assert "error" not in row and (abs(row["light"] - PHOTO.mean()) < 3 or name == "clip.gif")


def test_a_damaged_file_is_a_row_with_an_error(files, tmp_path):
    (files / "photo.jpg").write_bytes((files / "photo.jpg").read_bytes()[:200])
    (row,) = told(Bright(photo="image"), files / "photo.jpg", tmp_path)
    assert "photo.jpg" in row["error"]


@pytest.mark.parametrize(
    ("inputs", "name", "wants"),
    [
        ({"note": "text"}, "photo.jpg", "note (text)"),
        ({"photo": "image", "note": "text"}, "photo.jpg", "photo (image), note (text)"),
        ({"clip": "video"}, "photo.jpg", "clip (video)"),
        ({"photo": "image"}, "call.wav", "photo (image)"),
        ({"clip": "video"}, "call.wav", "clip (video)"),
        ({"note": "text"}, "clip.avi", "note (text)"),
    ],
)
def test_a_model_that_reads_something_else_says_what(inputs, name, wants, files, tmp_path):
    with pytest.raises(DataError) as e:
        told(Bright(**inputs), files / name, tmp_path)
    said = str(e.value)
    assert e.value.id == "predict.lone_file" and wants in said and name in said and len(said.splitlines()) == 1


def test_tables_and_folders_are_none_of_it(files):
    engine = Bright(photo="image")
    (files / "rows.csv").write_text("photo\nphoto.jpg\n")
    for source in (files / "rows.csv", files, "-", "digits", files / "nowhere.jpg", [{"photo": PHOTO}]):
        assert lone(engine.columns, engine.inputs, source) is None


def test_a_video_is_one_row_of_a_model_of_videos_and_many_of_one_of_pictures(files, monkeypatch, capsys):
    """The kind of `--out` is told from the model, too: a table of one row, or a drawn video."""
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(files / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (8, 8))
    for _ in range(3):
        writer.write(PHOTO)
    writer.release()
    monkeypatch.setattr("luban.requests.saved", lambda folder: None)
    video, out = str(files / "clip.avi"), files / "out"
    for engine, ending, lines in (
        (Bright(clip="video"), ".csv", 2),
        (Bright(clip="video"), ".jsonl", 1),
        (Bright(photo="image"), ".jsonl", 3),
    ):
        monkeypatch.setattr("luban.cli._answering", lambda path, engine=engine: engine)
        assert main(["predict", "m", video, "--out", f"{out}{ending}", "--overwrite"]) == 0, capsys.readouterr().err
        found = (files / f"out{ending}").read_text().splitlines()
        assert len(found) == lines and "error" not in found[-1]
    assert main(["predict", "m", video, "--out", str(out) + ".csv", "--overwrite"]) == 2  # frames are no table
    assert main(["predict", "m", video, "--out", str(out) + ".xlsx"]) == 2
    shutil.copy(video, files / "other.ogv")
    assert main(["predict", "m", str(files / "other.ogv")]) == 2
