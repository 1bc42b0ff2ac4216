"""Who is let in, how much, how long: keys, hosts, sizes, overload, deadlines, and a stop that answers what it accepted."""

import asyncio
import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from luban.cli import main
from luban.errors import RequestError
from luban.stages.serve import prepare, service
from tests.serving import MixedEngine, SlowEngine, serving

HEAD = b"POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"


def talk(server, *pieces, pause=0.0):
    """Send raw bytes; what came back until the server hung up or fell silent, and how many bytes it took."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as s:
        sent = 0
        try:
            for piece in pieces:
                s.sendall(piece)
                sent += len(piece)
                time.sleep(pause)
        except (BrokenPipeError, ConnectionResetError):
            pass
        s.settimeout(2)
        answer = b""
        try:
            while not answer.endswith(b"}") and (got := s.recv(65536)):
                answer += got
        except (TimeoutError, ConnectionResetError):
            pass
        return answer, sent


# -- who ---------------------------------------------------------------------------------------------------------------


def test_other_machines_need_a_key():
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.org", ""):
        with pytest.raises(RequestError) as e:
            prepare(SlowEngine(0), host=host, port=0)
        assert e.value.id == "serve.key_needed" and "\n" not in str(e.value)


def test_with_a_key_other_machines_are_served_and_the_key_is_asked_for():
    with serving(SlowEngine(0), host="0.0.0.0", api_key="läng-enough-key") as (server, client):
        client.base_url = f"http://127.0.0.1:{server.port}"
        key = "läng-enough-key".encode()
        right = [{"x-api-key": key}, {"authorization": b"Bearer " + key}, {"authorization": b"bearer " + key}]
        wrong = [{}, {"x-api-key": b"l"}, {"x-api-key": b""}, {"authorization": key}, {"authorization": b"Basic " + key},
                 {"authorization": b"Bearer"}, {"x-api-key": key + b"x"}]  # fmt: skip
        for headers in wrong:
            for method, path in (
                ("POST", "/predict"),
                ("POST", "/explain"),
                ("GET", "/metrics"),
                ("GET", "/openapi.json"),
            ):
                reply = client.request(method, path, headers=headers, json={"x": 1})
                assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer", (headers, path)
        for headers in right:
            reply = client.post("/predict", json={"x": 1}, headers=headers)
            assert reply.status_code == 200, headers
        assert [client.get(p).status_code for p in ("/healthz", "/readyz", "/docs")] == [200] * 3
        assert (
            client.post("/predict", json={"x": 1}, headers={**right[0], "host": "model.example.org"}).status_code == 200
        )


FOREIGN = [
    ({"host": "evil.example"}, 421),
    ({"host": "evil.example:8000"}, 421),
    ({"host": "127.0.0.1.evil.example"}, 421),
    ({"host": "localhost@evil.example"}, 421),
    ({"host": "[::1"}, 421),
    ({"host": "0.0.0.0"}, 421),
    ({"origin": "http://evil.example"}, 403),
    ({"origin": "http://localhost:1"}, 403),
    ({"origin": "null"}, 403),
    ({"origin": "file://"}, 403),
    ({"sec-fetch-site": "cross-site"}, 403),
]


@pytest.mark.parametrize(("headers", "status"), FOREIGN)
def test_foreign_hosts_and_origins(headers, status):
    """DNS rebinding sends the attacker's Host, a form on another site its Origin."""
    with serving(SlowEngine(0)) as (server, client):
        reply = client.post("/predict", json={"x": 1}, headers=headers)
        assert reply.status_code == status and reply.json()["error"]["id"].startswith("serve.foreign_")
        assert "access-control-allow-origin" not in reply.headers
        own = {"origin": server.url, "sec-fetch-site": "same-origin"}
        assert client.post("/predict", json={"x": 1}, headers=own).status_code == 200
        assert client.post("/predict", json={"x": 1}, headers={"host": "LOCALHOST:9"}).status_code == 200


def test_a_proxys_name_can_be_allowed():
    with serving(SlowEngine(0), hosts=["models.example.org"]) as (_, client):
        names = {"models.example.org": 200, "evil.example": 421}
        assert {n: client.post("/predict", json={"x": 1}, headers={"host": n}).status_code for n in names} == names


