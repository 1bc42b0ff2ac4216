"""What the server answers is what the model answers: alone and together, over HTTP and in Python."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from luban.columns.answering import answer
from luban.stages.serve.batcher import Batcher, Job
from luban.stages.serve.metrics import Metrics
from tests.serving import ROWS, MixedEngine, SlowEngine, serving, tiny_bundle

PLAIN = [{n: row[n] for n in ("age", "city")} for row in ROWS]


@pytest.fixture(scope="module")
def served():
    bundle = tiny_bundle()
    with serving(bundle) as (server, client):
        yield bundle, server, client


def flat(answers):
    """The server's answers as `Bundle.predict` gives them."""
    found = {}
    for name, a in answers.items():
        found[name] = a["value"]
        if a["probability"] is not None:
            found[f"{name}.probability"] = a["probability"]
            found |= {f"{name}.probability.{c['value']}": c["probability"] for c in a["candidates"]}
    return found


def differences(found, expected):
    """The largest difference of numbers; infinite where anything else differs."""
    if set(found) != set(expected):
        return np.inf
    pairs = [(found[k], expected[k]) for k in found]
    numbers = [abs(a - b) for a, b in pairs if isinstance(a, float)]
    return max(numbers) if all(a == b for a, b in pairs if not isinstance(a, float)) else np.inf


def test_http_answers_as_python_does(served):
    bundle, _, client = served
    together = client.post("/predict", json={"rows": PLAIN}).json()["rows"]
    for row, found in zip(PLAIN, together):
        expected = bundle.predict([row])[0]
        alone = client.post("/predict", json=row).json()["rows"][0]
        assert differences(flat(alone["answers"]), expected) == 0
        assert differences(flat(found["answers"]), expected) <= 1e-6


def test_control_another_model_is_told_apart(served):
    _, _, client = served
    with torch.no_grad():
        other = tiny_bundle()
        next(iter(other.network.parameters())).add_(0.1)
    alone = client.post("/predict", json=PLAIN[0]).json()["rows"][0]["answers"]
    assert differences(flat(alone), other.predict(PLAIN[:1])[0]) > 1e-6


def test_many_at_once_answer_as_alone(served):
    bundle, _, client = served
    rng = np.random.default_rng(0)
    rows = [
        {"age": float(a), "city": str(c)} for a, c in zip(rng.uniform(0, 90, 120), rng.choice(["Wien", "Graz"], 120))
    ]
    expected = bundle.predict(rows)
    with ThreadPoolExecutor(24) as pool:
        replies = list(pool.map(lambda r: client.post("/predict", json=r).json()["rows"][0]["answers"], rows))
    assert max(differences(flat(a), e) for a, e in zip(replies, expected)) <= 1e-6


def test_columns_may_come_in_any_order(served):
    _, _, client = served
    first, second = (client.post("/predict", json=r).json() for r in (PLAIN[0], dict(reversed(PLAIN[0].items()))))
    assert first == second


def test_requests_that_arrive_together_are_run_together_and_a_lone_one_at_once():
    engine = SlowEngine(0.1)
    with serving(engine, workers=1) as (_, client):
        client.post("/predict", json={"x": 1})
        assert engine.batches == [1]
        with ThreadPoolExecutor(9) as pool:
            replies = list(pool.map(lambda x: client.post("/predict", json={"x": x}).json(), range(9)))
    assert sum(engine.batches) == 10 and len(engine.batches) <= 5
    assert [r["rows"][0]["answers"]["y"]["value"] for r in replies] == [float(x) for x in range(9)]


def test_a_batch_is_never_larger_than_asked():
    engine = SlowEngine(0.05)
    with serving(engine, workers=1, batch=4) as (_, client), ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda x: client.post("/predict", json={"rows": [{"x": x}] * 3}), range(12)))
    assert max(engine.batches) <= 4


def test_one_row_that_breaks_the_engine_costs_the_others_nothing(capfd):
    class Fragile(SlowEngine):
        def run(self, arrays):
            if (arrays.inputs["x"][0] == 13).any():
                raise RuntimeError("secret detail of the engine")
            return super().run(arrays)

    with serving(Fragile(0.05), workers=1) as (_, client), ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda x: client.post("/predict", json={"x": x}), [1, 2, 13, 4, 13, 6, 7, 8]))
        assert [r.status_code for r in replies] == [200, 200, 500, 200, 500, 200, 200, 200]
        assert replies[2].json()["error"]["id"] == "serve.failed" and "secret" not in replies[2].text
        for _ in range(200):
            client.post("/predict", json={"x": 13})
        assert client.get("/healthz").status_code == 200
    log = capfd.readouterr().err
    assert "secret detail" in log and len(log) < 10_000


def test_answers_that_are_no_numbers_are_an_error_of_their_row():
    class Broken(SlowEngine):
        def run(self, arrays):
            x = arrays.inputs["x"][0]
            return {"y": np.where(x > 5, np.nan, np.where(x < 0, np.inf, x)).astype(np.float32)[:, None]}

    with serving(Broken(0)) as (_, client):
        reply = client.post("/predict", json={"rows": [{"x": 1}, {"x": 9}, {"x": -1}, {"x": 2}]})
        rows = json.loads(reply.text, parse_constant=lambda w: pytest.fail(w))["rows"]
        assert ["error" in r for r in rows] == [False, True, True, False]
        assert rows[1]["error"] == {**rows[1]["error"], "id": "serve.not_finite", "place": "rows[1]"}
        assert client.post("/predict", json={"x": 9}).status_code == 422


