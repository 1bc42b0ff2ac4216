"""Models that write or read texts behind OpenAI's API: the stock client works, and a neighbour changes nobody's text."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

import luban
from luban import machine
from luban.bundle import Bundle, build_network
from luban.columns.base import make
from luban.errors import Unsupported
from luban.generation import asking
from luban.generation.writing import Writer, searched, searching
from luban.stages.serve.openai.desk import Desk
from tests import tiny
from tests.serving import serving, tiny_bundle

KEY = "a-key"


def client_of(server, **more):
    return openai.OpenAI(base_url=server.url + "/v1", **{"api_key": KEY, "max_retries": 0, "timeout": 30, **more})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.writer(tmp_path_factory.mktemp("openai"))


@pytest.fixture(scope="module")
def bundle(folder):
    return Bundle.load(folder)


@pytest.fixture(scope="module")
def served(folder):
    with serving(folder, api_key=KEY) as (server, client):
        client.headers["authorization"] = f"Bearer {KEY}"
        yield server, client


@pytest.fixture(scope="module")
def stock(served):
    return client_of(served[0])


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    """A text in, a text out."""
    rows = [("one two", "two one"), ("red blue", "blue red"), ("a b", "b a"), ("x y z", "z y x")] * 12
    recipe = {
        "luban": 1,
        "inputs": {"source": "text"},
        "outputs": {"target": {"text": {"vocabulary": 280, "length": 12}}},
        "model": {
            "source": {"transformer": {"width": 16, "layers": 1, "heads": 2}},
            "target": {"llama": {"width": 16, "layers": 1, "heads": 2}},
        },
        "size": "nano",
        "stages": [{"train": {"epochs": 1}}],
        "data": {"rows": str(tmp_path_factory.mktemp("translator") / "rows.csv")},
    }
    Path(recipe["data"]["rows"]).write_text("source,target\n" + "\n".join(f"{a},{b}" for a, b in rows) + "\n")
    return luban.train(recipe, evaluate=False)


# -- the stock client --------------------------------------------------------------------------------------------------


def test_the_stock_client_completes(stock, bundle):
    assert [m.id for m in stock.models.list()] == ["writer"] and stock.models.retrieve("writer").id == "writer"
    for prompt in ("good", "", "odd bad"):
        found = stock.completions.create(model="writer", prompt=prompt, max_tokens=6, temperature=0)
        assert found.choices[0].text == bundle.generate(prompt, tokens=6, temperature=0.0)
        assert found.choices[0].finish_reason in ("length", "stop")
        assert found.usage.completion_tokens <= 6
        assert found.usage.prompt_tokens == len(bundle.columns["review"].prompt(prompt)) - 1


def test_a_stream_is_the_whole_in_pieces(stock, bundle):
    asked = {"model": "writer", "prompt": "good", "max_tokens": 8, "seed": 3, "n": 2}
    whole = stock.completions.create(**asked)
    pieces = list(stock.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    for i in range(2):
        mine = [c for p in pieces for c in p.choices if c.index == i]
        assert "".join(c.text for c in mine) == whole.choices[i].text
        assert [c.finish_reason for c in mine if c.finish_reason] == [whole.choices[i].finish_reason]
    assert pieces[-1].choices == [] and pieces[-1].usage == whole.usage
    assert whole.choices[0].text != whole.choices[1].text
    assert [c.text for c in stock.completions.create(**asked).choices] == [c.text for c in whole.choices]


def test_a_stream_ends_with_the_word_for_it(served):
    _, client = served
    with client.stream("POST", "/v1/completions", json={"prompt": "good", "stream": True}) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in reply.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    assert all(json.loads(line[6:])["object"] == "text_completion" for line in lines[:-1])


def test_settings_of_generation_arrive(stock, bundle):
    greedy = {"model": "writer", "prompt": "good", "max_tokens": 6, "temperature": 0}
    text = stock.completions.create(**greedy).choices[0].text
    word = text[2:4]
    stopped = stock.completions.create(**greedy, stop=[word]).choices[0]
    assert stopped.text == text[: text.find(word)] and stopped.finish_reason == "stop"
    chances = stock.completions.create(**greedy, logprobs=0).choices[0].logprobs
    assert "".join(chances.tokens) == text and all(p <= 0 for p in chances.token_logprobs)
    seeded = {"tokens": 6, "seed": 5, "temperature": 1.5, "top_p": 0.9, "top_k": 40}
    found = stock.completions.create(
        model="writer", prompt="good", max_tokens=6, seed=5, temperature=1.5, top_p=0.9, extra_body={"top_k": 40}
    )
    assert found.choices[0].text == bundle.generate("good", **seeded)
    once = stock.completions.create(**greedy, frequency_penalty=2, presence_penalty=2, logprobs=0).choices[0].logprobs
    assert len(set(once.tokens)) > len(set(chances.tokens))


def test_several_prompts(stock, bundle):
    found = stock.completions.create(model="writer", prompt=["good", "bad"], max_tokens=4, temperature=0, n=2)
    wanted = [bundle.generate(p, tokens=4, temperature=0.0) for p in ("good", "good", "bad", "bad")]
    assert [c.text for c in found.choices] == wanted and [c.index for c in found.choices] == [0, 1, 2, 3]


SEARCH = {"use_beam_search": True, "best_of": 3}  # vLLM's names


def test_a_search_over_http_is_the_search_of_generate(stock, bundle, translator):
    for prompt in ("good", "odd bad"):
        found = stock.completions.create(model="writer", prompt=prompt, max_tokens=6, logprobs=0, extra_body=SEARCH)
        (wanted,) = asking.generate(bundle, [prompt], tokens=6, temperature=0.0, beams=3)[0]
        assert found.choices[0].text == wanted.text and found.choices[0].finish_reason in ("length", "stop")
        assert found.choices[0].logprobs.token_logprobs == pytest.approx(wanted.log_probabilities, abs=1e-4)
    with serving(translator) as (server, _):
        model = client_of(server).models.list().data[0].id
        asked = {"model": model, "prompt": ["one two", "a b"], "temperature": 0}
        found = client_of(server).completions.create(**asked, max_tokens=100, extra_body=SEARCH)
        wanted = [translator.generate(p, temperature=0.0, beams=3) for p in asked["prompt"]]
        assert [c.text for c in found.choices] == wanted


def search_beside(folder, monkeypatch, search):
    """A long search and a short text side by side: both are what they are alone. How many texts were written at each pause of the
    search, itself aside."""
    slow(monkeypatch, 0.03)
    beside, alone = [], Bundle.load(folder)
    with serving(folder, batch=5) as (server, _), ThreadPoolExecutor(2) as pool:
        desk, stock = server.service.desk, client_of(server)

        def watched(*asked):
            for _ in search(*asked):
                beside.append(len(desk.inside) - 1)
                yield

        monkeypatch.setattr("luban.stages.serve.openai.desk.searching", watched)
        long = pool.submit(stock.completions.create, model="writer", prompt="good", max_tokens=60, extra_body=SEARCH)
        while not desk.inside and not long.done():
            time.sleep(0.005)
        short = stock.completions.create(model="writer", prompt="bad", max_tokens=2, temperature=0)
        assert short.choices[0].text == alone.generate("bad", tokens=2, temperature=0.0)
        assert long.result().choices[0].text == alone.generate("good", tokens=60, temperature=0.0, beams=3)
    return beside


def test_a_search_keeps_nobody_waiting(folder, monkeypatch):
    assert 1 in search_beside(folder, monkeypatch, searching)


def test_control_a_search_that_does_not_pause_is_seen(folder, monkeypatch):
    def whole(*asked):
        searched(*asked)
        yield

    assert 1 not in search_beside(folder, monkeypatch, whole)


def test_a_model_without_a_template_says_so(stock):
    with pytest.raises(openai.BadRequestError) as e:
        stock.chat.completions.create(model="writer", messages=[{"role": "user", "content": "hello"}])
    assert e.value.code == "serve.openai.no_chat" and "/v1/completions" in e.value.message


def test_a_column_that_knows_how_chats(folder, monkeypatch):
    """The seam: whatever the column makes of the messages is the prompt."""
    bundle = Bundle.load(folder)
    kind = type(bundle.columns["review"])
    monkeypatch.setattr(kind, "chat", lambda self, said: self.prompt(said[-1]["content"]), raising=False)
    wanted = bundle.generate("good", tokens=5, temperature=0.0)
    with serving(bundle) as (server, _):
        stock, said = client_of(server), [{"role": "user", "content": "good"}]
        asked = {"model": "writer", "messages": said, "max_completion_tokens": 5, "temperature": 0}
        found = stock.chat.completions.create(**asked, logprobs=True).choices[0]
        assert found.message.content == wanted and found.message.role == "assistant"
        assert "".join(c.token for c in found.logprobs.content) == wanted
        deltas = [p.choices[0].delta for p in stock.chat.completions.create(**asked, stream=True)]
        assert deltas[0].role == "assistant" and "".join(d.content or "" for d in deltas) == wanted


def test_an_answer_to_an_input(translator):
    with serving(translator) as (server, client):
        stock = client_of(server)
        found = stock.completions.create(model="model", prompt=["one two", "", "a b"], max_tokens=5, temperature=0)
        wanted = [translator.generate(p, tokens=5, temperature=0.0) for p in ("one two", "", "a b")]
        assert [c.text for c in found.choices] == wanted
        rows = client.post("/predict", json={"rows": [{"source": "one two"}]}).json()["rows"]
        assert rows[0]["answers"]["target"]["value"] == translator.predict([{"source": "one two"}])[0]["target"]
        assert len(stock.embeddings.create(model="model", input="one two").data[0].embedding) == 16


def test_an_input_that_is_too_long_is_refused_not_cut(translator):
    with serving(translator) as (_, client):
        for prompt in ("one two " * 300, "one " * 100_000):
            reply = client.post("/v1/completions", json={"prompt": prompt})
            error = reply.json()["error"]
            assert reply.status_code == 400 and error["code"] == "context_length_exceeded", reply.text
        room = translator.columns["source"].room
        most = client.post("/v1/completions", json={"prompt": " ".join(["one"] * room), "max_tokens": 1}).json()
        assert most["usage"]["prompt_tokens"] == room
        assert client.post("/v1/completions", json={"prompt": " ".join(["one"] * (room + 1))}).status_code == 400


# -- conversations -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talking():
    """A model that chats, its weights drawn with a fixed seed."""
    import torch

    recipe = luban.Recipe.of({
        "luban": 1, "outputs": {"talk": {"chat": {"vocabulary": 300, "length": 128, "least": 1}}}, "size": "nano",
        "model": {"talk": {"llama": {"width": 16, "layers": 1, "heads": 2}}},
    }).resolved()  # fmt: skip
    part = recipe.outputs["talk"]
    said = [{"role": "user", "content": "who sees the sea"}, {"role": "assistant", "content": "the king sees the sea"}]
    columns = {"talk": make("talk", part.type, dict(part.settings)).fit([said] * 4)}
    torch.manual_seed(7)
    return Bundle(recipe, columns, build_network(recipe, columns).eval())


@pytest.fixture(scope="module")
def answering(talking):
    with serving(talking) as (server, client):
        yield client_of(server), client


SAID = [{"role": "system", "content": "be good\nand brief"}, {"role": "user", "content": "the king"}]
PARTS = [
    {"role": "developer", "content": [{"type": "text", "text": "be good"}, {"type": "text", "text": "and brief"}]},
    {"role": "user", "content": [{"type": "text", "text": "the king"}]},
]


@pytest.mark.parametrize("said", [SAID, PARTS], ids=["plain", "parts"])
def test_a_model_that_chats_answers_the_stock_client(talking, answering, said):
    wanted = talking.chat(SAID, tokens=6, temperature=0.0)
    asked = {"model": "model", "messages": said, "max_completion_tokens": 6, "temperature": 0}
    whole = answering[0].chat.completions.create(**asked, response_format={"type": "text"})
    assert whole.choices[0].message.content == wanted and whole.choices[0].message.role == "assistant"
    pieces = list(answering[0].chat.completions.create(**asked, stream=True))
    assert "".join(c.delta.content or "" for p in pieces for c in p.choices) == wanted
    back = [*SAID, whole.choices[0].message.model_dump(), SAID[1]]  # as a client keeps what was said
    assert answering[0].chat.completions.create(**asked | {"messages": back}).choices


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ({"content": [{"type": "image_url", "image_url": {"url": "data:"}}]}, "messages[0].content[0]"),
        ({"content": ["good"]}, "messages[0].content[0]"),
        ({"content": 5}, "messages[0].content"),
        ({"tool_calls": [{"id": "1"}]}, "messages[0].tool_calls"),
        ({"role": ["user"]}, "messages[0].role"),
    ],
    ids=str,
)
def test_what_is_no_text_in_a_message_is_refused_with_its_place(answering, more, place):
    asked = {"messages": [{"role": "user", "content": "good"} | more]}
    reply = answering[1].post("/v1/chat/completions", json=asked)
    assert reply.status_code == 400 and reply.json()["error"]["param"] == place, reply.text
    other = {"messages": SAID, "response_format": {"type": "json_object"}}
    assert answering[1].post("/v1/chat/completions", json=other).json()["error"]["param"] == "response_format"


def test_a_language_model_explains_what_it_goes_on_with(served, bundle):
    asked = {"rows": [{"review": "good bad"}], "method": "integrated-gradients"}
    reply = served[1].post("/explain", json=asked)
    assert reply.status_code == 200, reply.text
    found = bundle.explain([{"review": "good bad"}], rows=1).to_json()["numbers"]
    assert reply.json()["rows"] == json.loads(json.dumps(found))["rows"]
    paths = served[1].get("/openapi.json").json()
    assert "/explain" in paths["paths"] and "/predict" not in paths["paths"]
    assert list(paths["components"]["schemas"]["Row"]["properties"]) == ["review"]
    for row in ({}, {"text": "good"}, {"review": ""}, {"review": None}, {"review": 5}):
        reply = served[1].post("/explain", json={"rows": [row]})
        assert reply.status_code == (200 if row == {"review": 5} else 422) and "Error" not in reply.text, reply.text


def test_where_a_language_model_looked_is_told_over_http(served, bundle):
    asked = {"rows": [{"review": "good bad"}], "method": "lime", "attention": True}
    reply = served[1].post("/explain", json=asked)
    assert reply.status_code == 200, reply.text
    found = bundle.explain([{"review": "good bad"}], rows=1, method="lime", attention=True).to_json()["numbers"]
    (look,) = reply.json()["rows"][0]["attention"]
    assert look["columns"] and reply.json() == json.loads(json.dumps(found))
    assert "attention" not in served[1].post("/explain", json=asked | {"attention": False}).json()["rows"][0]
    for wrong in ("yes", 1, None, [True]):
        reply = served[1].post("/explain", json=asked | {"attention": wrong})
        assert reply.status_code == 422 and reply.json()["error"]["place"] == "attention", reply.text


@pytest.mark.parametrize("kind", ["talking", "imported"])
def test_a_search_for_the_answer_to_a_conversation(kind, request):
    model = request.getfixturevalue(kind)
    (wanted,) = asking.generate(model, [SAID], tokens=6, temperature=0.0, beams=3)[0]
    asked = {"model": "model", "messages": SAID, "max_completion_tokens": 6}
    with serving(model) as (server, client):
        found = client_of(server).chat.completions.create(**asked, logprobs=True, extra_body=SEARCH)
        plain = client_of(server).chat.completions.create(**asked, temperature=0, logprobs=True)
        long = client_of(server).chat.completions.create(model="model", messages=SAID, extra_body=SEARCH)
        odd = [client.post("/v1/chat/completions", json={**asked, **SEARCH, **more}) for more in ODD]
    (choice,) = found.choices
    assert choice.message.content == wanted.text and choice.message.role == "assistant"
    chances = [c.logprob for c in choice.logprobs.content]
    assert chances == pytest.approx(wanted.log_probabilities, abs=1e-4)
    likeliest = [c.logprob for c in plain.choices[0].logprobs.content]
    assert sum(chances) / len(chances) >= sum(likeliest) / len(likeliest) - 1e-4
    assert found.usage.completion_tokens == len(wanted.ids) and long.choices[0].finish_reason in ("length", "stop")
    for reply, more in zip(odd, ODD):
        assert reply.status_code == 400 and reply.json()["error"]["param"] == next(iter(more)), reply.text


ODD = ({"stream": True}, {"n": 2}, {"temperature": 1}, {"best_of": 33}, {"presence_penalty": 1})


@pytest.fixture(scope="module")
def imported(talking):
    """The same network as an imported one has it: it writes texts, and knows a template."""
    recipe = {"luban": 1, "outputs": {"talk": {"text": {"vocabulary": 300, "length": 128}}}, "size": "nano"}
    text = make("talk", "text", dict(luban.Recipe.of(recipe).resolved().outputs["talk"].settings))
    column = text.learned(**talking.columns["talk"].state)
    return Bundle(
        luban.Recipe.of(recipe | {"model": talking.recipe.plain()["model"]}).resolved(),
        {"talk": column},
        rebuilt(talking, column),
    )


def rebuilt(bundle, column):
    network = bundle.copy_network()
    network.outputs = {"talk": column}
    return network


ANSWERED = [*SAID, {"role": "assistant", "content": "long live"}]


@pytest.mark.parametrize("kind", ["talking", "imported"])
def test_a_conversation_is_explained_over_http(kind, request):
    """Of a model that learned from conversations, and of one that writes texts and knows how conversations look."""
    model, asked = (
        request.getfixturevalue(kind),
        {"rows": [{"messages": ANSWERED}], "method": "lime", "attention": True},
    )
    with serving(model) as (_, client):
        reply = client.post("/explain", json=asked)
        document = client.get("/openapi.json").json()
        own = client.post(
            "/explain", json={"rows": [{"talk": "the king" if kind == "imported" else SAID}], "method": "lime"}
        )
    assert reply.status_code == own.status_code == 200, reply.text + own.text
    (row,) = reply.json()["rows"]
    assert row["segments"]["prompt"] == ["be", "good", "and", "brief", "the", "king"] and row["attention"]
    assert row["answer"] == model.chat(SAID, tokens=20, temperature=0.0)
    alone = model.generate("the king", tokens=20, temperature=0.0) if kind == "imported" else row["answer"]
    assert own.json()["rows"][0]["answer"] == alone
    found = model.explain(asked["rows"], method="lime", attention=True).to_json()["numbers"]
    assert reply.json()["rows"] == json.loads(json.dumps(found))["rows"]
    assert "/explain" in document["paths"] and "messages" in document["components"]["schemas"]["Talk"]["properties"]


@pytest.mark.parametrize(
    "rows, said",
    [
        ([{"messages": []}], "messages"),
        ([{"messages": [{"role": "cook", "content": "soup"}]}], "cook"),
        ([{"messages": SAID}, {"messages": [{"role": "cook", "content": "soup"}]}], "rows[1]"),
        ([{"messages": SAID}, {"talk": "the king"}], "rows[1].messages"),
        ([{"messages": SAID, "talk": "the king"}], "messages"),
    ],
)
def test_what_is_no_conversation_is_not_explained(imported, rows, said):
    with serving(imported) as (_, client):
        reply = client.post("/explain", json={"rows": rows})
    assert reply.status_code == 422 and said in reply.text and "Error" not in reply.text, reply.text


def test_embeddings():
    bundle = tiny_bundle(("age", "note"))
    with serving(bundle) as (server, client):
        stock = client_of(server)
        texts = ["a quiet street", "loud", "a quiet street"]
        found = stock.embeddings.create(model="model", input=texts)
        plain = client.post("/v1/embeddings", json={"input": texts}).json()
        rows = [d.embedding for d in found.data]
        assert rows[0] == rows[2] != rows[1] and found.usage.prompt_tokens > 3
        assert [d["embedding"] for d in plain["data"]] == [pytest.approx(r, abs=1e-6) for r in rows]
        one = stock.embeddings.create(model="model", input="loud").data[0].embedding
        assert one == pytest.approx(rows[1], abs=1e-5)
        assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 404


def test_vectors_that_were_learned_from_pairs(tmp_path):
    (tmp_path / "rows.csv").write_text("q,a\n" + "".join(f"red {w} one,blue {w} two\n" for w in "abcdefgh" * 4))
    recipe = {
        "luban": 1,
        "data": {"rows": str(tmp_path / "rows.csv")},
        "inputs": {"q": "text", "a": "text"},
        "model": {"q": {"bag": {"embedding": 8}}, "a": {"share": "q"}},
        "fusion": "match",
        "size": "nano",
    }
    model = luban.train(recipe, epochs=1, evaluate=False)
    with serving(model) as (server, client):
        found = client_of(server).embeddings.create(model="model", input=["red one", "two"])
        wanted = model.embed(["red one", "two"])
        for one, v in zip(found.data, wanted):
            assert one.embedding == pytest.approx(v.tolist(), abs=1e-6)
        reply = client.post("/predict", json={"q": "red", "a": "blue"})
        assert reply.status_code == 404 and reply.json()["error"]["id"] == "serve.answers_nothing"
        assert not {"/predict", "/explain"} & set(client.get("/openapi.json").json()["paths"])


def test_a_quantised_writer_is_served(bundle):
    small = bundle.compress(quantize="int8", resamples=20)
    with serving(small) as (server, _):
        found = client_of(server).completions.create(model="writer", prompt="good", max_tokens=6, temperature=0)
    assert found.choices[0].text == small.generate("good", tokens=6, temperature=0.0)


# -- side by side ----------------------------------------------------------------------------------------------------------

PROMPTS = ["good", "", "bad odd", "odd", "good bad odd good", "bad"]


def joined(folder):
    """Texts of requests that come while others are written, and of the same requests alone."""
    with serving(folder) as (server, _):
        stock = client_of(server)

        def ask(i):
            time.sleep(0.01 * i)
            asked = {"model": "writer", "prompt": PROMPTS[i], "max_tokens": 30, "temperature": 0.8, "seed": i}
            return stock.completions.create(**asked).choices[0].text

        alone = [ask(i) for i in range(len(PROMPTS))]
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            together = list(pool.map(ask, range(len(PROMPTS))))
    return alone, together


def slow(monkeypatch, seconds=0.01, ahead=True):
    """Every token takes a while, so that requests meet. Gives the greatest number of texts that were written at once. `ahead`: with
    guesses, a text that repeats itself is soon done."""
    step, most = Writer.step, [0]

    def slowly(self):
        most[0] = max(most[0], len(self.texts))
        time.sleep(seconds)
        self.ahead = self.ahead if ahead else 0
        return step(self)

    monkeypatch.setattr(Writer, "step", slowly)
    return most


def test_a_request_that_joins_gets_what_it_gets_alone(folder, monkeypatch):
    most = slow(monkeypatch)
    alone, together = joined(folder)
    assert alone == together and most[0] >= 4


def test_control_neighbours_that_are_mixed_up_are_seen(folder, monkeypatch):
    """The newest text's first token goes to the front, its state to the end."""
    slow(monkeypatch)
    add = Writer.add

    def mixed(self, texts, batch=None):
        add(self, texts, batch)
        self.next = [self.next[-1], *self.next[:-1]]

    monkeypatch.setattr(Writer, "add", mixed)
    alone, together = joined(folder)
    assert alone != together


