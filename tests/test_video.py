"""Short clips: files, animations, folders and arrays become frames; what moves where is learned, shown and served."""

import base64
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import luban
from luban.columns import clips
from luban.columns.video import Video
from luban.errors import DataError, MissingExtra, RecipeError

SIDE, LENGTH = 12, 6


def clip(rng: np.random.Generator, way: str) -> np.ndarray:
    """A bright square that goes left or right, (T, H, W, 3); every single frame could be of either kind."""
    frames = rng.integers(0, 60, (LENGTH, SIDE, SIDE, 3), dtype=np.uint8)
    row = rng.integers(0, SIDE - 3)
    for t in range(LENGTH):
        at = t if way == "right" else LENGTH - 1 - t
        frames[t, row : row + 3, at : at + 3] = (230, 220, 90)
    return frames


def gif(frames: np.ndarray) -> bytes:
    first, *others = [Image.fromarray(f) for f in frames]
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=others)
    return file.getvalue()


def folder(root: Path, count: int = 160) -> Path:
    rng = np.random.default_rng(0)
    for i in range(count):
        way = ("left", "right")[i % 2]
        (root / way).mkdir(exist_ok=True, parents=True)
        (root / way / f"{i}.gif").write_bytes(gif(clip(rng, way)))
    lines = [f"{way}/{i}.gif,{way}" for i in range(count) for way in [("left", "right")[i % 2]]]
    (root / "clips.csv").write_text("\n".join(["clip,way", *lines]) + "\n")
    return root / "clips.csv"


def recipe(rows: Path, over: str) -> dict:
    return {
        "luban": 1,
        "data": {"rows": str(rows), "split": {"validation": 0.15, "test": 0.15}},
        "inputs": {"clip": {"video": {"frames": 4}}},
        "outputs": {"way": "category"},
        "model": {"clip": {"frames": {"each": {"cnn": {"channels": [8, 16], "dense": [16]}}, "over": over}}},
        "stages": [{"train": {"epochs": 12, "batch": 16, "rate": 0.005}}],
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    return luban.train(recipe(folder(root / "data"), "gru"), out=root / "model", evaluate=False)


def accuracy(found) -> float:
    rng = np.random.default_rng(1)
    ways = ["left", "right"] * 20
    answers = found.predict([{"clip": clip(rng, w)} for w in ways])
    return float(np.mean([a["way"] == w for a, w in zip(answers, ways)]))


def test_the_order_of_frames_is_learned(model, tmp_path):
    assert accuracy(model) > 0.9 and model.recipe.task() == "video-classification"
    unordered = luban.train(recipe(folder(tmp_path), "bag"), evaluate=False)
    assert accuracy(unordered) < 0.75, "control: what forgets the order cannot tell"


def test_a_clip_goes_through_the_life(model, tmp_path):
    rng = np.random.default_rng(2)
    given = [{"clip": base64.b64encode(gif(clip(rng, w))).decode(), "way": w} for w in ("left", "right")]
    asked = [{"clip": g["clip"]} for g in given]
    before = model.predict(asked)
    model.save(tmp_path / "saved")
    assert luban.load(tmp_path / "saved").predict(asked) == before
    small = model.compress(quantize="int8")
    assert [a["way"] for a in small.predict(asked)] == [a["way"] for a in before]
    path = model.export(to="onnx", out=tmp_path / "model.onnx")
    assert Path(path or tmp_path / "model.onnx").exists()
    for method in ("grad-cam", "integrated-gradients"):
        report = model.explain(given, method=method, rows=2, steps=8, out=str(tmp_path / method))
        weights = np.array(report.numbers["rows"][0]["weights"]["clip"])
        assert len(weights) == 4 * 16 and np.abs(weights).max() > 0
        assert (tmp_path / method / "explain.html").read_text("utf-8").count('class="strip"') == 2


def test_a_folder_of_clips_is_a_table(tmp_path):
    pytest.importorskip("cv2")
    for i, way in enumerate(("left", "right") * 3):
        film(tmp_path / way / f"{i}.avi", clip(np.random.default_rng(i), way))
    from luban.data.sources import read

    rows = read(tmp_path)
    assert rows.columns == ["video", "label"] and len(rows) == 6


# -- what a clip may be --------------------------------------------------------------------------------------------------


def film(path: Path, frames: np.ndarray, code: str = "MJPG") -> Path:
    import cv2

    path.parent.mkdir(exist_ok=True, parents=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), 10, frames.shape[2:0:-1])
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


