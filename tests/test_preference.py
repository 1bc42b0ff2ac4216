"""Preferences (DPO): the loss by hand, a frozen reference, the chosen answer gains, a resumed run has the same reference."""

import json

import numpy as np
import pytest
import torch

import luban
from luban.columns.preference import Preference
from luban.errors import DataError
from luban.huggingface import imported
from luban.nn.networks.preferring import Preferring
from luban.nn.tokens import Batch
from tests import checkpoints

PAIRS = [
    {"prompt": f"is {i} good?", "chosen": "the film was good", "rejected": "bad, not good at all"} for i in range(40)
]


def network():
    """An imported decoder as a network that prefers, and its column."""
    bundle = imported(checkpoints.decoder("llama-groups"))
    column = bundle.columns["text"].becomes(Preference("text", beta=0.3))
    column = type(column)("text", beta=0.3, state=column.state, length=60)
    plain = bundle.recipe.plain() | {"outputs": {"text": {"preference": {"beta": 0.3}}}, "frame": "row"}
    made = Preferring(luban.recipe.Recipe.of(plain).resolved(), {"text": column})
    made.load_state_dict(bundle.network.state_dict())
    return made.eval(), column


def batch(column, pairs):
    x, mask = column.collate(column.encode_all(pairs))
    return Batch({}, {"text": (torch.as_tensor(x), torch.as_tensor(mask))}, len(pairs))


def log_probability(writer, column, prompt, answer):
    """Of one answer, token by token, with nobody beside it."""
    said = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    from luban.columns.chat import messages, sequence

    places = sequence(column, messages(said, "x"))
    ids = torch.tensor([[p.id for p in places]])
    logits = writer.logits(None, ids[:, :-1], torch.ones_like(ids[:, :-1], dtype=torch.bool))[0].log_softmax(-1)
    return sum(logits[t][p.id] for t, p in enumerate(places[1:]) if p.learned)


@torch.no_grad()
def test_the_loss_is_the_formula_by_hand():
    net, column = network()
    pairs = [PAIRS[0], {"prompt": "one", "chosen": "two", "rejected": "three four five six"}, PAIRS[1]]
    b = batch(column, pairs)
    net.refer()
    (first, weight) = net.loss(net(b), b)["text"]
    assert torch.allclose(first, torch.full((3,), np.log(2), dtype=first.dtype), atol=1e-5) and weight.tolist() == [
        1,
        1,
        1,
    ]
    reference = net.reference[0]
    for p in net.writer.parameters():
        p.add_(torch.randn_like(p) * 0.05)
    loss, _ = net.loss(net(b), b)["text"]
    for i, pair in enumerate(pairs):
        gain = {
            side: log_probability(net.writer, column, pair["prompt"], pair[side])
            - log_probability(reference, column, pair["prompt"], pair[side])
            for side in ("chosen", "rejected")
        }
        by_hand = -torch.nn.functional.logsigmoid(0.3 * (gain["chosen"] - gain["rejected"]))
        assert torch.allclose(loss[i], by_hand, atol=1e-4)
    assert (loss - np.log(2)).abs().max() > 1e-3
    alone = net.loss(net(one := batch(column, pairs[:1])), one)["text"][0]
    assert torch.allclose(alone[0], loss[0], atol=1e-5)  # separable
    net.forget()  # control: without the reference it is another number
    assert (net.loss(net(b), b)["text"][0] - loss).abs().max() > 1e-2


def test_bad_pairs_are_refused_in_a_sentence():
    column = Preference("p", vocabulary=300).fit(PAIRS)
    for value in ({"chosen": "a"}, "text", [], {"chosen": "", "rejected": "b"}):
        with pytest.raises(DataError) as e:
            column.encode(value)
        assert e.value.id == "preference.no_record"
    with pytest.raises(DataError) as e:
        column.encode({"chosen": [{"role": "user", "content": "a"}], "rejected": "b"})
    assert e.value.id == "preference.no_answer" and "chosen" in str(e.value)


def test_the_chosen_answers_gain(tmp_path):
    """From three columns of a file, with LoRA, from an imported model; before and after by log-probability."""
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(p) + "\n" for p in PAIRS))
    before = imported(checkpoints.decoder("llama-groups"))
    before.save(tmp_path / "m")
    recipe = {
        "luban": 1, "data": {"rows": str(data)}, "outputs": {"answer": "preference"}, "size": "nano",
        "stages": [
            {"start": {"source": str(tmp_path / "m"), "names": {"answer": "text"}}},
            {"train": {"epochs": 3, "rate": 0.01, "lora": {"rank": 4}}},
        ],
    }  # fmt: skip
    tuned = luban.train(recipe, out=tmp_path / "tuned", evaluate=False)
    assert tuned.metrics[-1]["validation_loss"] < np.log(2) and tuned.metrics[-1]["validation_preferred"] == 1
    column, again = tuned.columns["answer"], luban.load(tmp_path / "tuned")

    def gap(writer):
        with torch.no_grad():
            return sum(log_probability(writer, column, "is 99 good?", t) * s for t, s in (("the film was good", 1), ("bad, not good at all", -1)))  # fmt: skip

    assert gap(again.network.writer) > gap(before.network.writer) + 1
    assert not again.network.reference and isinstance(again.chat("is 3 good?", tokens=4), str)
    judged = again.evaluate(str(data), baselines=False).numbers["outputs"]["answer"]["metrics"]
    assert judged["perplexity"]["value"] > 1