def test_a_client_that_goes_makes_room(folder, monkeypatch):
    slow(monkeypatch, 0.08, ahead=False)
    with serving(folder, batch=1) as (server, client):
        desk = server.service.desk
        for stream in (True, False):
            asked = {"prompt": "good", "max_tokens": 100, "stream": stream}
            if stream:
                with httpx.stream("POST", server.url + "/v1/completions", json=asked, timeout=30) as reply:
                    next(reply.iter_lines())
                    assert len(desk.inside) == 1
            else:
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(server.url + "/v1/completions", json=asked, timeout=0.3)
            until = time.monotonic() + 5
            while desk.inside and time.monotonic() < until:
                time.sleep(0.01)
            assert not desk.inside and time.monotonic() < until
        assert server.service.metrics.dropped == 2
        assert client.post("/v1/completions", json={"prompt": "good", "max_tokens": 2}).status_code == 200


def test_control_a_desk_that_does_not_let_go_is_seen(folder, monkeypatch):
    slow(monkeypatch, 0.3)  # the text itself would take long
    monkeypatch.setattr(Desk, "leave", lambda self, order: None)
    with serving(folder, batch=1) as (server, _):
        with httpx.stream("POST", server.url + "/v1/completions", json={"max_tokens": 100, "stream": True}) as reply:
            next(reply.iter_lines())
        time.sleep(0.3)
        assert server.service.desk.inside