def big(count: int = 20) -> np.ndarray:
    """Frames that tell their number by their brightness, large enough for any codec."""
    return np.repeat(np.arange(count, dtype=np.uint8)[:, None, None, None] * 10 + 20, 64 * 48 * 3).reshape(
        count, 48, 64, 3
    )


@pytest.mark.parametrize("ending,code", [("avi", "MJPG"), ("mp4", "mp4v")])
def test_a_video_file_is_read(tmp_path, ending, code):
    pytest.importorskip("cv2")
    path = film(tmp_path / f"a.{ending}", big(), code)
    for value in (str(path), path, path.read_bytes(), base64.b64encode(path.read_bytes()).decode()):
        found = clips.frames(value, 5)
        assert np.abs(np.stack(found).mean((1, 2, 3)) - (clips.pick(20, 5) * 10 + 20)).max() < 6


def test_a_header_that_lies_is_not_believed(tmp_path, monkeypatch):
    pytest.importorskip("cv2")
    path = film(tmp_path / "a.avi", big())
    for told in (0, 7, 500):
        monkeypatch.setattr(clips, "told", lambda film, told=told: told)
        found = np.stack(clips.frames(str(path), 3)).mean((1, 2, 3))
        last = 6 if told == 7 else 19
        assert abs(found[-1] - (last * 10 + 20)) < 6 and abs(found[0] - 20) < 6


def test_animations_folders_and_arrays_are_clips_too(tmp_path):
    frames = big(9)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{i:03}.png")
    want = clips.pick(9, 4) * 10 + 20
    for value in (str(tmp_path), gif(frames), frames, list(frames), [Image.fromarray(f) for f in frames]):
        column = Video("clip", frames=4).fit([value])
        x = column.encode(value)
        assert x.shape[0] == 4 and np.abs(x.mean((1, 2, 3)) - want).max() < 4
    assert Video("clip", frames=4).fit([frames]).encode(frames[:1]).shape[0] == 4, "one frame is a short clip"


def test_training_clips_move_as_one():
    column = Video("clip", frames=3, shift=0.3, flip=True).fit([big(5)])
    x = np.stack([column.encode(big(5) * 0 + np.random.default_rng(0).integers(0, 256, (1, 48, 64, 3), np.uint8))] * 8)
    moved, change = column.augment(x, np.ones(8, bool), np.random.default_rng(0))
    assert (moved[:, 0] == moved[:, 1]).all() and (moved != x).any() and change.flip.any()
    assert (column.follow(x, change) == moved).all()


@pytest.mark.parametrize("value", ["nothing.mp4", "no/folder", b"\x00" * 64, np.zeros((4, 4)), [], 7])
def test_what_is_no_clip_is_told(value):
    with pytest.raises(DataError):
        Video("clip").fit([big(4)]).encode(value)


def test_a_damaged_file_is_told(tmp_path):
    pytest.importorskip("cv2")
    path = film(tmp_path / "a.mp4", big(), "mp4v")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError):
        clips.frames(str(path), 4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        clips.frames(str(tmp_path / "empty"), 4)


def test_a_server_opens_no_path(tmp_path):
    path = tmp_path / "a.gif"
    path.write_bytes(gif(big(4)))
    column = Video("clip", frames=2).fit([big(4)]).guarded()
    with pytest.raises(DataError):
        column.encode(str(path))
    assert column.encode(base64.b64encode(path.read_bytes()).decode()).shape[0] == 2


def test_without_opencv_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cv2", None)
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(MissingExtra) as e:
        clips.frames(str(tmp_path / "a.mp4"), 4)
    assert "luban[video]" in str(e.value)


def test_parts_that_do_not_fit_are_named(tmp_path):
    wrong = recipe(folder(tmp_path, 40), "gru")
    wrong["model"]["clip"]["frames"]["over"] = "vgg"
    with pytest.raises(RecipeError, match="gru"):
        luban.train(wrong, evaluate=False)
