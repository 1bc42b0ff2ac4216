"""--from: columns and weights of another model, where inputs and outputs are the same; all is told."""

import numpy as np
import pyarrow as pa
import pytest
import torch

import luban
from luban import pipeline
from luban.errors import BundleError, RequestError

QUICK = {"epochs": 8, "rate": 0.01}
WORDS = ["good", "great", "fine", "bad", "dull", "slow", "film", "plot"]


def table(count, seed, more=(), extra=False):
    rng = np.random.default_rng(seed)
    text = [" ".join(rng.choice([*WORDS, *more], 6)) for _ in range(count)]
    a, c = rng.normal(size=count), rng.choice(["u", "v"], count)
    good = np.array(
        [
            sum(w in ("good", "great", "fine") for w in t.split())
            - sum(w in ("bad", "dull", "slow") for w in t.split())
            for t in text
        ]
    )
    columns = {"text": text, "a": a, "c": c, "y": np.where(good + a + (c == "u") > 0.5, "yes", "no")}
    return pa.table(columns | ({"b": rng.normal(size=count)} if extra else {}))


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    folder = tmp_path_factory.mktemp("before")
    return luban.train(
        table(600, 0), "y", types={"text": "text"}, size="nano", evaluate=False, out=folder, **QUICK
    ), folder


def first_loss(bundle):  # on validation rows: dropout hides what is known already
    return bundle.metrics[0]["validation_loss"]


def test_few_rows_from_a_model(before, capsys):
    earlier, folder = before
    few = table(60, 1, more=["brandnew"])
    ask = {"types": {"text": "text"}, "evaluate": False, "epochs": 2, "rate": 0.001}
    scratch = luban.train(few, "y", size="nano", **ask)
    capsys.readouterr()
    started = luban.train(few, "y", start=folder, **ask)
    said = capsys.readouterr().err
    assert "Taken over" in said and "text" in said and "anew" not in said
    assert started.columns["text"] == earlier.columns["text"] != scratch.columns["text"]
    assert "brandnew" in str(scratch.columns["text"].state["tokenizer"]) and "brandnew" not in str(
        started.columns["text"].state["tokenizer"]
    )
    assert first_loss(started) < 0.8 * first_loss(scratch)
    assert started.recipe.size == "nano" and [h["stage"] for h in started.history][:2] == ["start", "train"]


def test_the_model_it_starts_from_stays_as_it_was(before):
    earlier, _ = before
    weights = {k: v.clone() for k, v in earlier.network.state_dict().items()}
    luban.train(table(60, 1), "y", types={"text": "text"}, start=earlier, evaluate=False, epochs=1)
    assert all(torch.equal(v, weights[k]) for k, v in earlier.network.state_dict().items())


def test_a_new_input_starts_anew_and_is_told(before, capsys):
    earlier, folder = before
    wide = luban.train(
        table(80, 2, extra=True), "y", types={"text": "text"}, start=folder, evaluate=False, epochs=1, rate=1e-9
    )
    said = capsys.readouterr().err
    assert "anew" in said and "b" in said.split("anew: ")[1].split(".")[0]
    old, new = earlier.network, wide.network
    take = lambda n, name: n.encoder_of(name).form  # noqa: E731
    torch.testing.assert_close(take(new, "a").weight[0], take(old, "a").weight[0])
    torch.testing.assert_close(take(new, "text").table.weight, take(old, "text").table.weight)
    torch.testing.assert_close(take(new, "c").table.weight, take(old, "c").table.weight)


def test_an_output_with_a_new_label_is_not_taken(before, capsys):
    rows = table(80, 3)
    third = rows.set_column(3, "y", pa.array([["yes", "no", "perhaps"][i % 3] for i in range(80)]))
    bundle = luban.train(third, "y", types={"text": "text"}, start=before[1], evaluate=False, epochs=1)
    assert bundle.columns["y"].labels == ["no", "perhaps", "yes"] and "anew: y" in capsys.readouterr().err


def test_other_sizes_are_told(before, capsys):
    luban.train(table(60, 1), "y", types={"text": "text"}, size="small", start=before[1], evaluate=False, epochs=1)
    assert "text" in capsys.readouterr().err.split("anew: ")[1].split(".")[0]


def test_resumed_as_it_was_started(before, tmp_path):
    _, folder = before
    pa_table = table(60, 1, more=["brandnew"])
    path = tmp_path / "few.csv"
    path.write_text(
        "\n".join(
            [",".join(pa_table.column_names), *(",".join(map(str, r.values())) for r in pa_table.to_pylist()), ""]
        )
    )
    for i, source in enumerate((folder, luban.load(folder))):
        source = source if i == 0 else pipeline.replace(source, path=None)
        out = tmp_path / f"out{i}"
        first = luban.train(
            str(path),
            "y",
            types={"text": "text"},
            start=source,
            evaluate=False,
            out=out,
            epochs=2,
            checkpoint_seconds=0,
        )
        again = pipeline.resume(out)
        assert again.columns == first.columns == luban.load(out).columns
        assert all(
            torch.equal(a, b) for a, b in zip(first.network.state_dict().values(), again.network.state_dict().values())
        )


def test_no_bundle_is_refused(tmp_path):
    with pytest.raises(BundleError):
        luban.train(table(60, 1), "y", start=tmp_path)


def test_a_start_from_which_nothing_can_be_taken_is_refused(before):
    rows = [{"said": f"word {i % 7}", "size": float(i)} for i in range(40)]
    with pytest.raises(
        RequestError, match=r"its columns are .*text.*, this recipe's said, size.*names: {ours: theirs}"
    ):
        luban.train(rows, "size", types={"said": "text"}, start=before[1], evaluate=False, epochs=1)