def test_limits(folder, monkeypatch):
    slow(monkeypatch, 0.15, ahead=False)
    with serving(folder, batch=1, queue=2, deadline=1.0) as (server, _):
        stock = client_of(server)
        pool = ThreadPoolExecutor(4)
        first = pool.submit(
            stock.completions.create, model="writer", prompt="", max_tokens=100, extra_body={"temperature": 0}
        )
        time.sleep(0.2)
        second = pool.submit(stock.completions.create, model="writer", prompt="", max_tokens=5)
        time.sleep(0.1)
        with pytest.raises(openai.RateLimitError) as e:
            stock.completions.create(model="writer", prompt="")
        assert e.value.code == "rate_limit_exceeded" and int(e.value.response.headers["retry-after"]) >= 1
        for waiting, status, id in ((first, 504, "serve.too_slow"), (second, 503, "serve.no_time")):
            with pytest.raises(openai.InternalServerError) as e:
                waiting.result()
            if waiting is first:
                assert e.value.status_code == status and e.value.code == id
        # a stream that runs out of time says so in its last piece
        with pytest.raises(openai.APIError) as e:
            list(stock.completions.create(model="writer", prompt="", max_tokens=100, temperature=0, stream=True))
        assert "1.0 seconds" in str(e.value)
        pool.shutdown()


