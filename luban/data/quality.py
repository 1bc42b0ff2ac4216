"""The check before training: what would make a model look better, or be worse, than it should.

Every finding has a level: `error` (training makes no sense), `warn` (look at it), `info`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from luban.data import near
from luban.data.blocks import some
from luban.data.rows import Rows
from luban.data.same import codes, groups, missing
from luban.data.splits import Splits
from luban.errors import Problem, problem

LOOKED = 200_000  # rows of a table that are looked at at all, evenly spaced; fewer where they are wide
SAMPLE = 10_000  # rows that the slower looks take at most
GIVES_AWAY = 0.99  # share of the rows whose target one column alone tells
UNEVEN = 20  # times as many rows of the commonest class as of the rarest, from which on accuracy hides the rarest
RARE = 10  # rows of a class below which its figures mean little
PERSONAL_NAMES = re.compile(
    r"(^|[_\W])(e-?mail|phone|mobile|telephone|first_?name|last_?name|surname|full_?name|address|street|ssn|passport|"
    r"iban|birth_?date|date_of_birth|dob|ip_?address|licen[cs]e_?plate)($|[_\W])|姓名|电话|手机|身份证|邮箱|住址|地址|护照|出生",
    re.IGNORECASE,
)
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+")
_EMAIL_INSIDE = re.compile(r"\w@[\w-]{1,63}\.[A-Za-z]{2}")  # bounded: texts may be long
_PHONE = re.compile(r"\+\d{1,3}([ -]?\(?\d{1,8}\)?){1,5}|(\(\d{2,4}\)[ -]?)?\d{2,4}([ -]\d{2,4}){2,4}|1[3-9]\d{9}")
_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}")
_CHINESE_ID = re.compile(r"\d{17}[\dXx]")
_CARD = re.compile(r"\d{4}([ -]?\d{4}){3}")
_FORMULA = r"^\s*(=\s*[A-Za-z(+\-@\"']|@[A-Za-z]+\(|[+\-]\s*[A-Za-z@=]+[\w.]*\s*[(|!])"


@dataclass(frozen=True)
class Finding:
    """`id`: what was found. `level`: error, warn or info. `column`: where, or "". `problem`: the sentence."""

    id: str
    level: str
    column: str
    problem: Problem

    def __str__(self) -> str:
        return str(self.problem)

    def to_json(self) -> dict[str, Any]:
        return {"level": self.level, "column": self.column, **self.problem.to_json()}


def check(
    rows: Rows, types: Mapping[str, str], target: str | Sequence[str] | None, splits: Splits | None = None
) -> list[Finding]:
    """Everything worth saying about the rows, errors first. `types`: of inputs and targets, as trained on."""
    looked = some(rows.table, LOOKED)
    if len(rows) > looked:
        told = _finding("sampled", "info", "", rows, count=looked, total=len(rows))
        return [*_check(*_some(rows, splits, looked), types, target), told]
    return _check(rows, splits, types, target)


def _check(
    rows: Rows, splits: Splits | None, types: Mapping[str, str], target: str | Sequence[str] | None
) -> list[Finding]:
    targets = [target] if isinstance(target, str) else list(target or ())
    known = {n: t for n, t in types.items() if n in rows.columns}
    found: list[Finding] = []
    for name, kind in known.items():
        found += _one_column(rows, name, kind, name in targets)
    for name in rows.columns:
        found += _personal(rows, name)
        found += _formulas(rows, name)
    for name in targets:
        if name in known:
            found += _target(rows, name, known[name], splits)
            found += _given_away(rows, known, name, targets)
    found += _duplicates(rows, known, targets, splits)
    return sorted(found, key=lambda f: ("error", "warn", "info").index(f.level))


def _some(rows: Rows, splits: Splits | None, count: int) -> tuple[Rows, Splits | None]:
    """Rows that stand for a large table, evenly spaced, and their parts."""
    chosen = np.linspace(0, len(rows) - 1, count).astype(np.int64)
    few = rows.take(chosen)
    if splits is None:
        return few, None
    part = np.full(len(rows), -1, np.int8)
    for number, where in enumerate(splits.parts().values()):
        part[where] = number
    parts = (np.flatnonzero(part[chosen] == number) for number in range(3))
    train, validation, test = parts
    return few, replace(splits, train=train, validation=validation, test=test)


def _finding(id: str, level: str, column: str, rows: Rows, row: int | None = None, **values: Any) -> Finding:
    place = rows.source if row is None else rows.place(row)
    return Finding(id, level, column, problem(f"check.{id}", place=place, column=column, **values))


# ---- one column


def _one_column(rows: Rows, name: str, kind: str, target: bool) -> Iterator[Finding]:
    column = rows.table[name]
    gone = missing(column)
    if gone.any():
        share = round(100 * float(gone.mean()), 1)
        level = "error" if target and gone.all() else "warn" if target or share > 50 else "info"
        yield _finding("missing", level, name, rows, int(np.flatnonzero(gone)[0]), count=int(gone.sum()), percent=share)
    cells = column.filter(pa.array(~gone))
    if not len(cells) or isinstance(column.type, pa.FixedShapeTensorType):
        return
    if pa.types.is_nested(cells.type):  # lists of labels: nothing counts them as they are
        cells = pa.chunked_array([[json.dumps(v, default=str) for v in cells.to_pylist()]])
    distinct = pc.count_distinct(cells).as_py()
    if distinct == 1:
        yield _finding("constant", "error" if target else "warn", name, rows, value=str(cells[0].as_py())[:40])
    if kind == "category" and not target and distinct > 20 and distinct > 0.9 * len(cells):
        yield _finding("identifier", "warn", name, rows, count=distinct)
    if kind == "category" and pa.types.is_string(column.type):
        yield from _spellings(rows, name, cells)


def _spellings(rows: Rows, name: str, cells: pa.ChunkedArray) -> Iterator[Finding]:
    """`cat`, `Cat` and `cat ` are three categories to a computer."""
    alike: dict[str, list[str]] = {}
    for value in pc.unique(cells).to_pylist():
        key = " ".join(unicodedata.normalize("NFKC", value).casefold().split())
        alike.setdefault(key, []).append(value)
    several = [values for values in alike.values() if len(values) > 1]
    if several:
        shown = [repr(v) for v in several[0][:3]]
        yield _finding("spellings", "warn", name, rows, values=shown, count=len(several))


def _formulas(rows: Rows, name: str) -> Iterator[Finding]:
    if pa.types.is_string(rows.table[name].type):
        hits = pc.fill_null(pc.match_substring_regex(rows.table[name], _FORMULA), False).to_numpy().astype(bool)
        if hits.any():
            row = int(np.flatnonzero(hits)[0])
            value = rows.table[name][row].as_py()[:40]
            yield _finding("formula", "warn", name, rows, row, count=int(hits.sum()), value=value)


# ---- personal data


def _personal(rows: Rows, name: str) -> Iterator[Finding]:
    if PERSONAL_NAMES.search(name):
        yield _finding("personal_name", "warn", name, rows)
    column = rows.table[name]
    if not (pa.types.is_string(column.type) or pa.types.is_integer(column.type)):
        return
    cells = [str(v).strip() for v in column.slice(0, 1000).to_pylist() if v is not None]
    for kind, looks in _PATTERNS.items():
        hits = sum(looks(c) for c in cells)
        if hits and hits >= 0.2 * len(cells):
            yield _finding("personal_cells", "warn", name, rows, kind=kind, percent=round(100 * hits / len(cells)))
            return
    inside = sum(bool(_EMAIL_INSIDE.search(c)) for c in cells)
    if inside:
        yield _finding("personal_inside", "info", name, rows, count=inside)


def _is_chinese_id(text: str) -> bool:
    """18 digits of GB 11643 with a right check digit (ISO 7064 MOD 11-2)."""
    if not _CHINESE_ID.fullmatch(text):
        return False
    total = sum(int(d) * (2 ** (17 - i) % 11) for i, d in enumerate(text[:17]))
    return "10X98765432"[total % 11] == text[17].upper()


def _is_card(text: str) -> bool:
    """16 digits that pass Luhn's check."""
    if not _CARD.fullmatch(text):
        return False
    digits = [int(c) for c in reversed(text) if c.isdigit()]
    return sum(digits[::2]) % 10 == -sum(sum(divmod(2 * d, 10)) for d in digits[1::2]) % 10


