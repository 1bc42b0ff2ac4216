"""What a network that writes or says hidden words is asked: conversations, choices, a hidden word, networks of the library, text from text."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import luban
from luban.bundle import Bundle
from luban.columns.asked import HIDDEN, MASK, Talk
from luban.columns.chat import prompt
from luban.errors import DataError, RequestError
from luban.huggingface import imported
from luban.nn.networks.preferring import Preferring
from luban.nn.tokens import Batch
from luban.recipe import Recipe
from luban.stages.explain import explain_rows, filling_in, going_on
from luban.stages.explain.going_on import GoingOn
from tests import checkpoints, tiny, writing
from tests.test_chat import CHATML, TALK, chatml, column_of, lines  # noqa: F401, a fixture
from tests.test_masked import masked
from tests.test_preference import PAIRS, network

SAID = [{"role": "user", "content": "is 3 good?"}, {"role": "assistant", "content": "yes"}]


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    path = lines(tmp_path_factory.mktemp("talk") / "c.jsonl")
    return luban.train(path, "messages", size="nano", epochs=1, evaluate=False, model={"messages": {"llama": {"width": 16, "layers": 1, "heads": 2}}})  # fmt: skip


# -- conversations -----------------------------------------------------------------------------------------------------


def test_the_words_of_a_conversation_are_weighed(talker):
    report = talker.explain([{"messages": SAID}], rows=1, tokens=3)
    (row,) = report.numbers["rows"]
    assert row["segments"]["prompt"] == ["is", "3", "good", "?"]  # up to the answer, and no mark of the template
    assert row["answer"] == talker.chat(SAID[:1], temperature=0, tokens=3)
    matrix = row["by_token"]["weights"]
    assert matrix.shape[1] == 4 and report.numbers["error"]["gap_share"] < 0.05
    assert np.abs(matrix.sum(0) - row["weights"]["prompt"]).max() < 0.05 * np.abs(matrix).sum() + 1e-3
    assert "<b>user</b>" in report.to_html()


def test_of_several_turns_all_before_the_last_answer_is_read(talker):
    talk = [*SAID, {"role": "user", "content": "and 4?"}, {"role": "assistant", "content": "no"}]
    (row,) = talker.explain([{"messages": talk}], rows=1, tokens=2, method="lime", samples=32).numbers["rows"]
    assert row["segments"]["prompt"] == ["is", "3", "good", "?", "yes", "and", "4", "?"]
    (open_,) = talker.explain([{"messages": talk[:3]}], rows=1, tokens=2, method="lime", samples=32).numbers["rows"]
    assert open_["segments"] == row["segments"]  # one that waits for its answer
    with pytest.raises(DataError) as e:
        talker.explain([{"messages": SAID[1:]}], rows=1)
    assert e.value.id == "explain.empty_prompt"


def test_what_is_read_is_what_is_answered_to(chatml):  # noqa: F811
    """The ids are those that the model answers to, the template's marks among them; a word that is gone takes none with it."""
    column = column_of(chatml)
    talk = Talk.of(column, "prompt", 100)
    said = column.asked(
        [{"role": r, "content": c} for r, c in (("system", "be good"), ("user", "one two"), ("assistant", "three"))]
    )
    whole = prompt(column, [s._asdict() for s in said])
    assert [column.begin, *talk.encode(said)] == whole.tolist()
    found = talk.segments(said)
    assert found.names == ["be", "good", "one", "two"] and len(found.index) == len(whole) - 1
    gone = talk.ablate(talk.encode(said), found.index, np.array([True, True, False, True]))
    assert {talk.encode(said)[i] for i in np.flatnonzero(gone == HIDDEN)} == {
        talk.encode(said)[i] for i in np.flatnonzero(found.index == 2)
    }
    marks = found.index < 0
    assert marks.sum() >= 6 and (gone[marks] == talk.encode(said)[marks]).all()


def test_a_long_conversation_loses_its_beginning_and_that_is_said(talker, monkeypatch):
    monkeypatch.setattr(going_on, "TALK", 24)
    talk = [{"role": "user", "content": "one two three four five six seven"}]
    report = talker.explain([{"messages": talk}], rows=1, tokens=2, method="lime", samples=32)
    names = report.numbers["rows"][0]["segments"]["prompt"]
    assert 0 < len(names) < 7 and names[-1] == "seven" and "longer than the 24 tokens" in report.to_markdown()


