"""Frozen encoders are asked once for each example, and nothing else changes by it."""

import numpy as np
import pytest
import torch

import luban
from luban import machine
from luban.nn.tokens import Tokens
from luban.training import remembering

ENCODER = "model.picture={resnet: {depth: 18, width: 8}}"
ASK = {
    "types": {"picture": "image", "price": "number"},
    "evaluate": False,
    "precision": "fp32",
    "epochs": 3,
    "batch": 8,
}


def rows(count: int = 40) -> list[dict]:
    """Two rows for each picture."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (count // 2, 16, 16, 3), np.uint8)
    return [
        {"picture": pictures[i // 2], "price": float(i % 7), "y": "ab"[i % 7 > int(pictures[i // 2].mean()) % 7]}
        for i in range(count)
    ]


@pytest.fixture
def memories(monkeypatch):
    """What was remembered by every training of the test."""
    found, before = [], remembering.Memory.__init__
    monkeypatch.setattr(remembering.Memory, "__init__", lambda self, e: (before(self, e), found.append(self))[0])
    return found


def trained(encoder: str = ENCODER, **settings):
    asked = ASK | {"augment": False, "freeze": ["picture"]} | settings
    return luban.train(rows(), "y", set=["data.clean.duplicates=keep", encoder], **asked)


def test_each_picture_is_computed_once(memories):
    model = trained()
    (memory,) = memories
    pictures = {r["picture"].tobytes() for r in rows()}
    assert 0 < memory.computed <= len(pictures) and memory.asked > 3 * len(pictures)
    assert "forward" not in vars(model.network.encoder_of("picture"))  # afterwards it computes again


def test_the_model_is_the_same_as_without(memories, monkeypatch):
    first = trained().network.state_dict()
    monkeypatch.setattr(remembering, "ROOM", 0)
    second = trained().network.state_dict()
    assert not memories[1].found and memories[1].computed > 2 * memories[0].computed
    assert all(torch.equal(first[k], second[k]) for k in first)
    monkeypatch.setattr(remembering, "fixed", lambda e: False)
    third = trained().network.state_dict()
    assert len(memories) == 2 and all(torch.allclose(first[k], third[k], atol=1e-4) for k in first)


@pytest.mark.parametrize(
    ("encoder", "settings"),
    [
        (ENCODER, {"freeze": []}),  # it learns
        (ENCODER, {"augment": True}),  # a picture is never the same twice
        (ENCODER, {"mixup": 0.2}),
        ("model.picture={resnet: {depth: 18, width: 8, stochastic_depth: 0.2}}", {}),  # it is never the same itself
        ("model.picture={cnn: {width: 4}}", {}),
    ],
)
def test_where_an_answer_may_change_nothing_is_remembered(memories, encoder, settings):
    trained(encoder, **({"epochs": 1} | settings))
    assert not memories


def test_another_picture_another_precision_another_mask_is_another_thing(memories):
    x, mask = torch.rand(1, 3, 4, 4), torch.ones(1, dtype=torch.bool)
    seen = {remembering._digest(x, mask), remembering._digest(x, ~mask), remembering._digest(x.flip(3), mask)}
    with torch.autocast("cpu", torch.bfloat16):
        seen.add(remembering._digest(x, mask))
    assert len(seen) == 4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_remembered_depends_on_no_neighbour(precision):
    """Alone, in another order, among others, twice in a batch: the same bits, and those of a pass of as many."""
    if precision == "bf16" and not machine.able("cpu"):
        pytest.skip("a processor that computes in bf16")
    network = trained(epochs=1).network.eval()
    encoder, pictures = network.encoder_of("picture"), torch.rand(13, 3, 16, 16)
    mask = torch.ones(13, 1, dtype=torch.bool)
    found = []
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for order in (torch.arange(13), torch.arange(12, -1, -1), torch.tensor([3, 3, *range(13)])):
            memory = remembering.Memory(encoder)
            x = memory(pictures[order], mask[order]).x
            found.append({int(i): x[at] for at, i in enumerate(order)})
            assert memory.computed == 13
        found.append({i: remembering.Memory(encoder)(pictures[i : i + 1], mask[:1]).x[0] for i in range(13)})
        plain = encoder(pictures, mask).x
    assert all(torch.equal(other[i], found[0][i]) for other in found for i in range(13))
    assert all(torch.allclose(found[0][i].float(), plain[i].float(), atol=0.05) for i in range(13))


def test_control_an_encoder_whose_answers_depend_on_their_place_is_asked_one_by_one():
    class Counting(torch.nn.Module):
        def forward(self, x, mask):
            return Tokens(x.flatten(2).mT + torch.arange(len(x))[:, None, None], mask.expand(len(x), 9))

    memory = remembering.Memory(Counting())
    x = memory(torch.zeros(3, 2, 3, 3), torch.ones(3, 1, dtype=torch.bool)).x
    assert memory.together == 1 and torch.equal(x, torch.zeros(3, 9, 2))
