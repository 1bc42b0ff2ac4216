"""Frozen encoders are asked once for each example, and nothing else changes by it."""

import numpy as np
import pytest
import torch

import luban
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
    assert memories[1].computed == memories[1].asked  # nothing was kept
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