def test_a_taken_port_is_one_sentence():
    with serving(SlowEngine(0)) as (server, _), pytest.raises(RequestError) as e:
        prepare(SlowEngine(0), port=server.port)
    assert e.value.id == "serve.no_port"


# -- how much ----------------------------------------------------------------------------------------------------------


def test_the_body_limit_holds_while_the_body_is_read(monkeypatch):
    monkeypatch.setattr(service, "DROPPED", 5_000_000)
    with serving(SlowEngine(0), body=1000) as (server, client):
        announced, _ = talk(server, HEAD + b"content-length: 1000000000\r\n\r\n")
        assert b" 413 " in announced.split(b"\r\n")[0] and b"serve.body_too_large" in announced
        piece = b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n"
        chunked, sent = talk(server, HEAD + b"transfer-encoding: chunked\r\n\r\n", *[piece] * 800)
        assert sent < 30_000_000  # it hung up long before the end
        assert not chunked or b" 413 " in chunked.split(b"\r\n")[0]
        small = b'{"x": 1}'
        fine, _ = talk(server, HEAD + b"transfer-encoding: chunked\r\n\r\n", b"8\r\n" + small + b"\r\n0\r\n\r\n")
        assert b" 200 " in fine.split(b"\r\n")[0]
        assert (
            client.post("/predict", content=b" " * 1001, headers={"content-type": "application/json"}).status_code
            == 413
        )


def test_a_plain_client_that_sends_first_hears_that_its_body_is_too_large():
    """urllib asks for the connection to be closed, and reads nothing before all is sent."""
    with serving(SlowEngine(0), body=1000) as (server, _):
        for body in (b" " * 5_000_000, iter([b" " * 100_000] * 50)):  # the second is sent in chunks, its length untold
            asked = urllib.request.Request(server.url + "/predict", body, {"content-type": "application/json"})
            with pytest.raises(urllib.error.HTTPError) as e:
                urllib.request.urlopen(asked, timeout=10)
            assert e.value.code == 413 and json.load(e.value)["error"]["id"] == "serve.body_too_large"
        waits = HEAD + b"expect: 100-continue\r\ncontent-length: 5000\r\n\r\n"  # curl: nothing is sent for it
        assert b" 413 " in talk(server, waits)[0].split(b"\r\n")[0]


def test_a_model_that_reads_pictures_takes_a_cameras_jpeg():
    with serving(MixedEngine()) as (server, client):
        assert server.service.limits.body == 20_000_000  # of 12 MB come 16 as base64
        photo = base64.b64encode(bytes(2_000_000)).decode()
        reply = client.post("/predict", json={"photo": photo, "age": 1, "city": "Wien", "note": ""})
        assert reply.status_code == 422 and reply.json()["error"]["id"] == "image.unknown"  # it was read: it is no JPEG
    for engine, asked, limit in ((SlowEngine(0), None, 2_000_000), (MixedEngine(), 500, 500)):
        with serving(engine, body=asked) as (server, _):
            assert server.service.limits.body == limit


@pytest.mark.parametrize("flag", ["--batch", "--queue", "--deadline", "--body"])
def test_each_limit_is_a_flag(flag, tmp_path, monkeypatch, capsys):
    given = {}
    monkeypatch.setattr("luban.stages.serve.serve", lambda folder, **settings: given.update(settings))
    model = str(tmp_path / "model.onnx")
    assert main(["serve", model, flag, "1000"]) == 0 and given[flag[2:]] == 1000
    assert main(["serve", model, flag, "0"]) == 2 and flag in capsys.readouterr().err


def test_smuggled_and_broken_requests_are_refused():
    with serving(SlowEngine(0)) as (server, client):
        for lines in (b"content-length: -1\r\n\r\n", b"content-length: 1e3\r\n\r\n", b"content-length: 5\r\ncontent-length: 6\r\n\r\n",
                      b"transfer-encoding: nonsense\r\n\r\n", b"x: " + b"y" * 200_000 + b"\r\n\r\n", b"\0\r\n\r\n"):  # fmt: skip
            answer, _ = talk(server, HEAD + lines)
            assert answer.split(b" ")[1:2] != [b"200"] and b" 500 " not in answer.split(b"\r\n")[0]
        assert client.post("/predict", json={"x": 1}).status_code == 200


