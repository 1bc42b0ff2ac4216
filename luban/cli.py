"""The command line: one function a verb. Results go to stdout, sentences and progress to stderr.

Exit codes: 0 done, 1 the work failed, 2 the request was wrong, 130 and 143 on SIGINT and SIGTERM after a usable save.
Nothing heavy is imported before a verb has checked what it was asked.
"""

from __future__ import annotations

import json as _json
import os
import signal
import sys
import threading
from contextlib import contextmanager

from luban import __version__, console
from luban.command import Flag, Verb, table, wrap
from luban.errors import LubanError, RequestError, problem
from luban.messages import LANGUAGES, say, set_language, together

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

COMMON = [
    Flag("seed", "int", None, False),
    Flag("device", "str", "auto", False),
    Flag("threads", "str", "auto", False),
    Flag("json", "bool", False, False),
    Flag("quiet", "bool", False, False),
    Flag("lang", "str", None, False),
    Flag("overwrite", "bool", False, False),
    Flag("help", "bool", False, False),
]
COMPUTING = (
    "train",
    "run",
    "resume",
    "tune",
    "curve",
    "evaluate",
    "shots",
    "predict",
    "generate",
    "embed",
    "index",
    "search",
    "explain",
    "compress",
    "audit",
    "export",
    "serve",
)
common: dict[str, Any] = {}  # the common flags of this call


# -- verbs, in the order of a model's life -------------------------------------------------------------------------


def new(task: str, folder: str | None = None) -> None:
    from luban import starters
    from luban.requests import fresh

    if task == "list":
        _names(starters.listed())
        return
    starters.known(task)
    if folder is None:
        raise RequestError("cli.lacking", what="FOLDER", verb="new")
    recipe, rows = starters.write_starter(task, fresh(folder, common["overwrite"]))
    out = os.path.join(folder, "out")
    lines = [say("starter.wrote", recipe=recipe, rows=rows), say("starter.next", recipe=recipe, out=out)]
    _result({"recipe": recipe, "rows": rows}, *lines)


def check(
    source: str, *, target: str | None = None, inputs: list[str] = (), type: list[str] = (), set: list[str] = ()
) -> int:
    if source.endswith((".yaml", ".yml")):  # mistakes of the recipe are told before anything is imported to read data
        from luban.recipe import Recipe

        Recipe.load(source, tuple(set))
    from luban.asking import Ask
    from luban.asking import check as look
    from luban.requests import pairs

    _, findings, _ = look(source, Ask(target, inputs, pairs(type, "--type"), seed=common["seed"], changes=set))
    said = [together(say(f"check.{f.level}"), str(f.problem)) for f in findings]
    _result([f.to_json() for f in findings], *said, say("check.done", count=len(findings)))
    return 1 if any(f.level == "error" for f in findings) else 0


def plan(
    source: str | None = None,
    *,
    target: str | None = None,
    inputs: list[str] = (),
    type: list[str] = (),
    set: list[str] = (),
    shape: str | None = None,
    gpus: str | None = None,
    cpus: int | None = None,
    strategy: str = "auto",
    rows: int | None = None,
    price: float | None = None,
    carbon: float | None = None,
    achieved: float | None = None,
) -> int:
    from luban.planning.plan import plan as foresee
    from luban.requests import pairs

    report = foresee(
        source, target, inputs=inputs, types=pairs(type, "--type"), set=set, shape=shape, gpus=gpus, cpus=cpus,
        strategy=strategy, rows=rows, price=price, carbon=carbon, achieved=achieved,
    )  # fmt: skip
    print(
        _json.dumps(report.to_json()["numbers"], ensure_ascii=False, indent=1) if common["json"] else report.to_text(),
        end="",
    )
    return 0 if report.numbers["fits"] else 1


def run(recipe: str, *, out: str = "", set: list[str] = (), ranks: int | None = None) -> int:
    from luban import pipeline
    from luban.requests import logged, named

    changes = [
        *set,
        *([f"seed={common['seed']}"] if common["seed"] is not None else []),
        *_device_change(),
        *_ranks(ranks),
    ]
    with logged(named(out, "run")):
        bundle = pipeline.run(recipe, out, set=changes)
    return _trained(bundle, out)


