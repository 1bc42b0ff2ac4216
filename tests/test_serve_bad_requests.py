"""Sixty bad bodies at each endpoint: 4xx with a reason a machine can read, and a good request still answers the same."""

import base64
import gzip
import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.serving import MixedEngine, serving, tiny_bundle

BODY = 200_000


def png(size=4, colour=(10, 20, 30)):
    out = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(out, "PNG")
    return out.getvalue()


def b64(data):
    return base64.b64encode(data).decode()


GOOD = {"age": 31.5, "city": "Wien", "note": "a quiet street", "photo": b64(png())}


def row(**changes):
    return json.dumps({**GOOD, **changes}).encode()


def without(name):
    return json.dumps({k: v for k, v in GOOD.items() if k != name}).encode()


def raw(name, text):
    """GOOD with one value written as it stands, which json.dumps would not write."""
    return json.dumps({**GOOD, name: "@@"}).replace('"@@"', text).encode()


BAD = {
    "empty": b"",
    "blank": b"   ",
    "half": row()[:30],
    "two values": row() + row(),
    "trailing comma": row()[:-1] + b",}",
    "single quotes": b"{'age': 1}",
    "a word": b"hello",
    "null": b"null",
    "number": b"3",
    "string": b'"row"',
    "list": b"[1, 2]",
    "list of rows": b"[" + row() + b"]",
    "empty object": b"{}",
    "rows is null": b'{"rows": null}',
    "rows is a number": b'{"rows": 7}',
    "rows is an object": b'{"rows": {"age": 1}}',
    "no rows": b'{"rows": []}',
    "rows of numbers": b'{"rows": [1, 2]}',
    "rows of null": b'{"rows": [null]}',
    "rows of lists": b'{"rows": [[1, 2]]}',
    "10,000 rows": json.dumps({"rows": [{"age": 1}] * 10_000}).encode(),
    "33 rows": json.dumps({"rows": [GOOD] * 33}).encode(),
    "key beside rows": json.dumps({"rows": [GOOD], "model": "/etc/passwd"}).encode(),
    "missing age": without("age"),
    "missing city": without("city"),
    "missing note": without("note"),
    "missing photo": without("photo"),
    "extra field": row(aeg=3),
    "proto": row(__proto__=1),
    "age is text": row(age="old"),
    "age is a list": row(age=[1]),
    "age is an object": row(age={"a": 1}),
    "age NaN": raw("age", "NaN"),
    "age Infinity": raw("age", "-Infinity"),
    "age as the word nan": row(age="Infinity"),
    "age 1e400": raw("age", "1e400"),
    "age 400 digits": raw("age", "1" + "0" * 400),
    "age 5000 digits": raw("age", "1" * 5000),
    "age 1e300": raw("age", "1e300"),
    "age 1e300 as text": row(age="1e300"),
    "leading zero": raw("age", "01"),
    "hex": raw("age", "0x10"),
    "city is a list": row(city=["Wien"]),
    "city is an object": row(city={"is": "Wien"}),
    "note is a list": row(note=[["a"], 3]),
    "note is an object": row(note={"text": "a"}),
    "lone surrogate": raw("note", r'"\ud800"'),
    "NUL": raw("note", r'"a\u0000b"'),
    "raw control character": raw("note", '"a\x01b"'),
    "bad escape": raw("note", r'"\x41"'),
    "photo bad base64": row(photo="###" * 30),
    "photo a path": row(photo="/etc/passwd"),
    "photo a relative path": row(photo="../../secret.png"),
    "photo an address": row(photo="http://127.0.0.1:1/x.png"),
    "photo a file address": row(photo="file:///etc/passwd"),
    "photo named by an object": row(photo={"path": "/etc/passwd", "bytes": None}),
    "photo not an image": row(photo=b64(b"not an image at all" * 10)),
    "photo truncated": row(photo=b64(png(64)[:60])),
    "photo a bomb": row(photo=b64(png(5000))),
    "photo a number": row(photo=5),
    "photo empty": row(photo=""),
    "photo a ragged list": row(photo=[[1, 2], [3]]),
    "photo a list of words": row(photo=[["a"]]),
    "deep list": raw("age", "[" * 2000 + "]" * 2000),
    "very deep list": b"[" * 90_000,
    "deep object": b'{"a":' * 20_000,
    "duplicate key": row()[:-1] + b', "age": 2}',
    "duplicate key deep": raw("note", '{"a": 1, "a": 2}'),
    "UTF-16": row().decode().encode("utf-16"),
    "latin-1": row(city="x").replace(b'"x"', b'"\xe9\xe8"'),
    "overlong UTF-8": row(city="x").replace(b'"x"', b'"\xc0\xaf"'),
    "byte order mark": b"\xef\xbb\xbf" + row(),
    "too large": row(note="x" * BODY),
    "form": b"age=1&city=Wien",
    "XML": b"<row><age>1</age></row>",
    "YAML": b"age: 1\ncity: Wien\n",
    "pickle": b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00\x8c\x01a\x94.",
}
HEADS = {
    "no content type": {"content-type": ""},
    "text": {"content-type": "text/plain"},
    "form": {"content-type": "application/x-www-form-urlencoded"},
    "multipart": {"content-type": "multipart/form-data; boundary=x"},
    "other charset": {"content-type": "application/json; charset=utf-16"},
    "json seq": {"content-type": "application/json-seq"},
    "two content types": {"content-type": "application/json, text/plain"},
    "gzip": {"content-encoding": "gzip"},
    "unknown coding": {"content-encoding": "br, gzip"},
}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def served():
    with serving(MixedEngine(), body=BODY) as (server, client):
        yield server, client