def test_a_stop_answers_what_was_accepted(folder, monkeypatch):
    slow(monkeypatch, 0.03, ahead=False)
    with serving(folder) as (server, _):
        stock = client_of(server)
        with ThreadPoolExecutor(2) as pool:
            inside = pool.submit(stock.completions.create, model="writer", prompt="", max_tokens=30, temperature=0)
            until = time.monotonic() + 5
            while not server.service.desk.inside and time.monotonic() < until:
                time.sleep(0.005)
            server.stop()
            with pytest.raises(openai.InternalServerError) as e:
                stock.completions.create(model="writer", prompt="")
            assert e.value.status_code == 503 and e.value.code == "serve.draining"
            assert inside.result().choices[0].finish_reason
    assert not server.service.desk.thread.is_alive()


def test_a_failing_network_fails_one_request_and_stays(folder, monkeypatch, capfd):
    with serving(folder) as (_, client):
        real = Writer.step
        monkeypatch.setattr(Writer, "step", lambda self: 1 / 0)
        reply = client.post("/v1/completions", json={"prompt": "good"})
        assert reply.status_code == 500 and reply.json()["error"]["type"] == "server_error"
        monkeypatch.setattr(Writer, "step", real)
        assert client.post("/v1/completions", json={"prompt": "good"}).status_code == 200
    assert "ZeroDivisionError" in capfd.readouterr().err