def train(
    data: str,
    *,
    target: str | None = None,
    inputs: list[str] = (),
    type: list[str] = (),
    model: list[str] = (),
    size: str | None = None,
    from_: str | None = None,
    track: list[str] = (),
    set: list[str] = (),
    ranks: int | None = None,
    out: str = "",
) -> int:
    from luban import pipeline
    from luban.requests import fresh, logged, named, pairs

    folder = fresh(named(out, "train"), common["overwrite"])
    changes = [*set, *_ranks(ranks), *_device_change(), *([f"train.track=[{', '.join(track)}]"] if track else [])]
    with logged(folder):
        bundle = pipeline.train(
            data, target, inputs=inputs, types=pairs(type, "--type"), model=pairs(model, "--model"), size=size,
            seed=common["seed"], start=from_, set=changes, out=folder,
        )  # fmt: skip
    pipeline.write_report(bundle, folder)
    return _trained(bundle, out)


def tune(
    data: str,
    *,
    target: str | None = None,
    inputs: list[str] = (),
    type: list[str] = (),
    model: list[str] = (),
    size: str | None = None,
    trials: int | None = None,
    minutes: float | None = None,
    metric: str | None = None,
    search: list[str] = (),
    parallel: int | None = None,
    engine: str | None = None,
    set: list[str] = (),
    out: str = "",
) -> int:
    from luban.requests import logged, named, pairs
    from luban.tuning import verbs
    from luban.yaml_file import parse

    folder = _going_on(named(out, "tune"), verbs.TUNE)
    space = {k: parse(v, f"--search {k}")[0] for k, v in pairs(search, "--search").items()}
    asked = {"trials": trials, "minutes": minutes, "metric": metric, "search": space or None, "parallel": parallel,
             "engine": engine}  # fmt: skip
    changes = [*set, *_device_change()]
    with logged(folder):
        bundle = verbs.tune(
            data, target, inputs=inputs, types=pairs(type, "--type"), model=pairs(model, "--model"), size=size,
            seed=common["seed"], set=changes, out=folder, **{k: v for k, v in asked.items() if v is not None},
        )  # fmt: skip
    return _shown(bundle, folder, "tune")


def curve(
    data: str,
    *,
    target: str | None = None,
    inputs: list[str] = (),
    type: list[str] = (),
    model: list[str] = (),
    size: str | None = None,
    rows: list[float] = (),
    sizes: list[str] = (),
    repeats: int | None = None,
    metric: str | None = None,
    grid: bool = False,
    parallel: int | None = None,
    engine: str | None = None,
    set: list[str] = (),
    out: str = "",
) -> int:
    from luban import pages
    from luban.requests import logged, named, pairs
    from luban.tuning import verbs

    folder = _going_on(named(out, "curve"), verbs.CURVE)
    asked = {"rows": [*rows], "sizes": [*sizes], "repeats": repeats, "metric": metric, "grid": grid or None,
             "parallel": parallel, "engine": engine}  # fmt: skip
    changes = [*set, *_device_change()]
    with logged(folder):
        bundle = verbs.curve(
            data, target, inputs=inputs, types=pairs(type, "--type"), model=pairs(model, "--model"), size=size,
            seed=common["seed"], set=changes, out=folder, **{k: v for k, v in asked.items() if v},
        )  # fmt: skip
    if not common["json"]:
        print(pages.notes(bundle.reports["curve"]))
    return _shown(bundle, folder, "curve")


def _shown(bundle: Any, folder: Path, kind: str) -> int:
    """The page of a finished search, its first table and the headline on stdout; or its numbers."""
    from luban import pages

    pages.write_report(bundle, folder)
    saved = say("train.saved", folder=folder, report=os.path.join(folder, "report.html"))
    first = pages.first_table(bundle.reports[kind]).rstrip("\n")
    _result(bundle.reports[kind].to_json()["numbers"], first, *pages.headline(bundle), saved)
    return 0


def _going_on(folder: str, inner: str) -> Path:
    """An --out that a search of ours already stands in is gone on with; `--overwrite` begins anew."""
    import shutil

    from luban.requests import fresh

    path = _path(folder)
    if common["overwrite"]:
        shutil.rmtree(path / inner, ignore_errors=True)
    return path if (path / inner).is_dir() else fresh(folder, common["overwrite"])


