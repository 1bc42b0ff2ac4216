"""Answers drawn into what was asked: `luban predict --draw FOLDER`, and a model of boxes or masks over a video file, frame by frame."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from luban import files
from luban.columns.answering import Engine, Row, answer
from luban.columns.clips import capture, told
from luban.columns.drawn import draw, likely, with_legend
from luban.columns.examples import records
from luban.columns.mask import coloured, painted, palette
from luban.console import Progress
from luban.errors import DataError, RequestError, WorkError, problem
from luban.messages import say

VIDEOS = {".mp4": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}  # and the codec that each is written with
FILMED = (*VIDEOS, ".webm", ".m4v", ".mpg", ".mpeg")  # what is read
TOGETHER = 16  # frames answered at once
DRAWN = ("mask", "boxes")  # what can be drawn, the lowest first


class Pictures:
    """Writes a picture for each answered row: the image with its boxes and masks, named by line and file. Raises RequestError where there are none."""

    def __init__(self, engine: Engine, folder: str | Path):
        self.outputs, self.image = _drawn_outputs(engine)
        self.engine, self.folder, self.count = engine, Path(folder), 0
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, table: Any, lines: Sequence[int], rows: Sequence[Row]) -> None:
        from PIL import Image

        for record, line, row in zip(records(table), lines, rows):
            if row.answers is None:
                continue
            value = record[self.image]
            name = Path(value).stem if isinstance(value, str) and len(value) < 500 else ""
            shown = _shown(self.engine, self.engine.columns[self.image].whole(value), row, self.outputs)
            Image.fromarray(shown).save(self.folder / f"{int(line):05}{'-' + name if name else ''}.jpg", quality=90)
            self.count += 1


def _drawn_outputs(engine: Engine) -> tuple[list[str], str]:
    """The outputs that can be drawn, the lowest first, and the image that they are of."""
    found = [n for form in DRAWN for n in engine.outputs if engine.columns[n].form == form]
    if not found:
        raise RequestError("predict.nothing_to_draw", outputs=list(engine.outputs))
    image = engine.columns[found[0]].of  # type: ignore[attr-defined]
    return [n for n in found if engine.columns[n].of == image], image  # type: ignore[attr-defined]


def _shown(engine: Engine, picture: np.ndarray, row: Row, outputs: Sequence[str]) -> np.ndarray:
    classes: Sequence[str] = ()
    for name in outputs:
        column, found = engine.columns[name], row.answers[name] if row.answers else None
        if column.form == "boxes":
            picture = draw(picture, likely(found.value) if found else (), column.labels)  # type: ignore[attr-defined]
        else:
            classes = column.classes  # type: ignore[attr-defined]
            picture = coloured(painted(found), picture) if found else picture
    return with_legend(picture, classes[1:], palette()[1 : len(classes)]) if classes else picture


# -- a video file ------------------------------------------------------------------------------------------------------


def is_video(engine: Engine, data: str) -> bool:
    """Whether DATA is a video file, and the model one that reads a single image: its frames are the rows then."""
    one = len(engine.inputs) == 1 and engine.columns[engine.inputs[0]].type == "image"
    return one and Path(data).suffix.lower() in FILMED and Path(data).is_file()


def checked(out: str) -> str:
    """What a video's answers go to: another video, JSON lines, or `-`. Raises RequestError."""
    suffix = Path(out).suffix.lower()
    if out != "-" and suffix not in (*VIDEOS, ".jsonl", ".ndjson"):
        raise RequestError(problem("predict.no_video_format", place=out, name=suffix, allowed=(*VIDEOS, ".jsonl", "-")))
    return suffix


def film(model: Any, source: str, out: str = "-") -> dict[str, Any]:
    """Answer every frame of a video file: a video with the boxes and masks drawn in, or a JSON line a frame with its number and second.

    Gives frames, frames per second of everything (reading, answering, drawing, writing) and of answering alone. Raises RequestError for a
    video of a model without either, DataError for a file that is no video, MissingExtra without OpenCV.
    """
    engine: Engine = getattr(model, "engine", model)
    suffix, began, answering = checked(out), time.perf_counter(), 0.0
    outputs = _drawn_outputs(engine)[0] if suffix in VIDEOS else []
    name, count = engine.inputs[0], 0
    with capture(source, source) as reader, _sink(out, suffix, reader) as write:
        rate, there = _rate(reader), told(reader)
        progress = Progress(say("predict.film"), max(there, 1))
        try:
            for frames in _frames(reader):
                start = time.perf_counter()
                rows = answer(engine, [{name: f} for f in frames])
                answering += time.perf_counter() - start
                for i, (frame, row) in enumerate(zip(frames, rows)):
                    shown = _shown(engine, frame, row, outputs) if outputs else frame
                    write(shown, {"frame": count + i, "second": round((count + i) / rate, 3), **row.plain()})
                count += len(frames)
                if count <= there and progress.due():  # a file may tell no number of frames, or a wrong one
                    progress.update(count, unit=say("predict.frames"))
        finally:
            progress.close()
        if not count:
            raise DataError(problem("video.unreadable", place=source))
    seconds = time.perf_counter() - began
    return {"frames": count, "frames_per_second": count / seconds, "answered_per_second": count / max(answering, 1e-9)}


def _rate(reader: Any) -> float:
    """Frames a second; 25 where the file does not say."""
    import cv2

    told = reader.get(cv2.CAP_PROP_FPS)
    return float(told) if told == told and 0 < told < 1000 else 25.0


def _frames(reader: Any) -> Iterator[list[np.ndarray]]:
    """Frames as uint8 (H, W, 3), some at once."""
    found: list[np.ndarray] = []
    while True:
        good, frame = reader.read()
        if good:
            found.append(frame[..., ::-1])
        if found and (not good or len(found) == TOGETHER):
            yield found
            found = []
        if not good:
            return


@contextmanager
def _sink(out: str, suffix: str, reader: Any) -> Iterator[Any]:
    """Takes a frame and its plain answer: to a video, or as a line. The file appears when all of it is written."""
    if out == "-":
        yield lambda _, row: print(json.dumps(row, ensure_ascii=False))
        return
    final = Path(out)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.stem}.{os.getpid()}.tmp{suffix}")
    try:
        with _video(temporary, suffix, _rate(reader)) if suffix in VIDEOS else _lines(temporary) as write:
            yield write
        files.sync(temporary)
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _lines(path: Path) -> Iterator[Any]:
    with open(path, "w", encoding="utf-8") as file:
        yield lambda _, row: file.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextmanager
def _video(path: Path, suffix: str, rate: float) -> Iterator[Any]:
    """Frames of the size that the first one has when it is drawn."""
    import cv2

    writer = cv2.VideoWriter()

    def write(frame: np.ndarray, _: Any) -> None:
        code, size = cv2.VideoWriter_fourcc(*VIDEOS[suffix]), frame.shape[1::-1]
        if not writer.isOpened() and not writer.open(str(path), code, rate, size):
            raise WorkError("predict.no_writer", format=suffix)
        writer.write(np.ascontiguousarray(frame[..., ::-1]))

    try:
        yield write
    finally:
        writer.release()
