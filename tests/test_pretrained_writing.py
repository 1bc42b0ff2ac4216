"""Checkpoints that write, through `transformers`: the same logits, the same text side by side as alone, a Bundle that needs nobody."""

import shutil
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch

import luban
from luban.columns.examples import encode_values
from luban.errors import BundleError, RequestError
from luban.generation import writing
from luban.generation.beams import beams
from luban.generation.sampling import Sampling
from luban.generation.writing import Text, Writer, written
from luban.huggingface import imported
from luban.nn.heads import pretrained
from luban.nn.tokens import Batch
from tests import checkpoints

FAMILIES = checkpoints.FOREIGN


def rows(count=80):
    return [{"said": f"one two {i}", "answer": "three" if i % 2 else "four five"} for i in range(count)]


def translator(family="t5", **settings):
    name = checkpoints.folder(family)
    return luban.train(
        rows(), "answer", types={"said": "text", "answer": "text"}, size="nano", evaluate=False, seed=0, **({"epochs": 1} | settings),
        model={"said": {"pretrained": {"name": name}}, "answer": {"pretrained": {"name": name}}},
    )  # fmt: skip


@torch.no_grad()
def reference(folder, ids, most, **given):
    """The likeliest token each, read anew every time: no cache, nobody beside it."""
    import transformers

    kind = transformers.AutoModelForSeq2SeqLM if given else transformers.AutoModelForCausalLM
    model, ids, found = kind.from_pretrained(folder, dtype=torch.float32).eval(), list(ids), []
    for _ in range(most):
        asked = {"decoder_input_ids" if given else "input_ids": torch.tensor([ids])}
        found.append(int(model(**asked, **given).logits[0, -1].argmax()))
        ids.append(found[-1])
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_side_by_side_as_alone_as_in_transformers(family):
    """Prompts of different lengths, one that joins later, rows that leave."""
    folder = checkpoints.decoder(family)
    bundle = imported(folder)
    network, column = bundle.network, bundle.columns["text"]
    prompts = [column.prompt(t).tolist() for t in ("one", "the film was", "bad, not good", "one")]
    texts = [Text(p, most) for p, most in zip(prompts, (5, 3, 6, 4))]
    writer = Writer(network)
    writer.add(texts[:3])
    writer.step()
    writer.add(texts[3:])
    while writer.texts:
        writer.step()
    for text in texts:
        expected = reference(folder, text.prompt, text.most)
        assert text.ids == expected[: len(text.ids)] and (len(text.ids) == text.most or text.ids[-1] in column.stops)
    one = beams(network, Batch({}, {}, 2), 4, 1)
    alone = written(network, [Text([column.begin], 4)])[0]
    assert one[0][0] == one[1][0] == alone.ids
    wide = beams(network, Batch({}, {}, 1), 4, 3)[0]
    assert sum(wide[1]) >= sum(alone.log_probabilities) - 1e-4 or len(wide[0]) < len(alone.ids)


def test_control_rows_that_keep_a_strangers_past(monkeypatch):
    real = pretrained.Group.take

    def mixed(self, places):
        found = real(self, places)
        if found.cache is not None and len(places) < len(self.rows):
            found.cache = real(self, torch.zeros_like(places)).cache
        return found

    monkeypatch.setattr(pretrained.Group, "take", mixed)
    folder = checkpoints.decoder("phi")
    bundle = imported(folder)
    column = bundle.columns["text"]
    texts = [Text(column.prompt(t).tolist(), most) for t, most in (("one film", 2), ("bad film", 8), ("one good", 8))]
    written(bundle.network, texts)
    assert [t.ids for t in texts] != [reference(folder, t.prompt, t.most)[: len(t.ids)] for t in texts]


# -- guesses -----------------------------------------------------------------------------------------------------------
def guessed(network, monkeypatch, batch=None, prompts=None):
    """Texts of different lengths without and with as many guesses as there is room for; how many were read, and were right."""
    column, counts = network.outputs[network.written], [0, 0]
    monkeypatch.setattr(writing, "worth", lambda guesses, most: max(len(ids) for ids, _ in guesses))
    monkeypatch.setitem(column.state, "stops", [-2])  # nothing ends them
    checked = Writer._checked

    def counting(self, logits, guesses):
        right = checked(self, logits, guesses)
        counts[:] = counts[0] + sum(map(len, guesses)), counts[1] + sum(right)
        return right

    monkeypatch.setattr(Writer, "_checked", counting)
    found = []
    for ahead in (0, 8):
        writer = Writer(network, ahead=ahead)
        # a penalty below 0 makes texts repeat themselves
        each = [Sampling(temperature=t, seed=3, frequency_penalty=p) for t, p in ((0.0, -0.5), (1.5, 0.0), (4.0, -0.5))]
        texts = [Text(list(p), 24, s) for p, s in zip(prompts or [[column.begin]] * 3, each)]
        for i, t in enumerate(texts):
            writer.add([t], None if batch is None else batch.take(slice(i, i + 1)))
            writer.step()
        while writer.texts:
            writer.step()
        found.append(texts)
    for a, b in zip(*found):
        assert a.ids == b.ids and np.allclose(a.log_probabilities, b.log_probabilities, atol=1e-4)
    return counts


PROMPTS = ("one one one", "two bad two bad two", "not good")


def causal(family, monkeypatch, **settings):
    folder = Path(mkdtemp(prefix="luban-guesses-")) / family
    network = imported(str(checkpoints.make_decoder(family, folder, **settings))).network
    column = network.outputs["text"]
    return guessed(network, monkeypatch, prompts=[column.prompt(t).tolist() for t in PROMPTS])


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_the_same_with_guesses(family, monkeypatch):
    read, right = causal(family, monkeypatch)
    assert 0 < right < read