def resume(folder: str, *, ranks: int | None = None, set: list[str] = ()) -> int:
    from contextlib import nullcontext

    from luban import pipeline
    from luban.requests import logged

    with logged(folder) if os.path.isdir(folder) else nullcontext():
        bundle = pipeline.resume(folder, set=[*set, *_ranks(ranks)])
    pipeline.write_report(bundle, _path(folder))
    return _trained(bundle, folder)


def evaluate(
    folder: str,
    data: str,
    *,
    json: file = None,  # noqa: F821
    slices: list[str] = (),
    judge: str | None = None,
    corruptions: bool = False,
    rows: int = 0,
) -> None:
    asked = {"corruptions": corruptions, "rows": rows} | ({"judge": judge} if judge else {})
    _sound(folder, data, "evaluate", seed=common["seed"], **asked)
    if judge:
        _sound(judge)
    report = _load(folder).evaluate(data, slices=slices, baselines=False, seed=common["seed"], **asked)
    _numbers(report, json)


def shots(
    model: str,
    data: str,
    *,
    target: str | None = None,
    inputs: list[str] = (),
    type: list[str] = (),
    beside: str | None = None,
    shots: list[int] = (),
    draws: int = 3,
    rows: int = 500,
    template: str | None = None,
    before: str | None = None,
    label: list[str] = (),
    set: list[str] = (),
    json: file = None,  # noqa: F821
) -> None:
    from luban.requests import language_model, pairs

    labels = pairs(label, "--label")
    template, before = (t and t.replace("\\n", "\n") for t in (template, before))
    asked = {"shots": [*shots] or [0, 1, 4, 16], "draws": draws, "rows": rows, "template": template, "before": before or "", "labels": labels, "seed": common["seed"]}  # fmt: skip
    _sound(beside, None if data.endswith((".yaml", ".yml")) else data, "shots", **asked)
    language_model(model)
    from luban import prompted

    types = pairs(type, "--type")
    report = prompted.shots(model, data, target, inputs=inputs, types=types, beside=beside, set=set, **asked)
    _numbers(report, json)


def predict(folder: str, data: str, *, out: str = "-", processes: int = 1, draw: str | None = None) -> None:
    from luban.predictions import WRITERS, predict_file, writer_for
    from luban.showing import FILMED, VIDEOS, checked, film, is_video

    filmed = data.lower().endswith(FILMED)
    undecided = filmed and out.endswith(
        tuple(WRITERS)
    )  # only the model tells whether a video is one row, or a row a frame
    if not undecided:
        (checked if filmed else writer_for)(out)
    if processes < 1:
        raise _too_few("--processes", processes, 1)
    _sound(_folder(folder), data, out=None if out == "-" else out)
    model = _answering(folder)
    if filmed and is_video(getattr(model, "engine", model), data):
        if draw is not None:
            raise RequestError(problem("predict.draw_video", place="--draw", allowed=tuple(VIDEOS)))
        found = film(model, data, out)
        console.tell("predict.filmed", **{k: f"{v:.1f}" if isinstance(v, float) else v for k, v in found.items()})
        return _result({**found, "out": out}) if out != "-" else None
    if draw is not None:
        _sound(out=draw)
    rows, bad = predict_file(model, data, out, processes=processes, draw=draw)
    console.tell("predict.done", rows=rows, bad=bad)
    if out != "-":
        _result({"rows": rows, "errors": bad, "out": out})


