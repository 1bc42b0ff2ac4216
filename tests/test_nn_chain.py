"""Sums over chains of tags against all paths written out, in torch and in numpy; and that no answer is ever illegal."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.columns.base import Ragged, make
from luban.columns.chain import EXTRA, Potentials
from luban.nn.chain import NEVER, Chain, packed
from luban.nn.heads.tags import TagsHead
from luban.nn.tokens import Tokens
from tests.test_tags_data import is_legal

LENGTHS = torch.tensor([4, 2, 1, 3])


def chain(seed: int, scale: float = 1.0) -> Chain:
    random = torch.Generator().manual_seed(seed)
    normal = lambda *size: torch.randn(*size, generator=random, dtype=torch.double) * scale  # noqa: E731
    after = normal(4, 3, 3)
    after[:, 0, 1] += NEVER
    return Chain(normal(4, 4, 3), torch.arange(4) < LENGTHS[:, None], after, normal(4, 3), normal(4, 3))


def paths(c: Chain, row: int) -> dict[tuple[int, ...], float]:
    """Every path of a row and its sum."""
    found = {}
    for path in itertools.product(range(3), repeat=int(LENGTHS[row])):
        worth = c.first[row, path[0]] + c.last[row, path[-1]]
        worth = worth + sum(c.units[row, i, t] for i, t in enumerate(path))
        found[path] = float(worth + sum(c.after[row, a, b] for a, b in itertools.pairwise(path)))
    return found


def log_sum(values):
    return float(torch.logsumexp(torch.tensor(list(values), dtype=torch.double), 0))


@pytest.mark.parametrize("seed", range(5))
def test_torch_against_all_paths(seed):
    c, other = chain(seed), chain(seed + 100, 0.5)
    fixed = torch.full((4, 4), -1)
    fixed[:, 0] = 1
    fixed[0, 2] = 2
    for row in range(4):
        every = paths(c, row)
        assert float(c.total()[row]) == pytest.approx(log_sum(every.values()))
        path = list(every)[len(every) // 2]
        tags = torch.zeros(4, 4, dtype=torch.long)
        tags[row, : len(path)] = torch.tensor(path)
        assert float(c.path(tags)[row]) == pytest.approx(every[path])
        assert tuple(c.best()[row, : LENGTHS[row]].tolist()) == max(every, key=every.get)
        keeps = lambda p, row=row: p[0] == 1 and (row or p[2] == 2)  # noqa: E731
        sides = [log_sum(v for p, v in every.items() if bool(keeps(p)) == want) for want in (True, False)]
        assert float(c.log_odds(fixed)[row]) == pytest.approx(sides[0] - sides[1])
        mine, theirs = (np.array(list(paths(x, row).values())) for x in (c, other))
        p, q = (x - log_sum(x) for x in (mine, theirs))
        assert float(c.divergence(other)[row]) == pytest.approx((np.exp(p) * (p - q)).sum(), abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_numpy_against_all_paths(seed):
    c = chain(seed)
    units = np.where(c.mask[..., None], c.units, 0.0)
    potentials = Potentials(units, LENGTHS.numpy(), c.after.numpy(), c.first.numpy(), c.last.numpy())
    best, beliefs = potentials.best(), potentials.beliefs()
    for row in range(4):
        every = paths(c, row)
        total, path = log_sum(every.values()), max(every, key=every.get)
        assert tuple(best[row]) == path
        belief = beliefs.row(row)
        assert belief.of_path(np.array(path)) == pytest.approx(np.exp(every[path] - total))
        for start in range(len(path)):
            not_next = np.array([False, True, False])
            want = sum(
                np.exp(v - total)
                for p, v in every.items()
                if p[start] == path[start] and (start + 1 == len(p) or p[start + 1] != 1)
            )
            assert belief.of_stretch(start, np.array(path[start : start + 1]), not_next) == pytest.approx(want)


def test_a_sure_answer_has_finite_odds_and_gradients():
    units = torch.zeros(1, 3, 2)
    units[..., 1] = 200.0
    units.requires_grad_(True)
    nothing = torch.zeros(1, 2)
    c = Chain(units, torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 2, 2), nothing, nothing)
    odds = c.log_odds(torch.ones(1, 3, dtype=torch.long))
    odds.sum().backward()
    assert odds.item() == pytest.approx(200 - np.log(3), abs=1e-3) and torch.isfinite(units.grad).all()


def test_packed_moves_units_to_the_front():
    mask = torch.tensor([[False, True, False, True], [True, False, False, False]])
    at, real = packed(mask)
    assert at[0].tolist() == [1, 3] and at[1, 0] == 0 and real.tolist() == [[True, True], [True, False]]


# -- never an illegal sequence -----------------------------------------------------------------------------------------
def column(scheme: str):
    text = make("t", "text", {"tokens": "words"}).fit(["a b c d e f g h"] * 2)
    tags = {"bio": "B-X I-X O B-Y I-Y", "bioes": "B-X I-X E-X S-X O B-Y I-Y E-Y S-Y"}[scheme]
    words = " ".join("abcdefghi"[: len(tags.split())])
    return make("y", "tags", {"of": "t"}).beside({"t": text}).fit([tags], of=[words])


COLUMNS = {s: column(s) for s in ("bio", "bioes")}


def decoded(made, potentials):
    return made.decode_all(Ragged.of([potentials]))[0].value


@settings(max_examples=150, deadline=None)
@given(
    scheme=st.sampled_from(["bio", "bioes"]),
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(0, 12),
    wild=st.booleans(),
)
def test_whatever_the_network_says_the_answer_is_legal(scheme, seed, length, wild):
    made = COLUMNS[scheme]
    k = len(made.labels)
    potentials = np.random.default_rng(seed).normal(size=(k + EXTRA + length, k)) * (100 if wild else 2)
    tags = decoded(made, potentials)
    assert len(tags) == length and is_legal(tags, made.kind)


def test_control_without_the_rule_an_illegal_sequence_is_seen():
    made = COLUMNS["bio"]
    k = len(made.labels)
    potentials = np.zeros((k + EXTRA + 2, k))
    potentials[k + EXTRA :, made.labels.index("I-X")] = 9.0
    assert decoded(made, potentials) == ["B-X", "I-X"]
    faulty = COLUMNS["bio"].learned()
    everything = (np.ones((k, k), bool), np.ones(k, bool), np.ones(k, bool))
    faulty.__dict__["legal"] = everything  # the planted fault: any tag may follow any
    assert not is_legal(decoded(faulty, potentials), made.kind)


@pytest.mark.parametrize("crf", [False, True])
def test_a_head_alone_or_among_padding_says_the_same(crf):
    torch.manual_seed(0)
    made = COLUMNS["bio"]
    head = TagsHead(made, 6, crf=crf).eval()
    if crf:
        torch.nn.init.normal_(head.order)
    x, mask = torch.randn(2, 5, 6), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    o = head(Tokens(x, mask))
    alone = head(Tokens(x[1:, :3], mask[1:, :3]))
    k = len(made.labels)
    assert torch.allclose(o[1, : k + EXTRA + 3], alone[0]) and not o[1, k + EXTRA + 3 :].any()
    truth = torch.tensor([[1, 2, 1, 3, 1], [1, 2, 3, 0, 0]])
    sums, weight = head.loss(o, truth, truth > 0)
    assert weight.tolist() == [5.0, 3.0]
    assert torch.allclose(sums[1], head.loss(alone, truth[1:, :3], truth[1:, :3] > 0)[0][0])
    assert torch.allclose(head.divergence(o, o), torch.zeros(2), atol=1e-5)
    answers = torch.where(truth > 0, truth, 0)
    assert torch.allclose(head.score(o, answers)[1], head.score(alone, answers[1:, :3])[0], atol=1e-5)
    assert torch.isfinite(sums).all() and (sums > 0).all()