def _is_phone(text: str) -> bool:
    digits = sum(c.isdigit() for c in text[:40])
    return 9 <= digits <= 15 and len(text) <= 25 and not _DATE.match(text) and _PHONE.fullmatch(text) is not None


_PATTERNS: dict[str, Callable[[str], bool]] = {
    "e-mail": lambda c: _EMAIL.fullmatch(c) is not None,
    "身份证": _is_chinese_id,
    "card": _is_card,
    "phone": _is_phone,
}


# ---- the target


def _target(rows: Rows, name: str, kind: str, splits: Splits | None) -> Iterator[Finding]:
    if kind != "category" or pa.types.is_nested(rows.table[name].type):
        return
    counts = pc.value_counts(rows.table[name].drop_null()).to_pylist()
    if len(counts) < 2:
        return
    sizes = {str(c["values"]): c["counts"] for c in counts}
    rare = [n for n, size in sizes.items() if size < RARE]
    if rare:
        yield _finding("rare_class", "warn", name, rows, names=rare[:5], count=len(rare), limit=RARE)
    largest = max(sizes, key=lambda n: sizes[n])
    share = sizes[largest] / sum(sizes.values())
    smallest = min(sizes, key=lambda n: sizes[n])
    times = sizes[largest] / sizes[smallest]
    if share > 0.9:
        yield _finding("imbalance", "warn", name, rows, name=largest, percent=round(100 * share, 1))
    elif len(sizes) > 2 and times > UNEVEN:
        yield _finding("uneven", "warn", name, rows, name=largest, times=round(times), rare=smallest)
    if splits is not None:
        cells = np.array([str(v) for v in rows.table[name].to_pylist()], object)
        for part in ("validation", "test"):
            unseen = sorted(set(cells[getattr(splits, part)]) - set(cells[splits.train]) - {"None"})
            if unseen:
                yield _finding("unseen_class", "error", name, rows, part=part, names=unseen[:5])