# -- bad requests ------------------------------------------------------------------------------------------------------------


def test_a_wrong_key(served):
    with pytest.raises(openai.AuthenticationError) as e:
        client_of(served[0], api_key="another").models.list()
    assert e.value.code == "invalid_api_key" and "\n" not in e.value.message


def test_another_model(stock):
    for ask in (lambda: stock.completions.create(model="gpt-4", prompt=""), lambda: stock.models.retrieve("gpt-4")):
        with pytest.raises(openai.NotFoundError) as e:
            ask()
        assert e.value.code == "model_not_found" and "writer" in e.value.message


BAD = [
    ({"prompt": "good " * 2000}, "prompt"),
    ({"prompt": 3}, "prompt"),
    ({"prompt": [1, 2]}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ["a"] * 40}, "prompt"),
    ({"prompt": "\ud800 good"}, "body"),
    ({"prompt": "\x00"}, "body"),
    ({"model": "\ud800"}, "body"),
    ({"prompt": "good"} | {"\x07": 1}, "body"),
    ({"n": 0}, "n"),
    ({"n": 1000}, "n"),
    ({"n": 10**30}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**64}, "seed"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"logprobs": 5}, "logprobs"),
    ({"logprobs": 0, "stream": True}, "logprobs"),
    ({"stop": ["a"] * 20}, "stop"),
    ({"stream": "yes"}, "stream"),
    ({"echo": True}, "echo"),
    ({"best_of": 4}, "best_of"),
    ({"use_beam_search": True}, "best_of"),
    ({"use_beam_search": True, "best_of": 65}, "best_of"),
    ({"use_beam_search": True, "best_of": 64}, "best_of"),
    ({"use_beam_search": True, "best_of": 2, "stream": True}, "stream"),
    ({"use_beam_search": True, "best_of": 2, "temperature": 0.5}, "temperature"),
    ({"use_beam_search": True, "best_of": 2, "n": 2}, "n"),
    ({"use_beam_search": True, "best_of": 2, "presence_penalty": 1}, "presence_penalty"),
    ({"use_beam_search": "yes"}, "use_beam_search"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"promt": "good"}, "body"),
    ([], "body"),
    ("good", "body"),
]