def test_one_that_learned_which_answer_is_better():
    net, column = network()
    plain = Recipe.of(
        {"luban": 1, "outputs": {"text": {"preference": {"beta": 0.3}}}, "model": {"text": "llama"}}
    ).resolved()
    assert isinstance(net, Preferring) and plain.prefers
    report = Bundle(plain, {"text": column}, net).explain([PAIRS[3]], rows=1, tokens=3)
    (row,) = report.numbers["rows"]
    assert row["segments"]["prompt"] == ["is", "3", "good", "?"] and report.numbers["error"]["gap_share"] < 0.1


# -- whole networks of the library -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", checkpoints.FOREIGN)
def test_a_writer_of_the_library_is_explained_by_its_prompt(family):
    made = imported(checkpoints.decoder(family))
    report = made.explain([{"text": "the film was"}, {"text": "one"}], rows=2, tokens=3, attention=True)
    first = report.numbers["rows"][0]
    assert first["answer"] == made.generate("the film was", tokens=3, temperature=0.0)
    assert first["segments"]["prompt"] == ["the", "film", "was"] and report.numbers["error"]["gap_share"] < 0.1
    assert first["attention"][0]["rows"][1].strip() and len(first["attention"][0]["layers"]) == 2


@pytest.mark.parametrize("family", checkpoints.FOREIGN)
@torch.no_grad()
def test_embedded_words_are_read_as_words(family):
    net = imported(checkpoints.decoder(family)).network
    ids = torch.tensor([[3, 7, 12, 5]])
    real = torch.ones_like(ids, dtype=torch.bool)
    plain = net.writer.logits(None, ids, real)
    assert (net.writer.continued(net.writer.embedding(ids), real) - plain).abs().max() < 1e-5
    assert (net.writer.continued(net.writer.embedding(ids.flip(1)), real) - plain).abs().max() > 1e-2


# -- text from text, in one network ------------------------------------------------------------------------------------


def test_one_that_reads_before_it_writes_is_read_so_when_it_comes_back(tmp_path):
    """Exported and imported, what is read stands before the token that begins the answer, as it did when it was learned."""
    given = ("llama", ("en",))
    made = Bundle(
        writing.recipe(*given, before=True), writing.columns(("en",), True), writing.network(*given, before=True)
    )
    made.export("huggingface", out=tmp_path / "hf")
    back = imported(str(tmp_path / "hf"))
    column = back.columns["text"]
    assert column.state["behind"]
    asked = GoingOn(back.network)
    assert asked.first == [] and asked.behind == [column.begin]
    columns, _, values = asked.prompts(["the cat"], 5)
    assert [*values[0]["prompt"], column.begin] == column.prompt("the cat").tolist()
    report = back.explain([{"text": "the cat"}, {"text": "mats"}], rows=2, tokens=6, attention=True)
    first = report.numbers["rows"][0]
    assert first["answer"] == back.generate("the cat", tokens=6, temperature=0.0)
    assert first["segments"]["prompt"] == ["the", "cat"] and first["by_token"]["weights"].shape[1] == 2
    with torch.no_grad():
        answers = torch.tensor([[5, 6, 7], [8, 9, 0]])
        _, _, values = asked.prompts(["the cat sat", "a"], 5)
        x, mask = map(torch.as_tensor, columns["prompt"].collate([v["prompt"] for v in values]))
        found = asked(Batch({"prompt": (x, mask)}, {}, 2).answered("text", answers))["text"]
        for i, v in enumerate(values):
            n = len(v["prompt"])
            ids = torch.tensor([[*v["prompt"].tolist(), column.begin, *answers[i].tolist()]])
            alone = back.network.writer.logits(None, ids, torch.ones_like(ids, dtype=torch.bool))[0, n:-1]
            assert (found[i] - alone).abs().max() < 1e-4
            wrong = back.network.writer.logits(None, ids.roll(1, 1), torch.ones_like(ids, dtype=torch.bool))[0, n:-1]
            assert (found[i] - wrong).abs().max() > 1e-3  # planted fault: begun before the prompt


# -- answers of different lengths, words that look like nothing -----------------------------------------------------------


def test_a_short_answer_beside_a_long_one_is_scored_alone(tmp_path):
    """Behind its end there is nothing to score: a row is explained as it is without the other."""
    made = luban.load(tiny.writer(tmp_path))
    asked, texts = GoingOn(made.network), ["good bad odd", "odd"]
    _, _, values = asked.prompts(texts, 4)
    _, ids = asked.answered(values, 4)
    ids[1, 1:] = -(2**31)
    columns, raw, _ = asked.prompts(texts, 4)
    answers = asked.answered(values, 4)[0]
    both = explain_rows(
        asked, columns, raw, values, [0, 1], method="lime", output="review", given=(answers, ids), samples=16
    )
    alone = explain_rows(asked, columns, raw[1:], values[1:], [1], method="lime", output="review", given=(answers[1:], ids[1:, :1]), samples=16)  # fmt: skip
    assert abs(both.score[1] - alone.score[0]) < 1e-5