def _given_away(rows: Rows, types: Mapping[str, str], target: str, targets: Sequence[str]) -> Iterator[Finding]:
    """A column that tells the target by itself is usually the target in disguise."""
    truth = rows.table[target]
    for name, kind in types.items():
        if name in targets or kind not in ("number", "category", "text"):
            continue
        present = ~(missing(truth) | missing(rows.table[name]))
        if present.sum() < 20:
            continue
        keep = pa.array(present)
        tells = _tells(rows.table[name].filter(keep), kind, truth.filter(keep), types[target])
        if tells >= GIVES_AWAY:
            yield _finding("gives_away", "warn", name, rows, target=target, percent=round(100 * tells, 1))


def _tells(column: pa.ChunkedArray, kind: str, truth: pa.ChunkedArray, target_kind: str) -> float:
    """0 to 1: how well one column alone tells the target, each row judged by the others; 0 where guessing does."""
    numeric = kind == "number" and not pa.types.is_string(column.type)
    if target_kind == "number" and not pa.types.is_string(truth.type):
        y = truth.cast(pa.float64()).to_numpy()
        if numeric:
            return _rank_correlation(column.cast(pa.float64()).to_numpy(), y)
        return _explained(codes(column), y)
    answers = codes(truth).astype(np.int64)
    majority = np.bincount(answers).max() / len(answers)
    if majority > 0.98:
        return 0.0
    bins = _bins(column.cast(pa.float64()).to_numpy()) if numeric else codes(column).astype(np.int64)
    return _told_by_others(np.unique(bins, return_inverse=True)[1].reshape(-1), answers)