def said(reply):
    """The reason, after a look at its form."""
    error = reply.json()["error"]
    assert set(error) == {"id", "message", "place"} and error["id"].count(".") >= 1 and error["message"]
    assert "Traceback" not in reply.text and "/work" not in reply.text and len(reply.content) < 20_000
    return error


def number(client):
    reply = client.post("/predict", json=GOOD)
    assert reply.status_code == 200, reply.text
    return reply.json()["rows"][0]["answers"]["price"]["value"]


def test_there_are_sixty():
    assert len(BAD) >= 60


@pytest.mark.parametrize("path", ["/predict", "/explain"])
def test_bad_bodies(served, path):
    server, client = served
    before = number(client)
    wrong = {}
    for name, body in BAD.items():
        reply = client.post(path, content=body, headers=JSON)
        said(reply)
        if not 400 <= reply.status_code < 500 or reply.elapsed.total_seconds() > 5:
            wrong[name] = (reply.status_code, reply.text[:200])
    assert not wrong
    assert number(client) == before
    assert server.service.metrics.failures == 0


def test_bad_bodies_where_explanations_are_given():
    """The four columns' bodies at a model of two of them: every one is wrong, and none reaches the method."""
    with serving(tiny_bundle(), body=BODY) as (server, client):
        for name, body in BAD.items():
            reply = client.post("/explain", content=body, headers=JSON)
            assert 400 <= reply.status_code < 500 and said(reply), (name, reply.text[:200])
        for extra in ({"method": "guess"}, {"method": ["lime"]}, {"output": "nothing"}, {"target": "nothing"}):
            reply = client.post("/explain", json={"rows": [{"age": 3, "city": "Wien"}], **extra})
            assert reply.status_code == 422 and said(reply), reply.text[:200]
        assert server.service.metrics.failures == 0
        assert client.post("/explain", json={"age": 3, "city": "Wien"}).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"])
def test_bad_bodies_elsewhere_change_nothing(served, path):
    _, client = served
    for body in list(BAD.values())[:40]:
        assert client.request("GET", path, content=body, headers=JSON).status_code == 200
        assert client.post(path, content=body, headers=JSON).status_code == 405
    assert number(client)


@pytest.mark.parametrize("name", HEADS)
def test_bad_heads(served, name):
    _, client = served
    body = gzip.compress(row()) if name == "gzip" else row()
    reply = client.post("/predict", content=body, headers={**JSON, **HEADS[name]})
    assert reply.status_code == 415 and said(reply)


def test_the_place_and_the_nearest_name_are_told(served):
    _, client = served
    missing = said(client.post("/predict", content=without("city"), headers=JSON))
    assert missing["id"] == "data.value_absent" and missing["place"] == "rows[0].city"
    extra = said(client.post("/predict", content=row(ages=3), headers=JSON))
    assert extra["id"] == "serve.unknown_column" and "'age'" in extra["message"]
    wrong = said(client.post("/predict", content=row(age="old"), headers=JSON))
    assert wrong["id"] == "column.not_a_number" and wrong["place"] == "rows[0].age"
    assert said(client.post("/predict", content=row(photo="/etc/passwd"), headers=JSON))["place"] == "rows[0].photo"


def test_one_bad_row_among_good_ones(served):
    _, client = served
    reply = client.post("/predict", json={"rows": [GOOD, {**GOOD, "age": "old"}, 5, GOOD]})
    rows = reply.json()["rows"]
    assert reply.status_code == 200
    assert ["error" in r for r in rows] == [False, True, True, False]
    assert rows[1]["error"]["place"] == "rows[1].age" and rows[2]["error"]["place"] == "rows[2]"
    assert rows[0] == rows[3]


def test_special_tokens_and_markup_are_text(served):
    _, client = served
    for note in ("<unk><s></s>[CLS]<|endoftext|>", "<script>alert(1)</script>", "=cmd|x", "\u202e", "x" * 100_000, ""):
        assert client.post("/predict", json={**GOOD, "note": note}).status_code == 200


def test_label_of_the_row_may_come_along_and_none_is_a_value(served):
    _, client = served
    assert client.post("/predict", json={**GOOD, "price": 3.5}).status_code == 200
    assert client.post("/predict", json=dict.fromkeys(GOOD)).status_code == 200


def test_random_damage(served):
    """Bytes of good requests changed, cut and doubled at random."""
    _, client = served
    rng = np.random.default_rng(0)
    good = [row(), json.dumps({"rows": [GOOD, GOOD]}).encode()]
    for _ in range(400):
        body = bytearray(good[rng.integers(2)])
        for _ in range(rng.integers(1, 6)):
            at = int(rng.integers(len(body)))
            body[at : at + int(rng.integers(0, 3))] = rng.bytes(int(rng.integers(0, 3)))
        reply = client.post("/predict", content=bytes(body), headers=JSON)
        assert reply.status_code == 200 or (400 <= reply.status_code < 500 and said(reply)), bytes(body)


def test_control_a_naive_handler_fails():
    """The same bodies at a handler that calls float(x) and knows no limits: server errors."""
    from fastapi import FastAPI, Request
    from fastapi.testclient import TestClient

    app = FastAPI()

    @app.post("/predict")
    async def predict(request: Request):
        return {"price": float((await request.json())["age"])}

    naive = TestClient(app, raise_server_exceptions=False)
    failed = [n for n, body in BAD.items() if naive.post("/predict", content=body, headers=JSON).status_code >= 500]
    assert len(failed) >= 20