def test_a_body_that_trickles_in_is_cut_off():
    with serving(SlowEngine(0), deadline=0.4) as (server, _):
        answer, _ = talk(server, HEAD + b"content-length: 100\r\n\r\n", b'{"x"', pause=0.1)
        assert b" 408 " in answer.split(b"\r\n")[0]
        until = time.monotonic() + 5  # the answer is here a moment before its request has left
        while server.service.inside and time.monotonic() < until:
            time.sleep(0.01)
        assert server.service.inside == 0


# -- how long ----------------------------------------------------------------------------------------------------------


def test_deadlines():
    engine = SlowEngine(0.5)
    with serving(engine, workers=1, batch=1, deadline=0.3) as (_, client), ThreadPoolExecutor(3) as pool:
        replies = list(pool.map(lambda x: client.post("/predict", json={"x": x}), range(3)))
        statuses = sorted(r.status_code for r in replies)
        assert statuses == [503, 503, 504]
        assert all("retry-after" in r.headers for r in replies if r.status_code == 503)
        time.sleep(0.6)
        assert sum(engine.batches) == 1  # what nobody waited for any more was not computed


def test_work_of_clients_that_have_gone_is_dropped():
    engine = SlowEngine(0.3)
    with serving(engine, workers=1, batch=1) as (server, client):
        body = b'{"x": 1}'
        waiting = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(6)]
        for s in waiting:
            s.sendall(HEAD + b"content-length: 8\r\n\r\n" + body)
        time.sleep(0.15)
        for s in waiting:
            s.close()
        began = time.monotonic()
        assert client.post("/predict", json={"x": 2}).status_code == 200
        assert time.monotonic() - began < 1.0  # not six times 0.3 s
        assert len(engine.batches) <= 3 and server.service.metrics.dropped >= 4


async def flood(port, rate, seconds):
    """Open-loop load: (status, seconds, hint) of every request, whether or not earlier ones were answered."""
    request = HEAD + b"connection: close\r\ncontent-length: 8\r\n\r\n" + b'{"x": 1}'
    results = []

    async def one():
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        reply = await reader.read()
        results.append((int(reply[9:12]), time.monotonic() - began, b"retry-after" in reply))
        writer.close()
        await writer.wait_closed()

    began, tasks = time.monotonic(), []
    for i in range(int(rate * seconds)):
        await asyncio.sleep(max(0, began + i / rate - time.monotonic()))
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    return results