def _bins(values: np.ndarray, most: int = 64) -> np.ndarray:
    edges = np.unique(np.quantile(values, np.linspace(0, 1, min(most, max(2, len(values) // 10)) + 1)[1:-1]))
    return np.searchsorted(edges, values, side="right")


def _told_by_others(bins: np.ndarray, answers: np.ndarray) -> float:
    """Share of rows whose class is the most frequent one among the *other* rows of the same bin."""
    pairs, counts = np.unique(np.stack([bins, answers]), axis=1, return_counts=True)
    ordered = np.lexsort((-counts, pairs[0]))
    bins_in_order, counts = pairs[0][ordered], counts[ordered]
    first = np.flatnonzero(np.r_[True, np.diff(bins_in_order) != 0])
    second = np.where(np.r_[first[1:], len(counts)] - first > 1, counts[np.minimum(first + 1, len(counts) - 1)], 0)
    right = np.where(counts[first] - 1 > second, counts[first], 0)
    right = np.where((second == 0) & (counts[first] > 1), counts[first], right)
    return float(right.sum() / len(answers))


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's, without its sign; 0 where one side is constant or all but."""
    ranks = [np.unique(v, return_inverse=True)[1].reshape(-1).astype(float) for v in (x, y)]
    if min(r.max(initial=0) for r in ranks) < 5:
        return 0.0
    return float(abs(np.corrcoef(*ranks)[0, 1]))


def _explained(groups_of: np.ndarray, y: np.ndarray) -> float:
    """Share of the variance that group means explain, corrected for the number of groups."""
    g = np.unique(groups_of, return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(g)
    total, freedom = float(((y - y.mean()) ** 2).sum()), len(y) - len(sizes)
    if total == 0 or freedom < 10:
        return 0.0
    means = np.bincount(g, y) / sizes
    within = float(((y - means[g]) ** 2).sum())
    return max(0.0, 1 - (within / freedom) / (total / (len(y) - 1)))


# ---- duplicates


def _duplicates(
    rows: Rows, types: Mapping[str, str], targets: Sequence[str], splits: Splits | None
) -> Iterator[Finding]:
    inputs = [n for n in types if n not in targets]
    if not inputs or not len(rows):
        return
    alike, answers = groups(rows.table, inputs), groups(rows.table, list(targets))
    extra = len(rows) - int(alike.max()) - 1
    if extra:
        yield _finding("duplicates", "info", "", rows, count=extra, percent=round(100 * extra / len(rows), 1))
    several = np.bincount(np.unique(np.stack([alike, answers]), axis=1)[0]) > 1
    if several.any():
        row = int(np.flatnonzero(several[alike])[0])
        yield _finding("conflicting", "warn", "", rows, row, count=int(several.sum()))
    if splits is None:
        return
    whole = alike * (int(answers.max()) + 1) + answers
    for part in ("validation", "test"):
        held = getattr(splits, part)
        exact = np.isin(whole[held], whole[splits.train])
        if exact.any():
            yield _finding("leak", "warn", "", rows, int(held[exact][0]), count=int(exact.sum()), part=part)
        new = held[~np.isin(alike[held], alike[splits.train])]
        yield from _nearly(rows, inputs, types, splits.train[:SAMPLE], new[:SAMPLE], part)


def _repeats(rows: Rows, name: str, train: np.ndarray) -> bool:
    """Whether most cells of a column are what another training row has, too."""
    alike = groups(rows.table, [name])[train]
    return 2 * len(np.unique(alike)) < len(alike)


def _nearly(
    rows: Rows, inputs: list[str], types: Mapping[str, str], train: np.ndarray, held: np.ndarray, part: str
) -> Iterator[Finding]:
    """Rows of a held-out part whose text or picture is nearly one of the training part."""
    others = [n for n in inputs if types[n] in ("number", "category")]
    long = [n for n in inputs if types[n] in ("text", "image")]
    for name in long:
        if len(long) > 1 and _repeats(rows, name, train):  # such as the questions that are asked about each picture
            continue
        pairs = near.pairs(rows, name, types[name], train, held)
        if others and pairs:  # the rest of the row must agree too
            rest = groups(rows.table, others)
            pairs = [(a, b) for a, b in pairs if rest[a] == rest[b]]
        if pairs:
            a, b = pairs[0]
            line = int(rows.lines[a])
            yield _finding("near_leak", "warn", name, rows, b, count=len({p[1] for p in pairs}), part=part, line=line)
