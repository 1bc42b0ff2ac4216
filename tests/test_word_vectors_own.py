"""Word vectors learned from one's own text: what they learn, the file they go into, and what else reads it."""

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch

import luban
from luban.columns import word_vectors
from luban.errors import Unsupported
from luban.nn.skip_gram import SkipGram, nearest
from luban.recipe import Recipe

KINDS = {
    "beast": ("cat", "dog", "horse", "sheep", "goat"),
    "metal": ("iron", "gold", "lead", "zinc", "silver"),
    "hue": ("red", "green", "blue", "black", "white"),
}


def texts(count=400, seed=0, mixed=False):
    """Lines about one kind of thing each; `mixed`: the same words without any order."""
    rng = np.random.default_rng(seed)
    every = [w for ws in KINDS.values() for w in ws]
    return [" ".join(rng.choice(every if mixed else KINDS[k], 8)) for k in rng.choice(list(KINDS), count)]


@cache
def learned(mixed=False):
    folder = Path(mkdtemp(prefix="luban-vectors-"))
    (folder / "rows.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts(mixed=mixed)), encoding="utf-8")
    recipe = {
        "luban": 1, "data": {"rows": str(folder / "rows.jsonl")}, "inputs": {"text": {"text": {"tokens": "words"}}}, "outputs": {},
        "fusion": {"skip_gram": {"window": 3, "subsample": 0}}, "model": {"text": {"bag": {"embedding": 12}}}, "size": "nano",
        "stages": [{"train": {"epochs": 12, "batch": 16, "rate": 0.03, "patience": 0}}, "evaluate"],
    }  # fmt: skip
    return luban.train(recipe, out=folder / "m")


def purity(bundle):
    """The share of nearest words that are of the same kind."""
    words = vocabulary(bundle)
    table = bundle.network.fusion[0].table[0].weight.detach()
    kind = {w: k for k, ws in KINDS.items() for w in ws}
    near, _ = nearest(table, torch.arange(2, len(words)), 1)
    return np.mean([kind[words[i + 2]] == kind[words[int(j)]] for i, j in enumerate(near[:, 0])])


def vocabulary(bundle):
    from luban.columns import tokenizer

    return tokenizer.words(bundle.columns["text"].state["tokenizer"])


def test_words_that_stand_together_come_to_lie_together():
    assert purity(learned()) == 1.0
    found = learned().reports["evaluate"].numbers["outputs"]["text"]
    assert found["metrics"]["accuracy"]["value"] > 0.75 > found["baselines"]["unigram"]["accuracy"]["value"]
    page = learned().reports["evaluate"].to_markdown()
    assert "Nearest words" in page and "horse" in page


def test_control_of_words_without_order_nothing_is_learned():
    assert purity(learned(mixed=True)) < 0.7
    found = learned(mixed=True).reports["evaluate"].numbers["outputs"]["text"]
    assert found["metrics"]["accuracy"]["value"] < 0.6


def test_the_file_is_read_by_a_column_and_by_an_independent_reader(tmp_path):
    path = learned().export("word2vec", out=tmp_path / "vectors.txt")
    head, *lines = Path(path).read_text(encoding="utf-8").splitlines()
    assert head == f"{len(lines)} 12" and len(lines) == 15
    table = learned().network.fusion[0].table[0].weight.detach().numpy()
    for line in lines:
        word, *numbers = line.split(" ")
        assert np.allclose(np.array(numbers, float), table[vocabulary(learned()).index(word)], atol=1e-5)
    rows, hits = word_vectors.read(str(path), ["", "?", "cat", "zinc", "unheard"], "c")
    assert hits == 2 and np.allclose(rows[2], table[vocabulary(learned()).index("cat")], atol=1e-5)


def test_another_model_begins_with_them(tmp_path):
    learned().export("word2vec", out=tmp_path / "vectors.txt")
    kind = {w: k for k, ws in KINDS.items() for w in ws}
    rows = [{"said": t, "kind": kind[t.split()[0]]} for t in texts(60, seed=3)]
    recipe = {
        "luban": 1, "inputs": {"said": {"text": {"tokens": "words", "vectors": str(tmp_path / "vectors.txt"), "drop": 0}}}, "outputs": {"kind": "category"},
        "model": {"said": "bag"}, "size": "nano", "stages": [{"train": {"epochs": 1, "rate": 1e-9}}],
    }  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    made = luban.train(recipe | {"data": {"rows": str(tmp_path / "rows.jsonl")}}, evaluate=False)
    words = made.columns["said"].tokenizer.get_vocab()
    mine = made.network.encoder_of("said").form.table.weight.detach().numpy()
    theirs = learned().network.fusion[0].table[0].weight.detach().numpy()
    assert all(
        np.allclose(mine[words[w]], theirs[vocabulary(learned()).index(w)], atol=1e-4) for w in ("cat", "gold", "blue")
    )


def test_saved_it_comes_back_and_another_begins_with_its_encoder(tmp_path):
    again = luban.load(learned().save(tmp_path / "m"))
    assert purity(again) == 1.0 and again.recipe.task() == "feature-extraction"
    with pytest.raises(Unsupported):
        again.explain([{"text": "cat dog"}])


def pairs_loss(fusion, ids):
    """The definition, pair by pair: reach is the whole window, what is drawn is what the fusion draws."""
    x = torch.tensor([ids])
    other, v, u = fusion._drawn(x)[0], fusion.table[0].weight, fusion.near.weight
    total, count = 0.0, 0
    for t, word in enumerate(ids):
        for s, neighbour in enumerate(ids):
            if 0 < abs(s - t) <= fusion.window and word > 1 and neighbour > 1:
                total += float(torch.nn.functional.softplus(-(v[word] @ u[neighbour])))
                total += sum(float(torch.nn.functional.softplus(v[word] @ u[k])) for k in other[t])
                count += 1
    return total, count


def test_the_loss_is_that_of_every_pair():
    fusion = learned().network.fusion[0].eval()
    ids = [3, 5, 1, 7, 2, 9, 4]
    with torch.no_grad():
        x = torch.tensor([[*ids, 0, 0], [2, 3, 0, 0, 0, 0, 0, 0, 0]])
        found = fusion.told(None, x, x > 0)
        total, count = pairs_loss(fusion, [*ids, 0, 0])
    assert found[0, 1] == count and float(found[0, 0]) == pytest.approx(total, rel=1e-4)
    assert found[1, 1] == 2, "padding is nobody's neighbour"
    with torch.no_grad():
        wider = fusion.told(None, x[:, : len(ids)], x[:, : len(ids)] > 0)
    assert wider[0, 0] == pytest.approx(float(found[0, 0]), rel=1e-5), "padding changes nothing"


def test_common_words_are_left_out_more_often():
    fusion = learned().network.fusion[0]
    counts = fusion.counts.clone()
    try:
        fusion.subsample = 0.01
        fusion.counts.zero_()
        fusion.counts[2], fusion.counts[3] = 9900, 100  # 99 % and 1 % of all words
        torch.manual_seed(0)
        x = torch.tensor([[2, 3] * 500])
        y, kept = fusion._thinned(x, torch.ones_like(x, dtype=torch.bool))
        left = [int((y[kept] == i).sum()) for i in (2, 3)]
        assert left[1] == 500 and abs(left[0] / 500 - (0.01 / 0.99) ** 0.5 - 0.01 / 0.99) < 0.06
        assert kept[0].tolist() == sorted(kept[0].tolist(), reverse=True), "what stays moves together"
    finally:
        fusion.counts.copy_(counts)


def test_an_encoder_without_a_table_is_refused():
    class None_:
        name = "text"

    with pytest.raises(Unsupported):
        SkipGram(None_(), torch.nn.Linear(2, 2))
    assert (
        Recipe.of({"luban": 1, "inputs": {"a": "text"}, "outputs": {}, "fusion": "skip_gram"})
        .resolved()
        .encoder("a")
        .type
        == "bag"
    )