@pytest.mark.parametrize(("body", "place"), BAD, ids=str)
def test_bad_requests_are_one_sentence(served, body, place):
    reply = served[1].post("/v1/completions", content=json.dumps(body), headers={"content-type": "application/json"})
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["param"] == place, reply.text
    assert error["type"] == "invalid_request_error" and error["message"] and "\n" not in error["message"]


GOOD = [
    {"prompt": "\x07 \u202e good"},
    {"prompt": None, "temperature": None, "user": "me", "echo": False, "logit_bias": {}, "tools": None},
    {"prompt": "", "max_tokens": 10**9, "temperature": 0},
    {"prompt": "good", "temperature": 1e-30},
    {"prompt": "good", "top_k": 2**31 - 1, "repetition_penalty": 0.01, "min_p": 1},
    {"prompt": "good", "stop": ["", "zzz"]},
]


@pytest.mark.parametrize("body", GOOD, ids=ascii)
def test_odd_requests_are_answered(served, body):
    reply = served[1].post("/v1/completions", content=json.dumps(body), headers={"content-type": "application/json"})
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["finish_reason"]


def test_control_words_typed_by_a_user_are_plain_text(served, bundle):
    """They are as many tokens as their letters make, and end nothing."""
    column = bundle.columns["review"]
    for word in ("<|endof|>", "⟨pad⟩", "</s>", "<|end|>"):
        reply = served[1].post("/v1/completions", json={"prompt": word, "max_tokens": 1}).json()
        assert reply["usage"]["prompt_tokens"] == len(column.prompt(word)) - 1 > 1


