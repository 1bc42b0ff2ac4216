"""An update made in pieces is the update of the whole batch: per token and per example, with several outputs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import luban
from luban.errors import Unsupported
from luban.nn.tokens import Batch
from luban.training import steps
from luban.training.objectives import supervised
from luban.training.plan import Plan
from luban.training.state import State
from tests import tiny


class Tokened(nn.Module):
    """Answers every token (weight: how many there are), and every example that has an answer."""

    separable = True

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.word, self.whole = nn.Embedding(9, 6), nn.Linear(6, 9), nn.Linear(6, 3)

    def forward(self, batch):
        h = torch.tanh(self.table(batch.inputs["x"][0]))
        mask = batch.inputs["x"][1][..., None]
        return {"next": self.word(h), "kind": self.whole((h * mask).sum(1) / mask.sum(1).clamp(min=1))}

    def loss(self, o, batch):
        x, mask = batch.targets["next"]
        tokens = nn.functional.cross_entropy(o["next"].transpose(1, 2), x, reduction="none") * mask
        kind, known = batch.targets["kind"]
        examples = nn.functional.cross_entropy(o["kind"], kind, reduction="none") * known
        return {"next": (tokens.sum(1), mask.sum(1).float()), "kind": (examples, known.float())}


def ragged(size: int = 12) -> Batch:
    torch.manual_seed(1)
    lengths = torch.randint(1, 8, (size,))
    mask = torch.arange(8) < lengths[:, None]
    x = torch.randint(0, 9, (size, 8)) * mask
    known = torch.arange(size) % 3 != 0  # every third answer is missing
    return Batch({"x": (x, mask)}, {"next": (x, mask), "kind": (x[:, 0] % 3, known)}, size, np.arange(size))


def gradient(pieces: int, objective=supervised, step=steps.plain) -> tuple[torch.Tensor, dict]:
    """What stands in the gradients when the update is made, and the numbers of the step."""
    state = State(Tokened(), Plan(epochs=1, batch=12, rate=0.1, accumulate=pieces), total=10)
    seen = []
    state.update = lambda: seen.append(state.flat.clone())
    numbers = step(state, ragged(), objective)
    return seen[0], {n: (float(s), float(w)) for n, (s, w) in numbers.items()}


@pytest.mark.parametrize("pieces", [2, 3, 5, 12, 50])
def test_equals_the_big_batch(pieces):
    """Also by a forward pass for the weights, where the objective cannot tell them."""
    (whole, numbers), (pieced, again) = gradient(1), gradient(pieces)
    assert torch.allclose(whole, pieced, atol=1e-7) and float(whole.abs().max()) > 0.01
    assert again == {n: pytest.approx(v, rel=1e-5) for n, v in numbers.items()}


def test_weights_from_the_truth_are_those_of_the_loss():
    model = tiny.model()
    network = model.network
    batch = tiny_batch(model)
    mine = {n: float(w.sum()) for n, w in network.weights(batch).items()}
    assert mine == {n: float(w.sum()) for n, (_, w) in network.loss(network(batch), batch).items()}


def tiny_batch(model) -> Batch:
    import pyarrow as pa

    from luban.columns.examples import encode

    framed = SimpleNamespace(table=pa.Table.from_pylist(tiny.rows(10)), rows=np.arange(10))
    framed = type("F", (), {"table": framed.table, "rows": framed.rows, "__len__": lambda self: 10})()
    return Batch.of(encode(model.columns, model.inputs, model.outputs, framed).arrays(np.arange(10)))


def test_control_a_mean_of_means_differs():
    """What most loops do: each piece's own mean, averaged. It is not the batch's where pieces have unlike many tokens."""

    def mean_of_means(state, batch, objective):
        pieces = batch.cut(state.pieces)
        for piece in pieces:
            losses = objective(state.network, piece, state.rng())
            whole = {n: (s, w * len(pieces)) for n, (s, w) in steps.summed(losses).items()}
            steps.backward(losses, whole)
        state.update()
        return {}

    whole = gradient(1)[0]
    assert float((gradient(4, step=mean_of_means)[0] - whole).abs().max()) > 1e-3


def test_a_training_in_pieces_ends_where_the_whole_one_does():
    rows, ask = (
        tiny.rows(60),
        {"types": {"review": "text"}, "size": "nano", "epochs": 2, "evaluate": False, "augment": False},
    )
    change = {"set": ["fusion.concat.dropout=0", "model.review.cnn.dropout=0"], "tokens": 0, "precision": "fp32"}
    one = luban.train(rows, "back", batch=16, **ask, **change)
    two = luban.train(rows, "back", batch=4, accumulate=4, **ask, **change)
    a, b = one.network.state_dict(), two.network.state_dict()
    assert (
        all(torch.allclose(a[k], b[k], atol=2e-5) for k in a) and one.history[-1]["steps"] == two.history[-1]["steps"]
    )


@pytest.mark.parametrize("why", ["network", "objective"])
def test_refused_where_examples_depend_on_each_other(why):
    module = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    settings = {"mixup": 0.2} if why == "objective" else {"model": module}
    with pytest.raises(Unsupported) as e:
        luban.train(
            tiny.rows(), "back", inputs=["price"], size="nano", epochs=1, evaluate=False, accumulate=2, **settings
        )
    assert e.value.id == "train.not_separable"
