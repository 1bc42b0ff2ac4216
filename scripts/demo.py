"""The whole life of a model on an embedded real data set: `make demo`.

Writes everything under demo-out/, serves the model for a moment, and fetches one prediction over HTTP.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "demo-out"
LUBAN = [sys.executable, "-m", "luban.cli"]


def main() -> int:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    began = time.monotonic()
    csv = OUT / "breast-cancer.csv"
    luban("datasets", "breast-cancer", "--out", str(csv))
    (OUT / "recipe.yaml").write_text((ROOT / "recipes" / "demo.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    luban("run", str(OUT / "recipe.yaml"), "--out", str(OUT / "model"))
    luban("predict", str(OUT / "model"), str(csv), "--out", str(OUT / "predictions.csv"))
    answer = over_http(csv)
    shown = OUT.relative_to(ROOT)
    print()
    print(f"Done in {time.monotonic() - began:.0f} s.")
    print(f"Report:      {shown}/model/report.html")
    print(f"Model card:  {shown}/model/README.md")
    print(f"Predictions: {shown}/predictions.csv")
    print(f"Over HTTP:   {json.dumps(answer)[:300]}")
    print()
    print("Next:")
    command = os.path.relpath(Path(sys.executable).with_name("luban"))
    print(f"  {command} serve {shown}/model    # then open http://127.0.0.1:8000/docs")
    print(f"  {command} train YOUR.csv --target COLUMN --out my-model")
    return 0


def luban(*words: str) -> None:
    print("$ luban", *(os.path.relpath(w, ROOT) if os.sep in w else w for w in words), flush=True)
    subprocess.run([*LUBAN, *words], check=True, cwd=ROOT)


def over_http(csv: Path) -> dict:
    """One row's answer, asked of the served model; the server is stopped afterwards."""
    names, first = (line.split(",") for line in csv.read_text(encoding="utf-8").splitlines()[:2])
    row = {n.strip('"'): float(v) for n, v in zip(names, first) if n.strip('"') != "diagnosis"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    print(f"$ luban serve demo-out/model --port {port}", flush=True)
    server = subprocess.Popen([*LUBAN, "serve", str(OUT / "model"), "--port", str(port), "--quiet"], cwd=ROOT)
    try:
        return ask(f"http://127.0.0.1:{port}", {"rows": [row]}, server)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def ask(base: str, body: dict, server: subprocess.Popen) -> dict:
    request = urllib.request.Request(f"{base}/predict", json.dumps(body).encode(), {"Content-Type": "application/json"})
    for _ in range(120):
        if server.poll() is not None:
            raise SystemExit(server.returncode)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return json.load(response)
        except OSError:
            time.sleep(0.5)
    raise SystemExit("the served model did not answer within a minute")


if __name__ == "__main__":
    sys.exit(main())