def generate(
    folder: str,
    *,
    prompt: str = "",
    n: int = 1,
    tokens: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    beams: int | None = None,
    precision: str = "fp32",
    stop: list[str] = (),
    chat: bool = False,
    set: list[str] = (),
    out: str | None = None,
) -> None:
    from luban.generation.sampling import checked, orderly, width, writes
    from luban.recipe import Recipe

    asked = {"tokens": tokens, "stop": stop, "seed": common["seed"], "precision": precision}
    sampling = checked(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty, frequency_penalty=frequency_penalty,
    )  # fmt: skip
    if n < 1 or tokens < 0:
        raise _too_few("--n", n, 1) if n < 1 else _too_few("--tokens", tokens, 0)
    orderly(**asked, beams=beams)
    exported = _folder(folder) is None  # texts are not written from one
    _sound(_folder(folder), out=out)
    recipe = None if exported else Recipe.load(_path(folder) / "recipe.yaml")
    beams = width(recipe, beams, n, sampling)
    if recipe is None or recipe.draws:
        _drawn(folder, recipe, n, set, out, prompt or tokens or stop or chat or beams > 1)
        return
    writes(recipe)
    if set or out:
        raise RequestError("generate.only_pictures")
    from luban.generation.asking import generate, stream, told

    bundle = _load(folder)
    if chat:
        from luban.columns.chat import messages
        from luban.data.talks import is_talk

        given = messages(prompt, "--prompt") if is_talk(prompt) else []
        prompt = [m._asdict() for m in given] or [{"role": "user", "content": prompt}]
    if n == 1 and beams == 1 and not common["json"] and sys.stdout.isatty():
        for piece in stream(bundle, prompt, **asked, **sampling):
            print(piece, end="", flush=True)
        print()
        return
    (texts,) = generate(bundle, [prompt], n=n, beams=beams, **asked, **sampling)
    plain = [{"text": t.text, "tokens": len(t.ids), "reason": t.reason} for t in texts]
    told(texts)
    _result(plain[0] if n == 1 else plain, *(t.text for t in texts))


def _drawn(folder: str, recipe: Any, n: int, asked: list[str], out: str | None, other: Any) -> None:
    """The pictures of a model that makes some, in one file or a folder."""
    from luban.generation.drawing import draw, draws, recipe_of, save
    from luban.requests import named, pairs

    given, model = pairs(asked, "--set"), None if recipe else _answering(folder)
    draws(recipe or recipe_of(model), given)
    if other:
        raise RequestError("generate.only_texts")
    named(out or "", "generate")
    save(draw(model or _load(folder), n=n, seed=common["seed"], set=given), out)
    _result({"out": out, "count": n}, say("generate.drawn", count=n, path=out))


def embed(folder: str, data: str, *, input: str | None = None, out: str = "") -> None:
    from luban.requests import named

    if not named(out, "embed").endswith((".npy", ".parquet")):
        raise RequestError(problem("embed.no_format", place="--out", name=out, allowed=(".npy", ".parquet")))
    place = _sound(folder, data, out=out)
    from luban.searching import embedded

    count, size = embedded(_load(folder), data, input, place)
    console.tell("embed.done", rows=count, size=size)
    _result({"rows": count, "size": size, "out": out})


def index(model: str, data: str, *, input: str | None = None, out: str = "") -> None:
    from luban.requests import named, own

    place = _sound(None, data, out=named(out, "index"))
    own(place)
    from luban.searching import searcher

    bundle = searcher(model, data, input).index(data, input=input)
    bundle.save(place)
    _result({"folder": out, "rows": len(bundle.tables["index"])}, say("index.saved", folder=out))


def search(folder: str, query: str, *, top: int = 5, input: str | None = None) -> None:
    if top < 1:
        raise _too_few("--top", top, 1)
    _sound(folder)
    found = _load(folder).search(query, top, input)
    lines = [(f"{r['score']:.3f}", " | ".join(str(v)[:200] for k, v in r.items() if k != "score")) for r in found]
    _result(found, *table(lines))


def explain(
    folder: str,
    data: str,
    *,
    rows: int = 20,
    method: str = "integrated-gradients",
    target: str | None = None,
    output: str | None = None,
    attention: bool = False,
    out: str = "",
) -> None:
    from luban.registry import ALIASES
    from luban.requests import named

    method, seed = ALIASES.get(method, method), common["seed"] or 0
    place = _sound(folder, data, "explain", out=named(out, "explain"), rows=rows, method=method, seed=seed)
    settings = {
        "rows": rows,
        "method": method,
        "target": target,
        "output": output,
        "attention": attention,
        "seed": seed,
    }
    report = _load(folder).explain(data, **settings)
    report.save(place)
    for note in (b.text for b in report.blocks if getattr(b, "level", "") == "info"):
        console.block(note)
    _result(report.to_json()["numbers"], say("explain.done", path=os.path.join(place, "explain.html")))


