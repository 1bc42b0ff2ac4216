"""Two texts read in one sequence (a cross-encoder): the arithmetic of moving them together, parity with `transformers`, the whole life."""

import numpy as np
import pytest
import torch

import luban
from luban.columns import checkpoint
from luban.columns.answering import answer
from luban.columns.examples import Arrays, encode
from luban.columns.fitting import fit_columns
from luban.data.prepare import prepare
from luban.data.sources import read
from luban.errors import RecipeError
from luban.nn import joint
from luban.nn.network import Composed
from luban.nn.tokens import Batch
from luban.recipe import Recipe
from luban.training.random import seed_torch
from tests import checkpoints
from tests.test_pairs import rows

INPUTS = {"premise": "text", "hypothesis": "text"}
SMALL = {"transformer": {"width": 32, "layers": 2, "heads": 4, "dropout": 0.0}}


def recipe(base=SMALL, joined="premise", **changes):
    split = {"split": {"validation": 0.0, "test": 0.0}}
    plain = {"luban": 1, "inputs": INPUTS, "outputs": {"same": "category"}, "size": "nano", "data": split}
    return Recipe.of(plain | {"model": {"premise": base, "hypothesis": {"joint": joined}}} | changes).resolved()


def built(asked, some):
    data = prepare(asked, read(some))
    columns = fit_columns(asked, data)
    seed_torch(0, "weights")
    return Composed(asked, columns).eval(), columns, data


def batch_of(columns, asked, data):
    examples = encode(columns, tuple(asked.inputs), (), data.framed(np.arange(data.table.num_rows), asked.frame))
    return examples.arrays(np.arange(len(examples)))


# -- the way together and back ---------------------------------------------------------------------------------------------
def test_texts_move_together_and_back():
    random = np.random.default_rng(0)
    sizes = (5, 1, 7)
    counts = [torch.as_tensor(random.integers(0, s + 1, 40)) for s in sizes]
    index, real, which = joint.together(counts, sizes)
    back, starts = joint.apart(counts, sizes), np.concatenate([[0], np.cumsum(sizes)])
    for r in range(40):
        want = [starts[i] + j for i in range(3) for j in range(int(counts[i][r]))]
        assert index[r][real[r]].tolist() == want and not real[r, len(want) :].any()
        assert which[r][real[r]].tolist() == [i for i in range(3) for _ in range(int(counts[i][r]))]
        assert [int(index[r][back[r, p]]) for p in want] == want


STORY = "a cat sleeps and one dog runs while the horse eats hay and a cow waits for the hen that hides"
TEXTS = [
    {"premise": "a cat sleeps", "hypothesis": "one cat 1", "same": "yes"},
    {"premise": "one dog runs and one dog eats", "hypothesis": "hen", "same": "no"},
    {"premise": "", "hypothesis": "one cat 1 2 3", "same": "yes"},
    {"premise": "horse", "hypothesis": "", "same": "no"},
] * 3


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_a_checkpoint_reads_a_pair_as_transformers_does(family):
    from tokenizers import Tokenizer
    from transformers import AutoModel

    folder = checkpoints.folder(family)
    asked = recipe({"pretrained": {"name": folder}})
    network, columns, data = built(asked, TEXTS)
    arrays = batch_of(columns, asked, data)
    with torch.no_grad():
        (found,) = network.tokens(Batch.of(arrays))
    theirs = AutoModel.from_pretrained(folder).eval()
    theirs = theirs.get_encoder() if family == "t5" else theirs
    tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
    tokenizer.no_truncation()
    typed = network.encoders[0].encoder.typed
    assert typed == (family in ("bert", "electra"))

    def worst(types=True):
        gaps = []
        for i, row in enumerate(data.table.to_pylist()):
            pair = tokenizer.encode(row["premise"] or "", row["hypothesis"] or "")
            told = {"input_ids": torch.tensor([pair.ids])}
            if typed:
                told["token_type_ids"] = torch.tensor([pair.type_ids]) * types
            with torch.no_grad():
                want = theirs(**told)[0][0]
            mine = found.x[i][found.mask[i]]
            assert mine.shape == want.shape
            gaps.append(float((mine - want).abs().max()))
        return max(gaps)

    assert worst() < 1e-4
    assert not typed or worst(types=False) > 1e-3  # planted fault: the texts are not told apart


def test_padding_between_the_texts_changes_nothing():
    asked = recipe()
    network, columns, data = built(asked, TEXTS)
    arrays = batch_of(columns, asked, data)
    wide = {n: (np.pad(x, [(0, 0), (0, 4)]), np.pad(m, [(0, 0), (0, 4)])) for n, (x, m) in arrays.inputs.items()}
    with torch.no_grad():
        one = network(Batch.of(arrays))["same"]
        two = network(Batch.of(Arrays(wide, {}, arrays.size)))["same"]
        apart = torch.cat([network(Batch.of(arrays).take(slice(i, i + 1)))["same"] for i in range(arrays.size)])
    assert torch.allclose(one, two, atol=1e-5) and torch.allclose(one, apart, atol=1e-5)