def run_apart(queue):
    """A server process of its own, so that the client's work does not slow it: 50 ms an answer, one at a time."""
    code = (
        "from tests.serving import SlowEngine; from luban.stages.serve import serve\n"
        f"serve(SlowEngine(0.05), port=0, workers=1, batch=1, queue={queue})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, cwd=os.getcwd())
    line = process.stderr.readline()
    return process, next(w for w in line.split() if w.startswith("http"))


def overloaded(queue, seconds):
    """Seconds of the answered and of the rejected requests, sorted, under four times what the server can do; seconds of one
    request alone before and after, and between two answers meanwhile.
    """
    process, url = run_apart(queue)

    def alone():
        began = time.monotonic()
        assert httpx.post(url + "/predict", json={"x": 1.0}).status_code == 200
        return time.monotonic() - began

    try:
        before = sorted(alone() for _ in range(7))[3]
        began = time.monotonic()
        results = asyncio.run(flood(int(url.rpartition(":")[2]), 80, seconds))
        whole = time.monotonic() - began
        after = alone()
    finally:
        process.terminate()
        assert process.wait(30) == 0
        process.stderr.close()
    answered = sorted(s for status, s, _ in results if status == 200)
    rejected = sorted(s for status, s, _ in results if status == 429)
    assert len(answered) + len(rejected) == len(results)
    assert all(hint for status, _, hint in results if status == 429)
    return answered, rejected, (before, after, whole / len(answered))


def middle(found):
    return found[len(found) // 2]


def test_overload():
    """Rejections come at once, answers within the queue's length, and about as many of them as without overload.

    Held against the pace of this machine at this moment: other work may slow it.
    """
    answered, rejected, (before, after, pace) = overloaded(queue=8, seconds=1.5)
    assert middle(rejected) < middle(answered) / 2, "a rejection waits for nobody"
    assert middle(answered) < 1.5 * (8 + 2) * pace
    assert pace < 2 * before + 0.01, "answers come as fast as without overload"
    assert after < max(2, 10 * before)


def test_control_an_unbounded_queue_rejects_nobody_and_answers_ever_later():
    answered, rejected, (_, _, pace) = overloaded(queue=100_000, seconds=1)
    assert not rejected and middle(answered) > 1.5 * (8 + 2) * pace


@pytest.mark.slow
def test_overload_for_long():
    """The figures to reach, on a machine that does nothing else."""
    if os.getloadavg()[0] > 0.5 * os.cpu_count():
        pytest.skip("this machine does something else")
    answered, rejected, (_, after, _) = overloaded(queue=8, seconds=30)
    last = lambda x: x[int(0.99 * len(x))]  # noqa: E731
    assert last(rejected) <= 0.1 and last(answered) <= 8 * 0.05 + 2 * 0.05 and after < 0.5
    assert len(answered) >= 0.9 * 30 / 0.05


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_drains(number):
    """Accepted requests are answered, new ones get 503 with a hint, readiness says no, and the exit is clean."""
    process, url = run_apart(256)
    try:
        with httpx.Client(base_url=url, timeout=20) as client, ThreadPoolExecutor(21) as pool:
            client.get("/readyz").raise_for_status()
            asked = [pool.submit(client.post, "/predict", json={"x": float(i)}) for i in range(20)]
            answered = inside = 0
            while answered + inside < 20:  # a request that has not come yet may be turned away
                answered = sum(a.done() for a in asked)
                inside = int(re.search(r"^luban_requests_inside (\d+)", client.get("/metrics").text, re.M)[1])
            assert inside, "nothing is left to drain"
            process.send_signal(number)
            time.sleep(0.1)
            ready, alive = client.get("/readyz"), client.get("/healthz")
            late = client.post("/predict", json={"x": 1.0})
            answers = [a.result() for a in asked]
        assert ready.status_code == 503 and alive.status_code == 200
        assert late.status_code == 503 and "retry-after" in late.headers
        assert [a.status_code for a in answers] == [200] * 20
        assert [a.json()["rows"][0]["answers"]["y"]["value"] for a in answers] == [float(i) for i in range(20)]
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.slow
def test_a_second_signal_leaves_at_once():
    code = (
        "from tests.serving import SlowEngine; from luban.stages.serve import serve\n"
        "serve(SlowEngine(3), port=0, workers=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    url = next(w for w in process.stderr.readline().split() if w.startswith("http"))
    asker = threading.Thread(target=lambda: _quietly(url))
    asker.start()
    time.sleep(0.3)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.wait(10)
    process.stderr.close()
    asker.join()
    assert time.monotonic() - began < 5


def _quietly(url):
    try:
        httpx.post(url + "/predict", json={"x": 1.0})
    except httpx.HTTPError:
        return


@pytest.mark.slow
def test_twenty_stops_under_load():
    for _ in range(20):
        test_a_signal_drains(signal.SIGTERM)


@pytest.mark.slow
def test_ten_thousand_bad_requests_leave_no_log_and_no_memory():
    """Disk growth and memory growth of the server process."""
    process, url = run_apart(256)
    try:
        memory = lambda: int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096  # noqa: E731
        with httpx.Client(base_url=url) as client:
            client.post("/predict", content=b"{", headers={"content-type": "application/json"})
            before = memory()
            for i in range(10_000):
                body = json.dumps({"x": "no" * (i % 50), f"k{i}": [i]}).encode()[: 10 + i % 60]
                reply = client.post(
                    "/predict", content=body, headers={"content-type": "application/json", "x-i": str(i)}
                )
                assert 400 <= reply.status_code < 500
            assert memory() - before < 50_000_000
    finally:
        process.terminate()
        process.wait(30)
    assert len(process.stderr.read()) < 10_000
    process.stderr.close()