def compress(
    folder: str,
    data: str | None = None,
    *,
    quantize: str | None = None,
    prune: float | None = None,
    distill: str | None = None,
    calibrate: int = 0,
    aware: int = 0,
    accept: float = 0.01,
    healing: int = 3,
    out: str = "",
) -> None:
    from luban.requests import named, own

    ways = {"quantize": quantize, "prune": prune, "distill": distill, "calibrate": calibrate, "aware": aware,
            "accept": accept, "healing": healing, "seed": common["seed"]}  # fmt: skip
    place = _sound(folder, data, "compress", out=named(out, "compress"), **ways)
    own(place)
    small = _load(folder, move=False).compress(data, **ways)
    from luban import pipeline

    small.save(place)
    pipeline.write_report(small, place)
    report = small.reports["compress"]
    plain = {"folder": out, "compress": report.to_json()["numbers"]}
    _result(plain, report.to_text() + say("train.saved", folder=out, report=os.path.join(out, "report.html")))


def audit(
    folder: str,
    data: str,
    *,
    sensitive: str | None = None,
    positive: str | None = None,
    output: str | None = None,
    json: file = None,  # noqa: F821
) -> None:
    asked = {"sensitive": sensitive, "positive": positive, "output": output, "seed": common["seed"]}
    _sound(folder, data, "audit", **asked)
    report = _load(folder).audit(data, **asked)
    _numbers(getattr(report, "reports", {}).get("audit", report), json)


def export(folder: str, data: str | None = None, *, to: str = "onnx", out: str = "") -> None:
    from luban.requests import named

    _sound(folder, data, "export", to=to, out=named(out, "export"))
    bundle = _load(folder, move=False)
    path = str(bundle.export(to, out=out, data=data or (_rows_of(bundle) if to in ("onnx", "openvino") else None)))
    _result({"path": path, "to": to}, say("export.done", path=path))


def serve(
    folder: str,
    *,
    port: int = 8000,
    host: str = "127.0.0.1",
    api_key: str | None = None,
    engine: str = "auto",
    batch: int = 32,
    queue: int = 256,
    deadline: float = 30.0,
    body: int | None = None,
    pixels: int = 16_000_000,
    precision: str = "fp32",
) -> None:
    from luban.registry import find

    asked = {
        "port": port, "engine": engine, "batch": batch, "queue": queue, "deadline": deadline, "body": body,
        "pixels": pixels, "precision": precision,
    }  # fmt: skip
    _sound(_folder(folder), None, "serve", **asked)
    find("stages", "serve")(folder, host=host, api_key=api_key or os.environ.get("LUBAN_API_KEY"), **asked)


def report(folder: str) -> None:
    from luban import pipeline

    _sound(folder)
    bundle = _load(folder, move=False)
    path = str(pipeline.write_report(bundle, _path(folder)))
    _result({"report": path, **pipeline.full_report(bundle).to_json()["numbers"]}, say("report.written", path=path))


def compare(folders: list[str]) -> None:
    from luban import comparing

    for folder in comparing.found_in(folders):
        _sound(str(folder))
    found = comparing.compare(folders)
    _result(found.to_json()["numbers"], found.to_text().rstrip("\n"))


def show(what: str) -> None:
    from luban.recipe import Recipe

    if what.endswith((".yaml", ".yml")):
        recipe = Recipe.load(what).resolved()
        _result(recipe.plain(), recipe.yaml().rstrip("\n"))
        return
    _sound(what)
    bundle = _load(what, move=False)
    entries = [{k: v for k, v in h.items() if k != "environment"} for h in bundle.history]
    lines = [f"# {_json.dumps(e, ensure_ascii=False, default=str)}" for e in entries]
    _result({**bundle.recipe.plain(), "history": bundle.history}, bundle.recipe.yaml().rstrip("\n"), *lines)


def list(what: str | None = None) -> None:
    from luban import registry

    if what is None:
        rooms = {room: registry.names(room) for room in registry.ROOMS if registry.ROOMS[room]}
        _result(rooms, *table([(room, ", ".join(names)) for room, names in rooms.items()]))
        return
    if what not in registry.ROOMS:
        raise RequestError(problem("list.unknown", name=what, allowed=registry.ROOMS))
    _names({name: say(f"use.{what}.{name}") for name in registry.names(what)})