@torch.no_grad()
def test_the_second_id_of_a_vocabulary_is_a_word_like_others():
    """What stands for a word that is gone is no id: a language model may have learned all of them."""
    asked = GoingOn(imported(checkpoints.decoder("gpt2")).network)
    x = torch.tensor([[5, 1, 7]])
    h = asked.embed(Batch({"prompt": (x, x > 0)}, {}, 1))["prompt"]
    assert torch.equal(h, asked.writer.embedding(x))
    gone = asked.embed(Batch({"prompt": (torch.tensor([[5, HIDDEN, 7]]), x > 0)}, {}, 1))["prompt"]
    assert torch.allclose(gone[0, 1], asked.writer.embedding.weight[: asked.column.size].mean(0), atol=1e-6)


# -- a hidden word -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader():
    net, column = masked()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3)
    plain = {
        "luban": 1,
        "inputs": {"text": "text"},
        "fusion": {"masked": {}},
        "model": {"text": {"bert": {"width": 16, "layers": 1}}},
    }
    return Bundle(Recipe.of(plain).resolved(), {"text": column}, net.eval())


def test_the_words_around_a_hidden_one_are_weighed(reader):
    report = reader.explain(
        [{"text": "the cat [MASK] on the mat"}, {"text": "a dog and a cat"}], rows=2, attention=True
    )
    first, second = report.numbers["rows"]
    assert first["segments"]["text"] == ["the", "cat", "on", "the", "mat"]
    assert second["segments"]["text"] == ["a", "dog", "a", "cat"]  # the middle one is hidden
    assert report.numbers["error"]["gap_share"] < 0.05 and 0 < first["probability"] <= 1
    assert first["attention"][0]["rows"] == first["attention"][0]["columns"]
    assert MASK in report.to_html() and report.numbers["output"] == filling_in.OUTPUT


def test_another_word_can_be_asked_for(reader):
    (row,) = reader.explain(
        [{"text": "the cat [MASK] on the mat"}], rows=1, target="unbelievably", method="lime", samples=32
    ).numbers["rows"]
    assert row["explained"] == "unbelievably"
    net, column = reader.network, reader.columns["text"]
    ids = column.tokenizer.encode(" unbelievably", add_special_tokens=False).ids
    before, after = (column.tokenizer.encode(t, add_special_tokens=False).ids for t in ("the cat", " on the mat"))
    x = torch.tensor([[*before, *[1] * len(ids), *after]])
    with torch.no_grad():
        states = net.encoders[0](net.encoders[0].embed(x, x > 0), torch.ones_like(x, dtype=torch.bool)).x
        log = net.fusion[0].logits(states)[0, len(before) : len(before) + len(ids)].log_softmax(-1)
    assert abs(row["score"] - float(sum(log[i, t] for i, t in enumerate(ids)))) < 1e-4
    with pytest.raises(RequestError):
        reader.explain([{"text": "the cat"}], rows=1, target=" ")


def test_a_word_of_bert_is_said_as_transformers_says_it():
    import transformers

    folder = checkpoints.folder("bert")
    made = imported(folder)
    (row,) = made.explain([{"text": f"the film {MASK} good"}], rows=1, attention=True).numbers["rows"]
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    column = made.columns["text"]
    ids = [
        *column.state["before"],
        *column.tokenizer.encode("the film", add_special_tokens=False).ids,
        column.state["hide"],
    ]
    ids += [*column.tokenizer.encode(" good", add_special_tokens=False).ids, *column.state["after"]]
    with torch.no_grad():
        log = model(input_ids=torch.tensor([ids])).logits[0, ids.index(column.state["hide"])].log_softmax(-1)
    assert abs(row["score"] - float(log.max())) < 1e-3
    assert row["attention"][0]["rows"][0] == "[CLS]"


def test_a_text_with_nothing_to_hide_is_refused(reader):
    for text in ("", "cat", "!?"):
        with pytest.raises(DataError) as e:
            reader.explain([{"text": text}], rows=1)
        assert e.value.id == "explain.no_place"
    short = replace(reader, columns={"text": replace(reader.columns["text"], length=24)})
    report = short.explain([{"text": " ".join(["the cat"] * 40) + " [MASK] mat"}], rows=1, method="lime", samples=64)
    assert report.numbers["rows"][0]["segments"]["text"][-1] == "mat" and "longer than" in report.to_markdown()