# -- windows ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("piece", "overlap"), [(8, 3), (8, 0), (5, 2), (64, 8)])
def test_windows_are_what_a_loop_makes_of_them(piece, overlap):
    """Each window of each row through the encoder by itself, by hand; a position's state is its nearest middle's."""
    told = {"joint": {"of": "premise", "overlap": overlap, "window": 8}}
    asked = recipe(model={"premise": SMALL, "hypothesis": told})
    some = [r | {"hypothesis": h} for r, h in zip(TEXTS, [STORY, "a hen", "", STORY + " " + STORY, STORY[:40]] * 3)]
    network, columns, data = built(asked, some)
    reader = network.encoders[0]
    assert (reader.piece, reader.closing) == (8, 1)
    reader.piece, reader.overlap = piece, min(overlap, piece // 2)
    batch = Batch.of(batch_of(columns, asked, data))
    with torch.no_grad():
        (found,) = network.tokens(batch)
        size = batch.inputs["premise"][0].shape[1]
        for i in range(batch.size):
            want = by_hand(reader, batch.take(slice(i, i + 1)), piece, reader.overlap)
            mine = found.x[i, size:][found.mask[i, size:]]
            assert torch.allclose(mine, want, atol=1e-5)
            wrong = by_hand(reader, batch.take(slice(i, i + 1)), piece, reader.overlap, shift=1)
            assert len(mine) <= piece + 1 or not torch.allclose(mine, wrong, atol=1e-3)  # planted fault


def by_hand(reader, one, piece, overlap, shift=0):
    (a, am), (b, bm) = (one.inputs[n] for n in INPUTS)
    first, second = a[am], b[bm]
    content, end = second[:-1], second[-1:]
    step, start, found, middles = piece - overlap, 0, [], []
    while True:
        part = content[start + shift : start + shift + piece]
        ids = torch.cat([first, part, end])[None]
        which = torch.cat([torch.zeros(len(first)), torch.ones(len(part) + 1)]).long()[None]
        e = reader.encoder.embed(ids, ids >= 0) + reader.origin[which]
        found.append(reader.encoder(e, torch.ones_like(ids, dtype=torch.bool)).x[0, len(first) :])
        middles.append(start + (piece - 1) / 2)
        if start + piece >= len(content):
            break
        start += step
    states = []
    for p in range(len(content)):
        k = int(np.floor((p - middles[0]) / step + 0.5))
        k = min(max(k, 0), len(found) - 1)
        states.append(found[k][min(p - k * step, len(found[k]) - 2)])
    return torch.stack([*states, found[-1][-1]])


def test_a_long_text_is_cut_or_read_in_windows_and_either_is_said(capsys):
    long = [r | {"hypothesis": " ".join([STORY] * 4)} for r in TEXTS]
    limit = checkpoint.read(checkpoints.folder("bert"), "x").state["window"]
    cut = recipe({"pretrained": {"name": checkpoints.folder("bert")}})
    columns = built(cut, long)[1]
    window = columns["premise"].state["window"] + columns["hypothesis"].state["window"]
    assert window == limit and columns["hypothesis"].state["cut"] == 1.0
    assert "hypothesis" in capsys.readouterr().err
    told = {"joint": {"of": "premise", "overlap": 8}}
    inputs = INPUTS | {"hypothesis": {"text": {"length": 600}}}
    asked = recipe(
        inputs=inputs, model={"premise": {"pretrained": {"name": checkpoints.folder("bert")}}, "hypothesis": told}
    )
    network, columns, data = built(asked, long)
    said = capsys.readouterr().err
    assert "windows" in said and columns["hypothesis"].state["cut"] == 0.0
    x = batch_of(columns, asked, data).inputs["hypothesis"][0]
    assert x.shape[1] > limit
    reader = network.encoders[0]
    assert columns["premise"].most + reader.piece + reader.closing <= limit


# -- the whole life ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("joint") / "pairs.csv"
    lines = [",".join(r.values()) for r in rows(800)]
    path.write_text("premise,hypothesis,same\n" + "\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def model(csv):
    asked = {"luban": 1, "inputs": INPUTS, "outputs": {"same": "category"}, "size": "nano", "data": {"rows": csv}}
    asked |= {"model": {"premise": SMALL, "hypothesis": {"joint": "premise"}}, "seed": 0}
    return luban.train(asked, epochs=30, rate=0.003, patience=0)


def right(model, count=100):
    asked = rows(count, seed=1)
    return sum(a["same"] == r["same"] for a, r in zip(model.predict(asked), asked)) / count


def test_it_learns_what_one_text_is_to_the_other(model):
    assert right(model) > 0.9
    assert model.recipe.task() == "text-classification"
    words = model.columns["premise"], model.columns["hypothesis"]
    assert words[0].state["after"] == words[1].state["after"] and words[1].state["before"] == []
    assert words[0].state["before"] and words[0].size == words[1].size


def test_saved_explained_compressed(model, tmp_path):
    again = luban.load(model.save(tmp_path / "m"))
    assert again.predict(rows(5)) == model.predict(rows(5))
    assert "hypothesis: {joint: premise}" in again.recipe.yaml()
    found = model.explain(rows(6)[:2], method="integrated-gradients").numbers
    assert {"premise", "hypothesis"} == set(found["columns"]) and min(found["columns"].values()) > 0
    assert all(r["gap_relative"] < 0.05 for r in found["rows"])
    small = model.compress(quantize="int8")
    assert small.bytes() < 0.6 * model.bytes() and right(small) > 0.85
    assert luban.load(small.save(tmp_path / "s")).predict(rows(5)) == small.predict(rows(5))
    student = model.compress(distill="nano", epochs=1)
    assert student.recipe.joined("hypothesis") == "premise"


@pytest.mark.slow
@pytest.mark.parametrize("windows", [False, True])
def test_exported_it_answers_the_same(model, csv, tmp_path, windows):
    pytest.importorskip("onnxruntime")
    from luban.engines import OnnxEngine

    if windows:
        told = {"joint": {"of": "premise", "overlap": 2, "window": 8}}
        asked = {"luban": 1, "inputs": INPUTS, "outputs": {"same": "category"}, "size": "nano", "data": {"rows": csv}}
        model = luban.train(asked | {"model": {"premise": SMALL, "hypothesis": told}}, epochs=1, evaluate=False)
    some = [r | {"hypothesis": r["hypothesis"] + " " + STORY[: i * 9]} for i, r in enumerate(rows(12))]
    path = model.export("onnx", out=tmp_path / "model.onnx", data=some)
    for mine, theirs in zip(model.predict(some), answer(OnnxEngine(path), some)):
        assert theirs.plain()["same.probability.yes"] == pytest.approx(mine["same.probability.yes"], abs=1e-4)


def test_beside_a_number(csv):
    asked = {"luban": 1, "inputs": {**INPUTS, "length": "number"}, "outputs": {"same": "category"}, "size": "nano"}
    asked["model"] = {"premise": "bilstm", "hypothesis": {"joint": "premise"}}
    some = [r | {"length": len(r["premise"])} for r in rows(60)]
    bundle = luban.train(some, "same", types=asked["inputs"], size="nano", epochs=1, model=asked["model"])
    assert bundle.predict(some[:3])[0]["same"] in ("yes", "no")


def test_a_model_that_read_raw_text_begins_it(tmp_path):
    """The reader's vocabulary gets two ids more, and its encoder is taken over."""
    texts = [{"text": r["premise"]} for r in rows(80)] + [{"text": r["hypothesis"]} for r in rows(80)]
    plain = {"luban": 1, "inputs": {"text": "text"}, "size": "nano", "fusion": "masked"}
    bert = {"bert": {"width": 32, "layers": 2, "heads": 2}}
    (tmp_path / "t.jsonl").write_text("\n".join(__import__("json").dumps(t) for t in texts))
    reader = luban.train(plain | {"model": {"text": bert}, "data": {"rows": str(tmp_path / "t.jsonl")}}, epochs=1)
    reader.save(tmp_path / "reader")
    (tmp_path / "p.jsonl").write_text("\n".join(__import__("json").dumps(t) for t in rows(80)))
    names = {"premise": "text", "hypothesis": "text"}
    stages = [{"start": {"source": str(tmp_path / "reader"), "names": {"premise": "text"}}}, {"train": {"epochs": 1}}]
    asked = {"luban": 1, "inputs": INPUTS, "outputs": {"same": "category"}, "size": "nano", "stages": stages}
    asked |= {
        "model": {"premise": bert, "hypothesis": {"joint": "premise"}},
        "data": {"rows": str(tmp_path / "p.jsonl")},
    }
    bundle = luban.run(asked, out=tmp_path / "out")
    assert bundle.history[0]["weights"] == ["premise"] and names
    assert bundle.columns["premise"].size == reader.columns["text"].size + 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"hypothesis": {"joint": "premis"}}}, ["premis", "premise", "model.hypothesis.joint"]),
        ({"model": {"premise": "bag", "hypothesis": {"joint": "premise"}}}, ["bag", "one vector"]),
        ({"model": {"hypothesis": {"joint": {"of": "premise", "overlp": 3}}}}, ["overlp", "overlap"]),
        ({"model": {"hypothesis": {"joint": "premise"}}, "fusion": "match", "outputs": {}}, ["match"]),
        ({"model": {"hypothesis": {"joint": "premise"}}, "fusion": "pair"}, ["pair", "by itself"]),
    ],
)
def test_what_cannot_be_joined_is_refused(changes, words):
    with pytest.raises(RecipeError) as e:
        Recipe.of({"luban": 1, "inputs": INPUTS, "outputs": {"same": "category"}} | changes)
    assert all(w in str(e.value) for w in words)