def datasets(name: str | None = None, *, out: str | None = None) -> None:
    from luban.data import models, samples

    if name is None:
        plain = {n: s.to_json() for n, s in samples.SAMPLES.items()} | {
            n: models.to_json(s) for n, s in models.MODELS.items()
        }
        said = {n: s.said() for n, s in samples.SAMPLES.items()} | {n: models.said(s) for n, s in models.MODELS.items()}
        _result(plain, *table([*said.items()]))
        return
    source = models.found(name) if name in models.MODELS else samples.fetch(name)
    path = str(samples.copy(source, out, overwrite=common["overwrite"]) if out else source)
    _result({"name": name, "path": path, "target": getattr(samples.SAMPLES.get(name), "target", "")}, path)


def doctor() -> int:
    from luban.doctor import look

    facts, sick = look()
    _result(dict(facts), *table(facts))
    return 1 if sick else 0


def import_(source: str, *, recipe: str = "", data: str = "", column: str = "text", out: str = "") -> None:
    from luban.foreign import import_weights
    from luban.requests import fresh, named

    place = fresh(named(out, "import"), common["overwrite"])
    import_weights(source, recipe, data or None, column=column).save(place)
    _result({"folder": out}, say("import.saved", folder=out))


VERBS = (
    new,
    check,
    plan,
    run,
    train,
    tune,
    curve,
    resume,
    evaluate,
    shots,
    predict,
    generate,
    embed,
    index,
    search,
    explain,
    compress,
    audit,
    export,
    serve,
    report,
    compare,
    show,
    list,
    datasets,
    doctor,
    import_,
)

SPREAD = ("train", "run", "resume")  # verbs that several processes may do together


# -- the way in --------------------------------------------------------------------------------------------------------


