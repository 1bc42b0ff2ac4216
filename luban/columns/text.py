"""A column of text: characters, words or byte-level BPE, as ids of one `tokenizers` tokenizer."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np

from luban.columns import checkpoint
from luban.columns import tokenizer as tokenizers
from luban.columns.base import GONE, Answer, Column, Ragged, Segments, coloured, text_of, to_list
from luban.columns.templates import template_of
from luban.columns.windows import by_sentences, overlapping
from luban.data.tagged import joined
from luban.errors import DataError, problem
from luban.settings import Beams, Count, Dial, File, Fraction, Model

PADDING, UNKNOWN = tokenizers.PADDING, tokenizers.UNKNOWN
END = "[END]"  # what the end is called, of which no tokenizer knows
WHOLE = 1 << 40  # tokens that no text has
BROKEN = "\ufffd"  # what half a character is decoded to
LONG = 64  # characters read for each kept position: bounds the work that one absurd text can cause
SAMPLE = 2000  # texts looked at to tell the script
WINDOWS = 256  # that one text is read in at most
ENDS = (".", "!", "?", "…", "。", "！", "？", "\n")  # of sentences
BATCH = 1000  # texts tokenised at once: what the library makes of one is a hundred times its size
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])\w)+(?:['’](?:(?![{UNSPACED}])\w)+)*|[^\w\s]")
_UNSPACED = re.compile(rf"[{UNSPACED}]")
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class Text(Column):
    """x is ids (T,): 0 padding, 1 unknown, then the vocabulary, commonest first.

    `tokens` auto takes characters where the training text is mostly in a script without spaces, else words. A text longer
    than `length` positions loses its end (`keep: start`) or its beginning (`keep: end`); with `long: split` answers to it are put
    together from those to its windows (`luban.columns.windows`), with `long: refuse` it is none of this column's. An empty or missing text is one
    padding position, so its mask is False everywhere. A list of words is the text
    that they make with blanks between. What a user types is always plain text: no token is special.

    `tokens_of` takes the tokenizer of a pretrained checkpoint instead (`tokens`, `vocabulary`, `least`, `lower`, `normalise`
    and `whitespace` are then its own): its control tokens stand around the text, which is cut to the positions it has.
    With `ends` one more id, the last, stands behind each text, and begins the one that a network writes.
    """

    tokens: Literal["auto", "characters", "words", "bpe"] = field(default="auto", kw_only=True)
    vocabulary: Annotated[Count, Dial(nano=5000, small=10_000, base=30_000)] = field(default=10_000, kw_only=True)
    length: Annotated[Count, Dial(nano=128, small=256, base=512)] = field(default=256, kw_only=True)
    keep: Literal["start", "end"] = field(default="start", kw_only=True)
    long: Literal["cut", "split", "refuse"] = field(default="cut", kw_only=True)  # what is done with a longer text
    lower: bool = field(default=True, kw_only=True)
    normalise: bool = field(default=True, kw_only=True)  # Unicode NFKC: full-width letters, ligatures, composed accents
    whitespace: bool = field(
        default=False, kw_only=True
    )  # bpe: runs of white space as one (the others never keep them)
    least: Count = field(default=2, kw_only=True)  # times that a token must stand in the training texts
    drop: Fraction = field(
        default=0.03, kw_only=True
    )  # tokens hidden while training, so that "unknown" means something
    vectors: Annotated[str, File()] | None = field(default=None, kw_only=True)  # file of GloVe or word2vec vectors
    tokens_of: Annotated[str, Model()] | None = field(
        default=None, kw_only=True
    )  # checkpoint whose tokenizer cuts the text
    ends: bool = field(default=False, kw_only=True)  # an end token behind each text, as one that is written needs
    beams: Beams = field(
        default=1, kw_only=True
    )  # beginnings that are kept while it is written; 1 = the likeliest token each

    type: ClassVar[str] = "text"
    encoder: ClassVar[str] = "cnn"
    form: ClassVar[str] = "ids"
    head: ClassVar[str] = "text"
    output: ClassVar[dict[str, Any]] = {  # other defaults for a text that a network writes: nothing of it may be lost
        "tokens": "bpe", "lower": False, "normalise": False, "drop": 0.0, "ends": True,
    }  # fmt: skip
    ragged: ClassVar[bool] = True
    pools: ClassVar[bool] = True
    sampled: ClassVar[int] = 100_000

    def fit(self, values: Iterable[Any]) -> Self:
        """Learns how to cut text and the vocabulary. Raises DataError where no text has a token in it."""
        texts = [t for t in map(self._clean, to_list(values)) if t.strip()]
        if not texts:
            raise DataError("column.all_missing", name=self.name)
        if self.tokens_of:
            return self._taken()._measured(texts)
        tokens = script(texts) if self.tokens == "auto" else self.tokens
        plain = tokenizers.train(
            texts, tokens, vocabulary=self.vocabulary, least=self.least,
            lower=self.lower, normalise=self.normalise, whitespace=self.whitespace, exact=self.ends,
        )  # fmt: skip
        words = tokenizers.words(plain)
        learned = self.learned(tokens=tokens, size=len(words), tokenizer=plain, example=_example(words, tokens))
        learned = learned._ending() if self.ends else learned
        return learned._measured(texts)._with_vectors(words)

    def _ending(self) -> Self:
        """One more id, the last, stands behind each text."""
        return self.learned(size=self.size + 1, end=self.size, after=[self.size])

    def _measured(self, texts: Sequence[str]) -> Self:
        """How long the texts are, in tokens."""
        lengths = np.fromiter(map(len, self._ids(texts)), np.int64, len(texts))
        return self.keeping(
            self.learned(seen=int(lengths.sum()), longest=int(lengths.max()), cut=float((lengths > self.room).mean()))
        )

    def keeping(self, column: Self) -> Self:
        """A column made from this one, with what this one holds beside its state: tokenizer, first weights, their folder."""
        for kept in ("_tokenizer", "_source", "_table"):
            if kept in self.__dict__ and kept not in column.__dict__:
                object.__setattr__(column, kept, self.__dict__[kept])
        return column

    def lengths_of(self, values: Any) -> np.ndarray:
        """How many tokens each of some values has, control tokens aside, nothing cut: (N,)."""
        texts = [self._clean(v) for v in to_list(values)]
        return np.fromiter(map(len, self._ids(texts)), np.int64, len(texts))

    def overlong(self, values: Any) -> int:
        """How many of some values have more tokens than there is room for; a text has no more of them than bytes."""
        long = [v for v in to_list(values) if len(self._joined(v).encode("utf-8", "replace")) > self.room]
        return int((self.lengths_of(long) > self.room).sum()) if long else 0

    def _taken(self) -> Self:
        """With the tokenizer of the checkpoint. Raises DataError where there is none."""
        if self.vectors:
            raise DataError("column.vectors_and_model", name=self.name)
        found = checkpoint.read(self.tokens_of, self.name)
        if self.ends and not found.written:
            raise DataError(problem("model.no_end", place=self.name, name=self.tokens_of))
        learned = self.learned(tokens="given", example="", **found.state | (found.written if self.ends else {}))
        object.__setattr__(learned, "_source", found.folder)
        return learned

    @property
    def source(self) -> Any:
        """The folder of the checkpoint right after `fit`, whose weights an encoder may begin with; a saved column has none."""
        return self.__dict__.get("_source")

    def supposed(self) -> Self:
        """A full vocabulary, and texts that reach `length`."""
        if self.tokens_of:
            taken = self._taken()
            supposed = taken.learned(longest=taken.most, cut=0.0)
            object.__setattr__(supposed, "_source", taken.source)
            return supposed
        known = self.learned(tokens=self.tokens, size=self.vocabulary, longest=self.length, cut=0.0, example="")
        return known._ending() if self.ends else known

    def _with_vectors(self, words: list[str]) -> Self:
        if not self.vectors:
            return self
        from luban.columns.word_vectors import read

        table, found = read(self.vectors, words, self.name)
        learned = self.learned(vector_size=table.shape[1], vectors_found=found)
        object.__setattr__(learned, "_table", table)
        return learned

    @property
    def table(self) -> np.ndarray | None:
        """First embedding weights (V, D) from `vectors`, right after `fit`; a saved column has only their size."""
        return self.__dict__.get("_table")

    @property
    def size(self) -> int:
        return self.state["size"]

    @property
    def most(self) -> int:
        """Positions that a text may have, control tokens included."""
        return min(self.length, self.state.get("window") or self.length)  # a network learned no more than its window

    @property
    def room(self) -> int:
        """Positions that are left for the text itself."""
        return max(1, self.most - len(self.state.get("before", ())) - len(self.state.get("after", ())))

    @property
    def end(self) -> int:
        """The id that ends a text."""
        return self.state["end"]

    @property
    def stops(self) -> frozenset[int]:
        """The ids that end a text which a network writes: `end`, of some checkpoints others too."""
        return frozenset(self.state.get("stops") or [self.end])

    @property
    def begin(self) -> int:
        """The id that is read before the first token is written."""
        return self.state.get("begin", self.end)

    def begins(self) -> list[bool]:
        """For each id whether a word begins with it: pieces of words are told by the marks of their tokenizers."""
        if "tokenizer" not in self.state:  # supposed: no word is known yet
            return [True] * self.size
        words = sorted((i, w) for w, i in self.tokenizer.get_vocab().items())
        if any(w.startswith("##") for _, w in words):
            found = {i: not w.startswith("##") for i, w in words}
        elif mark := next((m for m in ("Ġ", "▁") if any(w.startswith(m) for _, w in words)), ""):
            found = {i: w.startswith(mark) or not w[:1].isalnum() for i, w in words}
        else:
            found = {}
        return [found.get(i, True) for i in range(self.size)]

    def becomes(self, fresh: Column) -> Column | None:
        """A text that is written may go on as a conversation or a choice of answers, in the same tokens."""
        if (
            self.type in ("text", "chat")
            and self.type != fresh.type
            and fresh.type in ("chat", "preference")
            and self.ends
        ):
            settings = {k: v for k, v in self.settings().items() if k in fresh.settings()}
            return replace(fresh, **settings, state={**self.state, "chat": template_of(self.state)})
        if (
            self.type == fresh.type == "text"
            and "joint" in fresh.state
            and self.state.get("joint") != fresh.state["joint"]
        ):
            from luban.columns import joining

            return joining.like(self, fresh)
        return super().becomes(fresh)

    def whole(self) -> Self:
        """The column for texts of which nothing is cut off."""
        return replace(self, length=WHOLE)

    # -- texts that are longer than there is room for ------------------------------------------------------------------
    def opened(self) -> Self:
        """The column of a model that answers: it gives all of a text, `reads` of whose positions a network takes at once."""
        if "_opened" not in self.__dict__:
            _ = self.tokenizer, self._quick
            made = replace(self, length=WHOLE, state={**self.state, "window": None, "reads": self.most})
            for kept in ("_tokenizer", "_words"):
                object.__setattr__(made, kept, self.__dict__[kept])
            object.__setattr__(self, "_opened", made)
        return self.__dict__["_opened"]

    @property
    def _limit(self) -> int:
        """Tokens of the longest text that is taken, where one is: in windows or in one piece."""
        reads = self.state.get("reads")
        room = self.room - WHOLE + reads if reads else self.room
        return room if self.long == "refuse" else room * WINDOWS

    def refused(self, values: Any) -> dict[int, tuple[str, dict[str, Any]]]:
        if self.long == "cut":
            return {}
        values, limit = to_list(values), self._limit
        texts = [self._joined(v) for v in values]
        # A text has no more tokens than bytes, and none longer than LONG characters on average is taken to the tokenizer.
        far = [len(t) > limit * LONG for t in texts]
        near = [i for i, t in enumerate(texts) if not far[i] and len(t.encode("utf-8", "replace")) > limit]
        counts = dict(zip(near, self.whole().lengths_of([values[i] for i in near]).tolist()))
        about = {"name": self.name, "most": limit, "windows": WINDOWS}
        reason = "column.too_long" if self.long == "refuse" else "column.too_many_windows"
        found = {i: ("column.far_too_long", about | {"count": len(t)}) for i, t in enumerate(texts) if far[i]}
        found |= {i: (reason, about | {"count": n}) for i, n in counts.items() if n > limit}
        return found

    def windows(self, ids: np.ndarray, sentences: bool) -> list[np.ndarray]:
        """Positions of ids (T,) that make each window of a text, its control tokens around every one.

        `sentences`: they end with sentences and share nothing, else a quarter with the one before.
        """
        if len(ids) <= self.state["reads"]:
            return [np.arange(len(ids))]
        before, room, after = self._around
        if sentences:
            inside = ids[before : len(ids) - after]
            ends, begins = self._marks
            spans = by_sentences(ends[inside], begins[inside], room)
        else:
            spans = overlapping(len(ids) - before - after, room)
        return [self._window(len(ids), span) for span in spans]

    def window(self, length: int, share: float) -> np.ndarray:
        """Positions of the one of its `windows` that stands at a share of them, 0 the first: of a text of `length` ids."""
        if length <= self.state["reads"]:
            return np.arange(length)
        before, room, after = self._around
        spans = overlapping(length - before - after, room)
        return self._window(length, spans[int(share * len(spans))])

    @property
    def _around(self) -> tuple[int, int, int]:
        """Control tokens before a text, positions of a window between them, control tokens after it."""
        before, after = len(self.state.get("before", ())), len(self.state.get("after", ()))
        return before, max(1, self.state["reads"] - before - after), after

    def _window(self, length: int, span: tuple[int, int]) -> np.ndarray:
        before, _, after = self._around
        start, stop = span
        return np.concatenate([np.arange(before), before + np.arange(start, stop), np.arange(length - after, length)])

    @property
    def _marks(self) -> tuple[np.ndarray, np.ndarray]:
        """For each id whether a sentence ends with it, and whether a word begins with it: bool (V,) each."""
        if "_sentences" not in self.__dict__:
            texts = self.tokenizer.decode_batch([[i] for i in range(self.size)], skip_special_tokens=False)
            ends = np.array([t.rstrip(" \"')”’」』").endswith(ENDS) for t in texts])
            object.__setattr__(self, "_sentences", (ends, np.array(self.begins())))
        return self.__dict__["_sentences"]

    def joined_up(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Texts that were written one by one, (T, 2) each as `decode` takes them -> the text that they make together.

        A blank stands between two of them where neither brings one and the script has blanks.
        """
        found: list[list[tuple[float, float]]] = []
        for part in parts:
            lines = [(i, p) for i, p in np.asarray(part, np.float64).tolist() if i >= 0]
            while found and found[-1] and int(found[-1][-1][0]) in self.stops:
                found[-1].pop()
            if found and found[-1]:
                found.append(self._blank([int(i) for i, _ in found[-1]], [int(i) for i, _ in lines]))
            found.append(lines)
        return np.array([line for lines in found for line in lines]).reshape(-1, 2)

    def _blank(self, one: Sequence[int], two: Sequence[int]) -> list[tuple[float, float]]:
        """The ids that part two texts, certain as they are."""
        first, second = self.text(one), self.text(two)
        plain = first + second
        if not (first and second) or self.text([*one, *two]) != plain:  # the tokenizer parts words by itself
            return []
        near = plain[len(first) - 1 : len(first) + 1]
        if any(c.isspace() or _UNSPACED.match(c) or c in "。！？，、；：" for c in near):
            return []
        return [(float(i), 0.0) for i in self.tokenizer.encode(" ", add_special_tokens=False).ids]

    # -- raw value <-> array ---------------------------------------------------------------------------------------
    def check(self) -> None:
        self.encode("a")

    @property
    def tokenizer(self) -> Any:
        made = self.__dict__.get("_tokenizer")
        if made is None:
            made = tokenizers.load(self.state["tokenizer"], control="config" in self.state)
            object.__setattr__(self, "_tokenizer", made)
        return made

    def encode(self, value: Any, of: Any = None) -> np.ndarray:
        return self._encoded([value])[0]

    def encode_all(self, values: Any, of: Any = None) -> Ragged:
        return Ragged.of(self._encoded(to_list(values)))

    def _encoded(self, values: Sequence[Any]) -> list[np.ndarray]:
        for reason, about in self.refused(values).values():
            raise DataError(reason, **about)
        return [np.array(self._framed(ids), np.int32) for ids in self._ids([self._clean(v) for v in values])]

    def _ids(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """All ids of each text: of words in Latin or Cyrillic letters by a quick road, of everything else by the tokenizer."""
        quick = self._quick
        for start in range(0, len(texts), BATCH):
            some = texts[start : start + BATCH]
            plain = [quick is not None and tokenizers.western(t) for t in some]
            found = self.tokenizer.encode_batch_fast(
                [t for t, p in zip(some, plain) if not p], add_special_tokens=False
            )
            others = iter(found)
            yield from (quick(t) if p else next(others).ids for t, p in zip(some, plain))

    @property
    def _quick(self) -> Callable[[str], list[int]] | None:
        if "_words" not in self.__dict__:
            made = tokenizers.quick(self.state["tokenizer"]) if self.state.get("tokens") == "words" else None
            object.__setattr__(self, "_words", made)
        return self.__dict__["_words"]

    def _framed(self, ids: list[int]) -> list[int]:
        """As many ids as there is room for, between the control tokens; one of padding where there is nothing."""
        whole = [*self.state.get("before", ()), *self._cut(ids), *self.state.get("after", ())]
        return whole or [self.pad]

    def _cut(self, items: list[Any]) -> list[Any]:
        return items[: self.room] if self.keep == "start" else items[-self.room :]

    @property
    def pad(self) -> int:
        return self.state.get("pad", PADDING)

    def _clean(self, value: Any) -> str:
        """Text that any tokenizer can take: lone surrogates replaced, absurd lengths cut. Raises DataError for no text."""
        text = self._joined(value)
        most = self.length * LONG
        if len(text) > most:
            text = text[:most] if self.keep == "start" else text[-most:]
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text

    def prompt(self, value: Any) -> np.ndarray:
        """The ids (T,) of the beginning of a text that is to be written on, `begin` first. Nothing is cut off.

        Of a checkpoint that reads a text before it writes another: that text, `begin` behind it.
        """
        ids = self.tokenizer.encode(Text._clean(self.whole(), value), add_special_tokens=False).ids
        if self.state.get("behind"):
            return np.array([*ids, self.begin], np.int32)
        bare = self.state.get("bare") and ids  # a checkpoint that learned to go on without
        return np.array(ids if bare else [self.begin, *ids], np.int32)

    @property
    def chat(self) -> Callable[[Any], np.ndarray] | None:
        """Conversation -> the ids that its answer is written on from; None where nobody said how one looks."""
        if not self.state.get("chat"):
            return None
        from luban.columns.chat import prompt

        return lambda messages: prompt(self, messages)

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids up to the first end; halves of characters as U+FFFD."""
        silent = set(self.state.get("silent", (self.pad, UNKNOWN, self.begin)))
        found = list(takewhile(lambda i: i not in self.stops and i >= 0, map(int, ids)))
        return self.tokenizer.decode([i for i in found if i not in silent], skip_special_tokens=False)

    def decode(self, array: np.ndarray, mask: np.ndarray | None = None) -> Answer:
        """(T, 2): ids, -1 behind the end, and the log-probability of each -> the text and the probability of all of it."""
        array = np.asarray(array, np.float64)
        ids = array[:, 0].astype(np.int64)
        return Answer(self.text(ids), float(np.exp(array[ids >= 0, 1].sum())))

    def numbered(self, array: np.ndarray) -> np.ndarray:
        ids = np.asarray(array)[..., 0]
        return np.where(ids < 0, GONE, ids).astype(np.int64)

    def _joined(self, value: Any) -> str:
        if isinstance(value, list) and value and all(isinstance(w, str) for w in value):
            return joined(value)[0]
        if isinstance(value, (list, dict, bytes)):
            raise DataError("column.not_text", name=self.name, value=str(value)[:60])
        return text_of(value) or ""

    def offsets(self, value: Any) -> np.ndarray:
        """(T, 2): the characters of the value that each position of x stands for, from and to; -1 for control tokens.

        (0, 2) for an empty value without them.
        """
        text = self._clean(value)
        moved = len(self._joined(value)) - len(text) if self.keep == "end" else 0
        found = self._cut(self.tokenizer.encode(text, add_special_tokens=False).offsets)
        before, after = (np.full((len(self.state.get(k, ())), 2), -1, np.int64) for k in ("before", "after"))
        return np.concatenate([before, np.array(found, np.int64).reshape(-1, 2) + moved, after])

    def collate(self, items: Any) -> tuple[np.ndarray, np.ndarray]:
        """Ids (B, T) int64 padded to the longest, mask (B, T)."""
        items = items if isinstance(items, Ragged) else Ragged.of(items)
        lengths = items.lengths
        most = int(lengths.max(initial=1))
        if most > 1 and len(items.flat) == len(items) * most:  # all as long: cut at `length`, or packed
            return items.flat.reshape(len(items), most).astype(np.int64), np.ones((len(items), most), bool)
        x = np.full((len(items), most), self.pad, np.int64)
        real = np.arange(most) < lengths[:, None]
        x[real] = items.flat
        return x, real & ~((lengths == 1) & (x[:, 0] == self.pad))[:, None]

    # -- what explains it --------------------------------------------------------------------------------------------
    def segments(self, value: Any) -> Segments:
        """Words; in scripts without spaces, characters. Positions of white space belong to none."""
        names, index, _ = self._placed(value)
        return Segments(names, index)

    def _placed(self, value: Any) -> tuple[list[str], np.ndarray, list[tuple[int, int]]]:
        """Segment names, the segment of each position, and where each segment stands in the cleaned text."""
        text = self._clean(value)
        offsets = self._cut(self.tokenizer.encode(text, add_special_tokens=False).offsets)
        before, after = (np.full(len(self.state.get(k, ())), -1, np.int64) for k in ("before", "after"))
        if not offsets:
            return [], np.concatenate([before, after]) if len(before) + len(after) else np.array([-1], np.int64), []
        spans, index = worded(text, [end for _, end in offsets])
        return [text[s:e] for s, e in spans], np.concatenate([before, index, after]), spans

    def positions(self, x: np.ndarray) -> list[str]:
        """Tokens as they read by themselves; control tokens, and halves of characters, by their names."""
        return [self._token(int(i)) for i in np.ravel(x)]

    def _token(self, i: int) -> str:
        i = ~i if i < 0 else i
        read = self.tokenizer.decode([i], skip_special_tokens=False)
        if read.strip() and BROKEN not in read:
            return read
        return self.tokenizer.id_to_token(i) or (END if i == self.state.get("end") else str(i))

    def nothing(self, x: np.ndarray) -> np.ndarray:
        """A hidden word becomes the unknown token (of a checkpoint: the mask): the words beside it keep their places."""
        return np.full((), self.state.get("hide", UNKNOWN), x.dtype)

    def augment(self, x: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Any]:
        """Hides `drop` of the tokens (word dropout, Iyyer et al. 2015)."""
        hidden = mask & (rng.random(x.shape, np.float32) < self.drop)
        if control := [*self.state.get("before", ()), *self.state.get("after", ())]:
            hidden &= ~np.isin(x, control)
        return np.where(hidden, self.nothing(x), x), None

    # -- what others see of it ---------------------------------------------------------------------------------------
    def featurizer(self, training: Any) -> Callable[[Any], Any]:
        """TF-IDF fitted on training values: over words, or character 1-3-grams in scripts without spaces; sublinear."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        texts = [self._clean(v) for v in to_list(training)]
        common: dict[str, Any] = {"sublinear_tf": True, "dtype": np.float32, "min_df": 2 if len(texts) > 1000 else 1}
        if self.state["tokens"] == "characters" or script(texts) == "characters":
            vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), lowercase=self.lower, **common)
        else:
            vectorizer = TfidfVectorizer(
                token_pattern=r"(?u)\w+(?:['’]\w+)*|[^\w\s]", ngram_range=(1, 1), lowercase=self.lower, **common
            )
        vectorizer.fit(texts if any(map(str.strip, texts)) else ["-"])
        return lambda values: vectorizer.transform([self._clean(v) for v in to_list(values)])

    def features(self, values: Any) -> Any:
        """TF-IDF (N, F) fitted on these same values; a baseline that is tested elsewhere uses `featurizer`."""
        return self.featurizer(values)(values)

    def schema(self) -> dict[str, Any]:
        words = {"type": "string"}
        return {"type": ["string", "array", "null"], "items": words, "examples": [self.state["example"]]}

    def render(self, value: Any, weights: Sequence[float] | None = None) -> str:
        text = self._clean(value)
        if weights is None:
            return html.escape(text)
        parts, at = [], 0
        for (start, end), weight in zip(self._placed(value)[2], weights):
            parts += [html.escape(text[at:start]), coloured(html.escape(text[start:end]), weight)]
            at = end
        return "".join([*parts, html.escape(text[at:])])