# -- what it says of itself --------------------------------------------------------------------------------------------


def test_the_page_needs_no_other_address_and_lists_every_endpoint(served):
    _, _, client = served
    reply = client.get("/docs")
    assert not re.findall(r"""(?:src|href)\s*=|@import|url\(|https?://|//[a-z]""", reply.text)
    assert "default-src 'none'" in reply.headers["content-security-policy"] and "%" not in reply.text.replace(
        "100%", ""
    )
    assert '<html lang="en">' in reply.text and '<div id="open" hidden>' in reply.text
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/predict", "/explain", "/docs", "/openapi.json", "/healthz", "/readyz", "/metrics"}


def unbounded(schema, place=""):
    """Numbers without a maximum, texts and lists without an end."""
    if isinstance(schema, list):
        return [p for i, s in enumerate(schema) for p in unbounded(s, f"{place}[{i}]")]
    if not isinstance(schema, dict):
        return []
    kinds = schema.get("type", [])
    kinds = {kinds} if isinstance(kinds, str) else set(kinds) if isinstance(kinds, list) else set()
    ends = {"number": "maximum", "integer": "maximum", "string": "maxLength", "array": "maxItems"}
    lacking = [f"{place}: {end}" for kind, end in ends.items() if kind in kinds and end not in schema]
    return lacking + [
        p for k, v in schema.items() if k not in ("examples", "example") for p in unbounded(v, f"{place}.{k}")
    ]


@pytest.mark.parametrize("source", [tiny_bundle, MixedEngine])
def test_every_number_in_the_schema_has_a_maximum(source):
    with serving(source()) as (_, client):
        schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert not unbounded(schemas)
    assert schemas["Row"]["required"] == list(schemas["Row"]["properties"])


def test_every_number_among_the_settings_has_a_maximum():
    from luban import registry

    assert not [p for p in unbounded(registry.schema("stages", "serve")["properties"]) if "maximum" in p]


def test_control_a_number_without_a_maximum_is_found():
    assert unbounded({"properties": {"n": {"type": "integer", "minimum": 1}}}) == [".properties.n: maximum"]


def test_the_example_in_the_schema_is_answered():
    for source in (tiny_bundle(), MixedEngine()):
        with serving(source) as (_, client):
            content = client.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]["content"]
            reply = client.post("/predict", json=content["application/json"]["example"])
            assert reply.status_code == 200, reply.text


def test_metrics_count_what_happened():
    with serving(tiny_bundle()) as (_, client):
        client.post("/predict", json={"rows": PLAIN})
        client.post("/predict", content=b"{", headers={"content-type": "application/json"})
        for i in range(30):
            client.get(f"/{i}")
        text = client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['luban_requests_total{path="/predict",status="200"}'] == "1"
    assert lines['luban_requests_total{path="/predict",status="400"}'] == "1"
    assert lines['luban_requests_total{path="other",status="404"}'] == "30"  # a stranger's paths make no new lines
    assert lines['luban_errors_total{id="data.bad_json"}'] == "1"
    assert lines['luban_rows_total{result="answered"}'] == "3" and lines["luban_batch_rows_count"] == "1"
    assert lines['luban_request_seconds_count{path="/predict"}'] == "2"


def test_histograms_are_cumulative():
    metrics = Metrics()
    for seconds in (0.0005, 0.002, 100.0):
        metrics.answered("/predict", 200, seconds)
    lines = metrics.seconds["/predict"].lines("x")
    assert lines[0] == 'x_bucket{le="0.001"} 1' and lines[1] == 'x_bucket{le="0.0025"} 2'
    assert lines[-3:] == ['x_bucket{le="+Inf"} 3', "x_sum 100.002500", "x_count 3"]


def test_explanations(served):
    bundle, _, client = served
    reply = client.post("/explain", json={"rows": PLAIN[:2], "output": "price"})
    assert reply.status_code == 200 and reply.json()["output"] == "price" and len(reply.json()["rows"]) == 2
    expected = bundle.explain(PLAIN[:2], rows=2, output="price").to_json()["numbers"]
    assert reply.json() == json.loads(json.dumps(expected))


def test_an_engine_that_only_answers_says_so():
    with serving(SlowEngine(0)) as (_, client):
        reply = client.post("/explain", json={"x": 1})
    assert reply.status_code == 404 and reply.json()["error"]["id"] == "serve.cannot_explain"


def test_the_batcher_drops_what_nobody_waits_for():
    import asyncio

    seen = []

    async def main():
        batcher = Batcher(lambda rows: seen.extend(rows) or rows, workers=1, batch=2)
        jobs = [Job([i]) for i in range(6)]
        for job in jobs:
            batcher.submit(job)
        for i in (1, 2, 3):
            jobs[i].future.cancel()
        results = await asyncio.gather(*(jobs[i].future for i in (0, 4, 5)))
        batcher.close()
        return results

    assert asyncio.run(main()) == [[0], [4], [5]] and sorted(seen) == [0, 4, 5]


def test_answers_are_those_of_the_engine_itself():
    engine = MixedEngine()
    row = {"age": 1.5, "city": "Linz", "note": "quiet", "photo": None}
    with serving(engine) as (_, client):
        found = client.post("/predict", json=row).json()["rows"][0]["answers"]["price"]["value"]
    assert found == answer(engine, [row])[0].answers["price"].value