def test_one_token_of_a_megabyte(served):
    began = time.monotonic()
    reply = served[1].post("/v1/completions", json={"prompt": "a" * 1_000_000})
    assert reply.status_code == 400 and reply.json()["error"]["code"] == "context_length_exceeded"
    assert time.monotonic() - began < 2


def test_a_message_of_a_megabyte(answering):
    began, said = time.monotonic(), [{"role": "user", "content": "a" * 1_000_000}]
    reply = answering[1].post("/v1/chat/completions", json={"messages": said})
    assert reply.status_code == 400 and reply.json()["error"]["code"] == "context_length_exceeded"
    reply = answering[1].post("/explain", json={"rows": [{"messages": said}], "method": "lime"})
    assert reply.status_code == 200 and "longer than" in reply.json()["notes"][0], reply.text
    assert time.monotonic() - began < 20


def test_a_model_that_reads_nothing_predicts_nothing(served):
    reply = served[1].post("/predict", json={"rows": [{}]})
    assert reply.status_code == 422 and reply.json()["error"]["id"] == "text.nothing_to_answer"


def test_the_page_lists_what_there_is(served):
    from tests.test_serve_answers import unbounded

    document = served[1].get("/openapi.json").json()
    posts = {p for p, verbs in document["paths"].items() if "post" in verbs}
    assert posts == {"/explain", "/v1/completions", "/v1/chat/completions"} and "/v1/models" in document["paths"]
    for path in posts - {"/v1/chat/completions"}:
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert not unbounded(content["schema"])
        assert served[1].post(path, json=content["example"]).status_code == 200
    text = served[1].get("/metrics").text
    assert 'luban_requests_total{path="/v1/completions",status="200"}' in text