def main(words: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = sys.argv[1:] if words is None else words
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a letter gets its number, not a traceback
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with _ending():
            return _main(words)
    except LubanError as e:
        return _refused(e, "--json" in words)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return _unheard(0)
    except OSError as e:
        print(say("io.failed", path=str(e.filename or ""), reason=e.strerror or str(e)), file=sys.stderr)
        return 1


@contextmanager
def _ending() -> Iterator[None]:
    """SIGTERM ends any verb as an exception does: half-written files go, locks are let go, exit code 143.

    Training listens for itself and ends with a checkpoint; a server drains.
    """

    def heard(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if mine:
        signal.signal(signal.SIGTERM, heard)
    try:
        yield
    finally:
        if mine:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _refused(error: LubanError, plain: bool) -> int:
    """Say what is wrong: to people on stderr, to programs on stdout."""
    console.record("error", **error.to_json())
    try:
        print(
            _json.dumps(error.to_json(), ensure_ascii=False) if plain else error,
            file=sys.stdout if plain else sys.stderr,
            flush=True,
        )
    except BrokenPipeError:
        return _unheard(error.exit_code)
    return error.exit_code


def _unheard(code: int) -> int:
    """Nobody reads on: nothing more is said, not even by Python at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def _main(words: list[str]) -> int:
    words = _verb_first(words)
    _language(words)
    verbs = {v.__name__.strip("_"): v for v in VERBS}
    if not words or words[0] in ("--help", "-h", "help"):
        print(overview(verbs))
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    if words[0] not in verbs:
        raise RequestError(problem("cli.no_verb", name=words[0], allowed=tuple(verbs)))
    verb = Verb(verbs[words[0]])
    if "--help" in words or "-h" in words:
        print(verb.help(COMMON))
        return 0
    own, shared = verb.parse(words[1:], COMMON)
    common.clear()
    common.update(shared)
    console.configure(quiet=bool(shared["quiet"]))
    if verb.name in COMPUTING or (shared["threads"], shared["device"]) != ("auto", "auto"):
        from luban.machine import set_threads, want_device

        set_threads(shared["threads"])
        want_device(shared["device"])
    if verb.name in SPREAD:
        from luban.scale import rank

        if rank():  # of a torchrun that was started around this command: rank 0 does the rest
            from luban.scaling.joined import follow

            follow()
            return 0
    return verb.function(**own) or 0


def _verb_first(words: list[str]) -> list[str]:
    """`luban --lang zh list` is `luban list --lang zh`; without a verb the help is asked for."""
    values, known = {f.label for f in COMMON if f.kind != "bool"}, {f.label for f in COMMON}
    i = 0
    while i < len(words) and words[i].startswith("--") and words[i] not in ("--help", "--version"):
        i += 2 if words[i] in values else 1
    if i >= len(words) and words and words[0].partition("=")[0] in known:
        return ["--help", *words]
    return [*words[i:], *words[:i]] if 0 < i < len(words) else words


def overview(verbs: dict[str, Any]) -> str:
    lines = [say("cli.usage", text="luban VERB ..."), "", *wrap(say("cli.luban")), ""]
    lines += table([(name, say(f"cli.{name}")) for name in verbs])
    return "\n".join([*lines, "", say("cli.more")])


def _language(words: list[str]) -> None:
    for i, word in enumerate(words):
        if word == "--lang" or word.startswith("--lang="):
            language = word.partition("=")[2] or (words[i + 1] if i + 1 < len(words) else "")
            if language not in (*LANGUAGES, "pseudo"):
                raise RequestError(problem("cli.no_language", name=language, allowed=LANGUAGES))
            set_language(language)


def _too_few(flag: str, found: int, least: int) -> RequestError:
    from luban.checking import wanted

    want = wanted({"type": "integer", "minimum": least})
    return RequestError(problem("cli.bad_value", place=flag, found=str(found), want=want))


def _load(folder: str, *, move: bool = True) -> Any:
    """The saved model, on the device that was asked for."""
    from luban.bundle import Bundle
    from luban.machine import wanted_device

    device = wanted_device()
    bundle = Bundle.load(folder)
    return bundle.on(device) if move and device else bundle


def _answering(path: str) -> Any:
    """What answers rows: a saved model, or the engine of an exported file, for which torch is not imported."""
    if _folder(path):
        return _load(path)
    from luban.engines import engine_of

    return engine_of(path)


def _folder(path: str) -> str | None:
    """The path of a saved model; None for an exported file."""
    from luban.engines import exported

    return None if exported(path) else path


def _ranks(count: int | None) -> Any:
    return [f"scale.ranks={count}"] if count is not None else []


def _sound(folder: str | None = None, data: str | None = None, stage: str = "", **asked: Any) -> Path:
    from luban.requests import sound

    return sound(folder, data, stage, overwrite=common["overwrite"], **asked)


def _path(name: str) -> Path:
    from pathlib import Path

    return Path(name)


def _rows_of(bundle: Any) -> Any:
    """The rows that a Bundle was trained from, when they are still where its recipe says."""
    from luban.data.prepare import prepare

    return prepare(bundle.recipe)


def _device_change() -> list[str]:
    return [f"train.device={common['device']}"] if common["device"] != "auto" else []


# -- results: sentences for people, one JSON value with --json -----------------------------------------------------------


def _result(plain: Any, *lines: str) -> None:
    if common["json"]:
        lines = (_json.dumps(plain, ensure_ascii=False, indent=1, default=str),)
    for line in lines:
        print(line)


def _names(about: dict[str, str]) -> None:
    _result(about, *table([*about.items()]))


def _numbers(report: Any, place: str | None) -> None:
    """A report as text, or its numbers as JSON: on stdout (`-`), or in a file beside the text."""
    plain = _json.dumps(report.to_json()["numbers"], ensure_ascii=False, indent=1)
    if place and place != "-":
        _path(place).write_text(plain, encoding="utf-8")
    print(plain if place == "-" else report.to_text())


def _trained(bundle: Any, folder: str) -> int:
    """What came of a training: the headline, where it lies, what to type next; the exit code."""
    from luban.pages import headline

    page = os.path.join(folder, "report.html")
    judged = bundle.reports.get("evaluate")
    plain = {"folder": folder, "report": page, "evaluate": judged.to_json()["numbers"] if judged else None}
    _result(plain, *headline(bundle), say("train.saved", folder=folder, report=page))
    number = next((h.get("signal", 0) for h in reversed(bundle.history) if h["stage"] == "train"), 0)
    if number:
        console.tell("train.interrupted", folder=folder)
    return 128 + number if number else 0


if __name__ == "__main__":
    sys.exit(main())
