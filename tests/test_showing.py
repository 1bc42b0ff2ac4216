"""Answers drawn into pictures and videos, by a detector that sees a red rectangle without having learned anything."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from luban.columns.answering import answer
from luban.columns.base import Answer, make
from luban.columns.mask import painted, palette
from luban.data.sources import read
from luban.errors import DataError, RequestError, problem
from luban.predictions import predict_file
from luban.showing import VIDEOS, Pictures, checked, film, is_video

SIZE = (48, 64)


class Red:
    """An engine whose one candidate is the box around what is red."""

    def __init__(self, image, boxes):
        self.columns = {"photo": image, "objects": boxes}
        self.inputs, self.outputs = ("photo",), ("objects",)

    def run(self, arrays):
        out = np.zeros((arrays.size, 1, 5), np.float32)
        for row, x in zip(out, arrays.inputs["photo"][0]):
            y, across = np.nonzero((x[0] > 150) & (x[1] < 100))
            row[0] = [across.min(), y.min(), across.max() + 1, y.max() + 1, 4.0] if len(y) else [0, 0, 1, 1, -9.0]
        return {"objects": out}


def frame(x):
    picture = np.full((*SIZE, 3), 90, np.uint8)
    picture[10:26, x : x + 20] = (230, 20, 20)
    return picture


@pytest.fixture(scope="module")
def engine():
    image = make("photo", "image", {"shape": "pad"}).fit([frame(0)])
    column = make("objects", "boxes", {"of": "photo"}).beside({"photo": image})
    return Red(image, column.fit([[{"label": "ball", "box": [0, 0, 9, 9]}]], of=[frame(0)]))


@pytest.fixture
def clip(tmp_path):
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, SIZE[::-1])
    for i in range(20):
        writer.write(np.ascontiguousarray(frame(2 * i)[..., ::-1]))
    writer.release()
    return str(tmp_path / "clip.avi")


def test_pictures_of_the_answers(engine, tmp_path):
    for i in range(3):
        Image.fromarray(frame(10 * i)).save(tmp_path / f"p{i}.png")
    (tmp_path / "rows.csv").write_text("photo\np0.png\ngone.png\np2.png\n")
    rows, bad = predict_file(
        engine, read(tmp_path / "rows.csv"), tmp_path / "out.jsonl", chunk=2, draw=tmp_path / "drawn"
    )
    assert (rows, bad) == (3, 1)
    assert sorted(p.name for p in (tmp_path / "drawn").iterdir()) == ["00002-p0.jpg", "00004-p2.jpg"]
    told = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[2])
    assert told["objects"][0]["label"] == "ball" and told["objects"][0]["box"] == [20, 10, 20, 16]
    assert np.abs(np.asarray(Image.open(tmp_path / "drawn" / "00004-p2.jpg")).astype(int) - frame(20)).max() > 60


def test_a_video_gets_its_boxes(engine, clip, tmp_path):
    cv2 = pytest.importorskip("cv2")
    assert is_video(engine, clip)
    for ending in (".avi", ".mp4"):
        found = film(engine, clip, str(tmp_path / f"out{ending}"))
        assert found["frames"] == 20 and found["answered_per_second"] >= found["frames_per_second"] > 0
        reader = cv2.VideoCapture(str(tmp_path / f"out{ending}"))
        good, first = reader.read()
        reader.release()
        assert good and first.shape == (*SIZE, 3)
        blue = first[..., ::-1][9:27, 18:22].astype(int) - frame(0)[9:27, 18:22]
        assert np.abs(blue).max() > 50  # an edge of the rectangle
    assert not [p for p in tmp_path.iterdir() if ".tmp" in p.name]


class Redness(Red):
    """An engine that gives every pixel that is red the class 1, others the class 0."""

    def __init__(self, image, mask):
        super().__init__(image, mask)
        self.columns, self.outputs = {"photo": image, "mask": mask}, ("mask",)

    def run(self, arrays):
        x = arrays.inputs["photo"][0]
        red = (x[:, 0] > 150) & (x[:, 1] < 100)
        return {"mask": np.stack([~red, red], 1).astype(np.float32) * 9}


@pytest.fixture(scope="module")
def painter(engine):
    mask = make("mask", "mask", {"of": "photo", "labels": ["none", "ball"]}).beside({"photo": engine.columns["photo"]})
    return Redness(engine.columns["photo"], mask.supposed())


def test_masks_are_laid_over_pictures_and_said_below(painter, tmp_path):
    Image.fromarray(frame(10)).save(tmp_path / "p.png")
    (tmp_path / "rows.csv").write_text("photo\np.png\n")
    assert predict_file(painter, read(tmp_path / "rows.csv"), tmp_path / "out.jsonl", draw=tmp_path / "drawn") == (1, 0)
    shown = np.asarray(Image.open(tmp_path / "drawn" / "00002-p.jpg")).astype(int)
    height, width = SIZE[0] * 4, SIZE[1] * 4  # made larger, so that the letters can be read
    assert shown.shape[1] == width and height < shown.shape[0] < height + 40 and not shown.shape[0] % 2
    inside, beside = shown[18 * 4, 20 * 4], shown[18 * 4, 50 * 4]
    assert np.abs(inside - (np.array([230, 20, 20]) + palette()[1]) // 2).max() < 12 and np.abs(beside - 90).max() < 8
    below = shown[height:].reshape(-1, 3)
    assert (np.abs(below - palette()[1]).max(1) < 30).sum() > 40 and (below.min(1) > 240).mean() > 0.5


def test_a_video_gets_its_masks(painter, clip, tmp_path):
    cv2 = pytest.importorskip("cv2")
    for ending in (".avi", ".mp4"):
        assert film(painter, clip, str(tmp_path / f"out{ending}"))["frames"] == 20
        reader = cv2.VideoCapture(str(tmp_path / f"out{ending}"))
        frames = [frame[..., ::-1].astype(int) for good, frame in (reader.read() for _ in range(20)) if good]
        reader.release()
        assert len(frames) == 20 and frames[0].shape[1] == SIZE[1] * 4 and frames[0].shape[0] > SIZE[0] * 4
        assert np.abs(frames[10][18 * 4, 30 * 4] - (np.array([230, 20, 20]) + palette()[1]) // 2).max() < 40
    film(painter, clip, str(tmp_path / "out.jsonl"))
    told = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[3])
    assert 250 < painted(Answer(told["mask"], 1.0)).sum() < 400


def test_what_another_process_answered_is_drawn(painter):
    (row,) = answer(painter, [{"photo": frame(10)}])
    plain = Answer(row.answers["mask"].value, 0.9)
    assert (painted(plain) == painted(row.answers["mask"])).all() and painted(plain).sum() == 320


def test_a_line_for_each_frame(engine, clip, tmp_path):
    film(SimpleNamespace(engine=engine), clip, str(tmp_path / "out.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(20)) and lines[10]["second"] == 1.0
    lefts = [line["objects"][0]["box"][0] for line in lines]
    assert np.abs(np.array(lefts) - 2 * np.arange(20)).max() <= 2  # JPEG blurs edges


def test_what_cannot_be_drawn_is_told(engine, tmp_path):
    other = SimpleNamespace(columns={"y": SimpleNamespace(form="index")}, outputs=("y",), inputs=("photo",))
    with pytest.raises(RequestError, match="no boxes and no masks"):
        Pictures(other, tmp_path / "x")
    with pytest.raises(RequestError, match="mp4"):
        checked("out.gif")
    assert ".mp4" in str(problem("predict.draw_video", place="--draw", allowed=tuple(VIDEOS)))
    (tmp_path / "no.avi").write_bytes(b"RIFF....AVI nothing")
    with pytest.raises(DataError):
        film(engine, str(tmp_path / "no.avi"), "-")