@pytest.mark.parametrize("family", ["t5", "marian"])
def test_answers_are_the_same_with_guesses(family, monkeypatch):
    bundle = translator(family)
    examples, _ = encode_values(bundle.columns, ["said"], [{"said": t} for t in PROMPTS])
    read, right = guessed(bundle.network.eval(), monkeypatch, Batch.of(examples.arrays(np.arange(3)), "cpu"))
    assert 0 < right < read


@pytest.mark.parametrize("fault", ["not taken back", "a place too far"])
def test_control_guesses(fault, monkeypatch):
    rewind = pretrained.Group.rewind
    if fault == "not taken back":
        monkeypatch.setattr(pretrained.Group, "rewind", lambda self, length: None)
    else:
        monkeypatch.setattr(pretrained.Group, "rewind", lambda self, length: rewind(self, length + 1))
    with pytest.raises(AssertionError):
        causal("qwen3", monkeypatch)


def test_a_window_that_slides_cannot_go_back(monkeypatch):
    slides = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    assert causal("qwen3", monkeypatch, **slides) == [0, 0]


def test_positions_that_depend_on_the_length_are_not_guessed_beyond(monkeypatch):
    turns = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    assert causal("qwen3", monkeypatch, rope_parameters=turns, max_position_embeddings=16) == [0, 0]


def test_control_positions_that_depend_on_the_length(monkeypatch):
    monkeypatch.setattr(pretrained, "BY_LENGTH", ())
    with pytest.raises(AssertionError):
        test_positions_that_depend_on_the_length_are_not_guessed_beyond(monkeypatch)


def test_texts_of_one_length_are_not_torn_apart():
    bundle = imported(checkpoints.decoder("qwen3"))
    writer, prompt = Writer(bundle.network), bundle.columns["text"].prompt("one one one").tolist()
    writer.add([Text(prompt, 8), Text(prompt, 4)])
    assert bundle.network.verifies and not writer.state.rewinds
    while len(writer.texts) == 2:
        writer.step()
    assert not writer.texts or (len(writer.state.groups) == 1 and writer.state.rewinds)


@pytest.mark.parametrize("family", ["t5", "marian"])
def test_an_encoder_decoder_in_two_halves_is_the_whole_one(family):
    """Its encoder reads the input, its decoder writes: as the untouched network does, before any training."""
    folder = checkpoints.folder(family)
    model = translator(family)
    import transformers

    whole = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)
    halves = model.network.encoders[0].model, model.network.writer.model
    halves[0].load_state_dict(whole.get_encoder().state_dict(), strict=False)
    halves[1].load_state_dict(whole.state_dict(), strict=False)
    source, answer = model.columns["said"], model.columns["answer"]
    x, mask = map(torch.as_tensor, source.collate(source.encode_all(["one two 7", "one"])))
    texts = [Text([answer.begin], 5) for _ in range(2)]
    written(model.network.eval(), texts, Batch({"said": (x, mask)}, {}, 2))
    for i, text in enumerate(texts):
        given = {"input_ids": x[i : i + 1], "attention_mask": mask[i : i + 1].long()}
        assert text.ids == reference(folder, [answer.begin], 5, **given)[: len(text.ids)]


def test_control_an_encoder_whose_embeddings_are_not_scaled_is_another():
    """Marian multiplies embeddings by the root of their size, but not those that it is given."""
    from luban.columns.text import Text as Column
    from luban.nn.encoders.pretrained import Pretrained

    name = checkpoints.folder("marian")
    column = Column("said", tokens_of=name).fit(["one two", "the film was good"])
    encoder = Pretrained([column], name=name).eval()
    assert encoder.scale == 4.0
    x, mask = map(torch.as_tensor, column.collate(column.encode_all(["the film was good", "one"])))
    with torch.no_grad():
        want = encoder.model(input_ids=x, attention_mask=mask.long())[0][mask]
        assert (encoder(encoder.embed(x, mask), mask).x[mask] - want).abs().max() < 1e-5
        encoder.scale = 1.0
        assert (encoder(encoder.embed(x, mask), mask).x[mask] - want).abs().max() > 0.1


def test_a_marian_learns_a_step_and_comes_back(tmp_path):
    tuned = translator("marian", epochs=2, rate=0.1)
    assert tuned.metrics[-1]["loss"] < tuned.metrics[0]["loss"]
    asked = [{"said": "one two 3"}, {"said": "one two 4"}]
    before = tuned.predict(asked)
    assert luban.load(tuned.save(tmp_path / "m")).predict(asked) == before


def test_it_learns_and_needs_nobody(tmp_path):
    given = shutil.copytree(checkpoints.decoder("phi"), tmp_path / "given")
    model = imported(str(given))
    text = model.generate("the film", tokens=6, temperature=0)
    model.save(tmp_path / "m")
    shutil.rmtree(given)
    again = luban.load(tmp_path / "m")
    assert again.generate("the film", tokens=6, temperature=0) == text
    tuned = translator(epochs=3, rate=0.1)
    loss = [m["loss"] for m in tuned.metrics]
    assert loss[-1] < loss[0]
    tuned.save(tmp_path / "t")
    found = luban.load(tmp_path / "t").predict([{"said": "one two 3"}, {"said": "one two 4"}])
    assert [sorted(f) for f in found] == [["answer"], ["answer"]] or all("answer" in f for f in found)


def test_halves_of_two_checkpoints_are_refused():
    with pytest.raises((RequestError, BundleError)) as e:
        luban.train(
            rows(), "answer", types={"said": "text", "answer": "text"}, size="nano", epochs=1, evaluate=False,
            model={"said": "transformer", "answer": {"pretrained": {"name": checkpoints.folder("t5")}}},
        )  # fmt: skip
    assert "features" in str(e.value)