@pytest.mark.skipif(not machine.able("cpu"), reason="a processor that computes in bf16")
def test_texts_are_written_in_the_precision_that_was_asked_for(folder, bundle):
    asked = {"prompt": "the ", "temperature": 0, "max_tokens": 12}
    with serving(folder, api_key=KEY, precision="bf16") as (server, _):
        assert server.service.desk.precision == "bf16"
        told = client_of(server).completions.create(model="writer", **asked).choices[0].text
    assert told == bundle.generate("the ", tokens=12, temperature=0.0, precision="bf16")


@pytest.mark.skipif(not machine.able("cpu"), reason="a processor that computes in bf16")
def test_a_search_in_bf16_beside_texts(folder, bundle):
    with serving(folder, api_key=KEY, precision="bf16") as (server, _), ThreadPoolExecutor(3) as pool:
        stock = client_of(server)
        ask = lambda prompt, **more: stock.completions.create(model="writer", prompt=prompt, max_tokens=12, **more)  # noqa: E731
        searched = [pool.submit(ask, p, extra_body=SEARCH) for p in ("the ", "good bad")]
        plain = pool.submit(ask, "odd", temperature=0)
    for reply, prompt in zip(searched, ("the ", "good bad")):
        wanted = bundle.generate(prompt, tokens=12, temperature=0.0, beams=3, precision="bf16")
        assert reply.result().choices[0].text == wanted
    assert plain.result().choices[0].text == bundle.generate("odd", tokens=12, temperature=0.0, precision="bf16")


def test_a_precision_of_a_model_that_writes_nothing_is_refused():
    with pytest.raises(Unsupported, match="neither writes"), serving(tiny_bundle(), precision="bf16"):
        pass
