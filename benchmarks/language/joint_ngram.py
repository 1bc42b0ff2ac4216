"""Spelling to phonemes by a joint n-gram model (Bisani and Ney 2008), the strongest system before neural ones.

Every letter is aligned with no, one or two phonemes by expectation maximisation; such a pair is a graphone. A Kneser-Ney model of graphones is a
model of spelling and sound together; of all ways to read a word, beam search finds a very likely one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from luban.evaluation.ngram import KneserNey

END = ("", ())
Graphone = tuple[str, tuple[str, ...]]
Pair = tuple[str, Sequence[str]]


class Alignment:
    """How likely a letter is to be read as which phonemes; `table` (letters, codes) sums to 1 a letter.

    A code is 0 for no phoneme, 1 + p for one, 1 + P + p P + q for two.
    """

    def __init__(self, pairs: Sequence[Pair], rounds: int = 12):
        self.letters = {x: i for i, x in enumerate(sorted({x for word, _ in pairs for x in word}))}
        self.phonemes = {x: i for i, x in enumerate(sorted({x for _, sound in pairs for x in sound}))}
        p = len(self.phonemes)
        self.table = np.full((len(self.letters), 1 + p + p * p), 1 / (1 + p + p * p))
        self.table[:, : 1 + p] *= 100  # two phonemes for one letter are rare
        blocks = list(self._blocks(pairs))
        for _ in range(rounds):
            counts = sum(self._expected(*block) for block in blocks)
            self.table = counts / counts.sum(axis=1, keepdims=True).clip(1e-300)

    def _blocks(self, pairs: Sequence[Pair]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Letters (N, I) and phonemes (N, J) as numbers, of pairs that are alike in both lengths."""
        groups: dict[tuple[int, int], list[Pair]] = {}
        for word, sound in pairs:
            if word and len(sound) <= 2 * len(word):
                groups.setdefault((len(word), len(sound)), []).append((word, sound))
        for group in groups.values():
            yield (
                np.array([[self.letters[x] for x in word] for word, _ in group]),
                np.array([[self.phonemes[x] for x in sound] for _, sound in group], np.int64).reshape(len(group), -1),
            )

    def _codes(self, sounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes of each phoneme (N, J) and of each two neighbours (N, J - 1)."""
        p = len(self.phonemes)
        return 1 + sounds, 1 + p + sounds[:, :-1] * p + sounds[:, 1:]

    def _forward(self, words: np.ndarray, sounds: np.ndarray) -> list[np.ndarray]:
        """(N, J + 1) after each letter: probability of all ways to have read j phonemes."""
        one, two = self._codes(sounds)
        found = [np.zeros((len(words), sounds.shape[1] + 1))]
        found[0][:, 0] = 1
        for letter in words.T[:, :, None]:
            before, now = found[-1], found[-1] * self.table[letter, 0]
            now[:, 1:] += before[:, :-1] * self.table[letter, one]
            now[:, 2:] += before[:, :-2] * self.table[letter, two]
            found.append(now)
        return found

    def _expected(self, words: np.ndarray, sounds: np.ndarray) -> np.ndarray:
        """Expected counts, as `table`."""
        one, two = self._codes(sounds)
        forward = self._forward(words, sounds)
        total = forward[-1][:, -1:]
        counts = np.zeros(self.table.size)
        after = np.zeros_like(forward[0])
        after[:, -1] = np.divide(1, total[:, 0], out=np.zeros(len(words)), where=total[:, 0] > 0)
        for i in range(words.shape[1] - 1, -1, -1):
            letter, before = words[:, i : i + 1], forward[i]
            now = np.zeros_like(after)
            for code, skip in ((np.zeros((len(words), before.shape[1]), int), 0), (one, 1), (two, 2)):
                if not code.shape[1]:
                    continue
                way = self.table[letter, code] * after[:, skip:]
                now[:, : way.shape[1]] += way
                places = np.broadcast_to(letter, code.shape) * self.table.shape[1] + code
                counts += np.bincount(places.ravel(), (before[:, : way.shape[1]] * way).ravel(), counts.size)
            after = now
        return counts.reshape(self.table.shape)

    def best(self, word: str, sound: Sequence[str]) -> list[Graphone] | None:
        """The most likely alignment; None where there is none."""
        table = {0: (0.0, ())}  # phonemes read -> (log-probability, graphones)
        for x in word:
            row, now = np.log(self.table[self.letters[x]].clip(1e-300)), {}
            for j, (score, way) in table.items():
                for k in range(3):
                    part = tuple(sound[j : j + k])
                    if len(part) == k:
                        reached = score + row[self._code(part)]
                        if j + k not in now or reached > now[j + k][0]:
                            now[j + k] = (reached, (*way, (x, part)))
            table = now
        score, way = table.get(len(sound), (-np.inf, ()))
        return list(way) if score > -600 else None

    def _code(self, part: tuple[str, ...]) -> int:
        numbers, p = [self.phonemes[x] for x in part], len(self.phonemes)
        return (0, *(1 + a for a in numbers))[-1] if len(part) < 2 else 1 + p + numbers[0] * p + numbers[1]


class JointNgram:
    """Fitted on (word, phonemes) pairs; a word with several pronunciations is several pairs."""

    def __init__(self, pairs: Sequence[Pair], order: int = 8, rarest: int = 3):
        alignment = Alignment(pairs)
        aligned = [way for way in (alignment.best(word, sound) for word, sound in pairs if word) if way]
        counts = Counter(graphone for way in aligned for graphone in way)
        kept = [g for g, count in counts.most_common() if count >= rarest]
        self.graphones: list[Graphone] = [END, END, *kept]  # 0 is before the word, 1 its end
        number = {g: i for i, g in enumerate(self.graphones)}
        bits = len(self.graphones).bit_length()
        sequences = [np.array([*(number[g] for g in way), 1]) for way in aligned if all(g in number for g in way)]
        self.order = min(order, 64 // bits)
        self.model = KneserNey(sequences, order=self.order, symbols=len(self.graphones) - 1, bits=bits)
        self.of_letter: dict[str, list[int]] = {}
        for i, (letter, _) in enumerate(self.graphones[2:], 2):
            self.of_letter.setdefault(letter, []).append(i)

    def read(self, words: Sequence[str], *, order: int | None = None, beam: int = 8) -> list[str]:
        """Phonemes of each word, by spaces; empty for a word with a letter that training never saw."""
        answers = [""] * len(words)
        groups: dict[int, list[int]] = {}
        for i, word in enumerate(words):
            if word and all(x in self.of_letter for x in word):
                groups.setdefault(len(word), []).append(i)
        for group in groups.values():
            for at in range(0, len(group), 500):
                some = group[at : at + 500]
                for i, way in zip(some, self._search([words[i] for i in some], order or self.order, beam)):
                    answers[i] = " ".join(x for g in way for x in self.graphones[g][1])
        return answers

    def _search(self, words: list[str], order: int, beam: int) -> np.ndarray:
        """Graphones (N, I) of words that are equally long."""
        bits, most = np.uint64(self.model.bits), max(map(len, self.of_letter.values()))
        whole = np.uint64((1 << (self.model.order * self.model.bits)) - 1)
        table = {x: np.pad(np.array(g, np.uint64), (0, most - len(g))) for x, g in self.of_letter.items()}
        keys, scores = np.zeros((len(words), 1), np.uint64), np.zeros((len(words), 1))
        ways = np.zeros((len(words), 1, 0), np.int64)
        for t in range(len(words[0])):
            given = np.stack([table[word[t]] for word in words])[:, None, :]  # (N, 1, C)
            new = ((keys[:, :, None] << bits) & whole) | given  # (N, B, C)
            chance = self.model.probabilities(new.ravel(), order).reshape(new.shape)
            reached = np.where(given > 0, scores[:, :, None] + np.log(chance), -np.inf).reshape(len(words), -1)
            chosen = np.argsort(-reached, axis=1, kind="stable")[:, :beam]
            parents = chosen // most
            keys = np.take_along_axis(new.reshape(len(words), -1), chosen, 1)
            scores = np.take_along_axis(reached, chosen, 1)
            ways = np.take_along_axis(ways, parents[:, :, None], 1)
            ways = np.concatenate(
                [ways, (keys & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)[:, :, None]], 2
            )
        ends = ((keys << bits) & whole) | np.uint64(1)
        scores = scores + np.log(self.model.probabilities(ends.ravel(), order)).reshape(ends.shape)
        return ways[np.arange(len(words)), scores.argmax(axis=1)]