def worded(text: str, ends: Sequence[int]) -> tuple[list[tuple[int, int]], np.ndarray]:
    """The words of a text that some tokens stand in, from and to, and for each token the number of its word, -1 for white space.

    ends: the character that each token ends before, (T,), T > 0; a byte-level token may begin with the blank before its word.
    """
    words = [m.span() for m in _WORD.finditer(text)]
    starts, stops = (np.array([w[side] for w in words] or [0]) for side in (0, 1))
    last = np.asarray(ends) - 1
    at = np.searchsorted(starts, last, side="right") - 1
    inside = (at >= 0) & (last < stops[at])
    kept, index = np.unique(np.where(inside, at, -1), return_inverse=True)
    none = int(kept[0] == -1)
    return [words[k] for k in kept[none:]], index.reshape(-1).astype(np.int64) - none


def _example(words: list[str], tokens: str) -> str:
    """The commonest words in a row: a training text itself may be somebody's secret."""
    plain = [w.removeprefix("Ġ") for w in words[2:]]
    return ("" if tokens == "characters" else " ").join([w for w in plain if w.isalpha()][:6])


def script(texts: Sequence[str]) -> str:
    """`characters` where most letters of the texts belong to a script without spaces, else `words`."""
    sample = " ".join(t[:400] for t in texts[:: max(1, len(texts) // SAMPLE)])
    letters = len(_LETTER.findall(sample))
    return "characters" if len(_UNSPACED.findall(sample)) * 2 > max(letters, 1) else "words"
