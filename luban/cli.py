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
from luban.errors import LubanError, RequestError, problem, raise_all
from luban.messages import LANGUAGES, say, set_language

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
common: dict[str, Any] = {}  # the common flags of this call


# -- verbs, in the order of a model's life -------------------------------------------------------------------------


def new(task: str, folder: str | None = None) -> None:
    from luban.starters import STARTERS, write_starter

    if folder is None and task in STARTERS:
        raise RequestError("cli.lacking", what="FOLDER", verb="new")
    for line in write_starter(task, _fresh(folder) if folder else ""):
        print(line)


def check(
    source: str, *, target: str | None = None, inputs: list[str] = (), type: list[str] = (), set: list[str] = ()
) -> int:
    if source.endswith((".yaml", ".yml")):  # mistakes of the recipe are told before anything is imported to read data
        from luban.recipe import Recipe

        Recipe.load(source, tuple(set))
    from luban.asking import Ask
    from luban.asking import check as look

    _, findings, _ = look(source, Ask(target, inputs, _pairs(type, "--type"), changes=set))
    if common["json"]:
        print(_json.dumps([f.to_json() for f in findings], ensure_ascii=False, indent=1))
    else:
        for f in findings:
            print(f"{say('check.' + f.level)} {f.problem}")
        print(say("check.done", count=len(findings)))
    return 1 if any(f.level == "error" for f in findings) else 0


def run(recipe: str, *, out: str = "", set: list[str] = (), ranks: int | None = None) -> int:
    from luban import pipeline

    folder = _named(out, "run")
    _log(folder)
    seed = [f"seed={common['seed']}"] if common["seed"] is not None else []
    bundle = pipeline.run(recipe, folder, set=[*set, *seed, *_ranks(ranks)])
    _headline(bundle)
    print(say("run.done", folder=folder, report=os.path.join(folder, "report.html")))
    return _signal_code(bundle)


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

    folder = _fresh(_named(out, "train"))
    _log(folder)
    changes = [*set, *_ranks(ranks), *([f"train.device={common['device']}"] if common["device"] != "auto" else [])]
    changes += [f"train.track=[{', '.join(track)}]"] if track else []
    bundle = pipeline.train(
        data, target, inputs=inputs, types=_pairs(type, "--type"), model=_pairs(model, "--model"), size=size,
        seed=common["seed"], start=from_, set=changes, out=folder,
    )  # fmt: skip
    pipeline.write_report(bundle, folder)
    _headline(bundle)
    print(say("train.saved", folder=folder))
    return _signal_code(bundle)


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
    from luban.tuning import verbs
    from luban.yaml_file import parse

    folder = _going_on(_named(out, "tune"), verbs.TUNE)
    _log(folder)
    space = {k: parse(v, f"--search {k}")[0] for k, v in _pairs(search, "--search").items()}
    asked = {"trials": trials, "minutes": minutes, "metric": metric, "search": space or None, "parallel": parallel,
             "engine": engine}  # fmt: skip
    changes = [*set, *([f"train.device={common['device']}"] if common["device"] != "auto" else [])]
    bundle = verbs.tune(
        data, target, inputs=inputs, types=_pairs(type, "--type"), model=_pairs(model, "--model"), size=size,
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
    from luban.tuning import verbs

    folder = _going_on(_named(out, "curve"), verbs.CURVE)
    _log(folder)
    asked = {"rows": [*rows], "sizes": [*sizes], "repeats": repeats, "metric": metric, "grid": grid or None,
             "parallel": parallel, "engine": engine}  # fmt: skip
    changes = [*set, *([f"train.device={common['device']}"] if common["device"] != "auto" else [])]
    bundle = verbs.curve(
        data, target, inputs=inputs, types=_pairs(type, "--type"), model=_pairs(model, "--model"), size=size,
        seed=common["seed"], set=changes, out=folder, **{k: v for k, v in asked.items() if v},
    )  # fmt: skip
    if not common["json"]:
        print(pages.notes(bundle.reports["curve"]))
    return _shown(bundle, folder, "curve")


def _shown(bundle: Any, folder: Path, kind: str) -> int:
    """The page of a finished search, its first table and the headline on stdout; or its numbers."""
    from luban import pages

    pages.write_report(bundle, folder)
    if common["json"]:
        print(_json.dumps(bundle.reports[kind].to_json()["numbers"], ensure_ascii=False, indent=1))
        return 0
    print(pages.first_table(bundle.reports[kind]), end="")
    _headline(bundle)
    print(say("train.saved", folder=folder))
    return 0


def _going_on(folder: str, inner: str) -> Path:
    """An --out that a search of ours already stands in is gone on with; `--overwrite` begins anew."""
    import shutil

    path = _path(folder)
    if common["overwrite"]:
        shutil.rmtree(path / inner, ignore_errors=True)
    return path if (path / inner).is_dir() else _fresh(folder)


def resume(folder: str, *, ranks: int | None = None, set: list[str] = ()) -> int:
    from luban import pipeline

    if _path(folder).is_dir():
        _log(folder)
    bundle = pipeline.resume(folder, set=[*set, *_ranks(ranks)])
    pipeline.write_report(bundle, _path(folder))
    _headline(bundle)
    print(say("train.saved", folder=folder))
    return _signal_code(bundle)


def evaluate(folder: str, data: str, *, json: file = None, slices: list[str] = ()) -> None:  # noqa: F821
    _sound(folder, data)
    bundle = _load(folder)
    report = bundle.evaluate(data, slices=slices, baselines=False)
    if json and json != "-":
        _path(json).write_text(_json.dumps(report.to_json()["numbers"], indent=1, ensure_ascii=False), encoding="utf-8")
    print(_json.dumps(report.to_json()["numbers"], ensure_ascii=False, indent=1) if json == "-" else report.to_text())


def predict(folder: str, data: str, *, out: str = "-", processes: int = 1) -> None:
    from luban.predictions import predict_file, writer_for

    writer_for(out)
    if processes < 1:
        raise RequestError(problem("cli.bad_value", place="--processes", found=str(processes), want="integer >= 1"))
    _sound(None if folder.endswith(".onnx") else folder, data, out=None if out == "-" else out)
    rows, bad = predict_file(_answering(folder), data, out, processes=processes)
    console.tell("predict.done", rows=rows, bad=bad)


def explain(
    folder: str,
    data: str,
    *,
    rows: int = 20,
    method: str = "integrated-gradients",
    target: str | None = None,
    output: str | None = None,
    out: str = "",
) -> None:
    from luban.registry import ALIASES

    method = ALIASES.get(method, method)
    place = _sound(folder, data, "explain", out=_named(out, "explain"), rows=rows, method=method)
    bundle = _load(folder)
    report = bundle.explain(data, rows=rows, method=method, target=target, output=output, seed=common["seed"] or 0)
    report.save(place)
    print(say("explain.done", path=os.path.join(place, "explain.html")))


def compress(
    folder: str,
    data: str | None = None,
    *,
    quantize: str | None = None,
    prune: float | None = None,
    distill: str | None = None,
    out: str = "",
) -> None:
    place = _sound(
        folder, data, "compress", out=_named(out, "compress"), quantize=quantize, prune=prune, distill=distill
    )
    _own(place)
    bundle = _load(folder)
    small = bundle.compress(data or _rows_of(bundle), quantize=quantize, prune=prune, distill=distill)
    from luban import pipeline

    small.save(place)
    pipeline.write_report(small, _path(place))
    print(small.reports["compress"].to_text(), end="")
    print(say("train.saved", folder=place))


def audit(folder: str, data: str, *, sensitive: str | None = None, json: file = None) -> None:  # noqa: F821
    _sound(folder, data)
    bundle = _load(folder)
    report = bundle.audit(data, sensitive=sensitive)
    report = getattr(report, "reports", {}).get("audit", report)
    if json and json != "-":
        _path(json).write_text(_json.dumps(report.to_json()["numbers"], indent=1, ensure_ascii=False), encoding="utf-8")
    print(_json.dumps(report.to_json()["numbers"], ensure_ascii=False, indent=1) if json == "-" else report.to_text())


def export(folder: str, data: str | None = None, *, to: str = "onnx", out: str = "") -> None:
    _sound(folder, data, "export", to=to)
    out = _named(out, "export")
    bundle = _load(folder)
    path = bundle.export(to, out=out, data=data or _rows_of(bundle))
    print(say("export.done", path=str(path)))


def serve(
    folder: str, *, port: int = 8000, host: str = "127.0.0.1", api_key: str | None = None, engine: str = "auto"
) -> None:
    from luban.registry import find

    _sound(None if folder.endswith(".onnx") else folder, None, "serve", port=port, engine=engine)
    find("stages", "serve")(
        folder, port=port, host=host, api_key=api_key or os.environ.get("LUBAN_API_KEY"), engine=engine
    )


def report(folder: str) -> None:
    from luban import pipeline

    _sound(folder)
    bundle = _load(folder)
    print(
        pipeline.full_report(bundle).to_markdown()
        if common["json"]
        else say("report.written", path=str(pipeline.write_report(bundle, _path(folder))))
    )


def compare(folders: list[str]) -> None:
    from luban import comparing

    for folder in comparing.found_in(folders):
        _sound(str(folder))
    report = comparing.compare(folders)
    if common["json"]:
        print(_json.dumps(report.to_json()["numbers"], ensure_ascii=False, indent=1))
    else:
        print(report.to_text(), end="")


def show(what: str) -> None:
    from luban.recipe import Recipe

    if what.endswith((".yaml", ".yml")):
        print(Recipe.load(what).resolved().yaml(), end="")
    else:
        _sound(what)
        bundle = _load(what)
        print(bundle.recipe.yaml(), end="")
        for entry in bundle.history:
            print(
                "#",
                _json.dumps({k: v for k, v in entry.items() if k != "environment"}, ensure_ascii=False, default=str),
            )


def list(what: str | None = None) -> None:
    from luban import registry

    if what is None:
        print(
            "\n".join(
                table([(room, ", ".join(registry.names(room))) for room in registry.ROOMS if registry.ROOMS[room]])
            )
        )
        return
    if what not in registry.ROOMS:
        raise RequestError(problem("list.unknown", name=what, allowed=registry.ROOMS))
    print("\n".join(table([(name, say(f"use.{what}.{name}")) for name in registry.names(what)])))


def datasets(name: str | None = None, *, out: str | None = None) -> None:
    from luban.data import samples

    if name is None:
        print(
            "\n".join(
                table(
                    [
                        (
                            n,
                            say(
                                "datasets.line",
                                rows=s.rows,
                                target=s.target,
                                size=s.size,
                                licence=s.licence,
                                origin=say(f"sample.{n}.origin"),
                            ),
                        )
                        for n, s in samples.SAMPLES.items()
                    ]
                )
            )
        )
        return
    print(samples.save(name, out) if out else samples.fetch(name))


def doctor() -> int:
    from luban.doctor import look

    facts, sick = look()
    print(_json.dumps(dict(facts), ensure_ascii=False, indent=1) if common["json"] else "\n".join(table(facts)))
    return 1 if sick else 0


def import_(file: str, *, recipe: str = "", data: str = "", out: str = "") -> None:
    from luban.foreign import import_weights

    place = _fresh(_named(out, "import"))
    import_weights(file, recipe, data or None).save(place)
    print(say("train.saved", folder=place))


VERBS = (
    new,
    check,
    run,
    train,
    tune,
    curve,
    resume,
    evaluate,
    predict,
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
        console.record("error", **e.to_json())
        print(
            _json.dumps(e.to_json(), ensure_ascii=False) if "--json" in words else e,
            file=sys.stdout if "--json" in words else sys.stderr,
        )
        return e.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
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


def _main(words: list[str]) -> int:
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
    if verb.name not in ("list", "datasets", "show", "new"):
        from luban.machine import set_threads

        set_threads(shared["threads"])
    if verb.name in SPREAD:
        from luban.scale import rank

        if rank():  # of a torchrun that was started around this command: rank 0 does the rest
            from luban.scaling.joined import follow

            follow()
            return 0
    return verb.function(**own) or 0


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


def _load(folder: str) -> Any:
    from luban.bundle import Bundle

    return Bundle.load(folder)


def _answering(path: str) -> Any:
    """What answers rows: a saved model, or the engine of an `.onnx` file, for which torch is not imported."""
    if not path.endswith(".onnx"):
        return _load(path)
    from luban.engines import OnnxEngine

    return OnnxEngine(path)


def _ranks(count: int | None) -> Any:
    return [f"scale.ranks={count}"] if count is not None else []


def _named(out: str, verb: str) -> str:
    if not out:
        raise RequestError("cli.lacking", what="--out", verb=verb)
    return out


def _fresh(folder: str) -> Path:
    """An --out that is empty or not there, or may be overwritten."""
    path = _path(folder)
    if (
        path.exists()
        and not common["overwrite"]
        and (path.is_file() or any(p.name != "run.log" for p in path.iterdir()))
    ):
        raise RequestError("cli.not_empty", path=folder)
    return path


def _sound(
    folder: str | None, data: str | None = None, stage: str = "", *, out: str | None = None, **settings: Any
) -> Path:
    """All that can be wrong with a request about a saved model, at once, before torch is imported; the path of `out`."""
    from luban import registry
    from luban.recipe import Check

    problems = []
    for look, value in ((_saved, folder), (_there, data), (_fresh, out)):
        try:
            look(value) if value is not None else None
        except LubanError as e:
            problems += e.problems
    shapes = registry.schema("stages", stage)["properties"] if stage else {}
    for name, value in settings.items():
        problems += Check().value(value, shapes[name], (f"--{name}",))
    raise_all(RequestError, problems)
    return _path(out or "")


def _saved(folder: str) -> None:
    from luban import files

    files.open_sealed(files.recovered(_path(folder).absolute()), "bundle", whole=False)


def _there(data: str) -> None:
    from luban.data.samples import SAMPLES

    path = _path(data).expanduser()
    if data != "-" and not path.exists() and data not in SAMPLES:
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise RequestError(problem("data.no_such_file", name=path.name, path=data, allowed=[*near, *SAMPLES]))


def _path(name: str | Path) -> Path:
    from pathlib import Path

    return Path(name)


def _own(folder: str | Path) -> None:
    """A folder that a model is written to holds nobody else's files."""
    from luban import files

    files.refuse_foreign(_path(folder).resolve(), "bundle")


def _log(folder: str | Path) -> None:
    _own(folder)
    _path(folder).mkdir(parents=True, exist_ok=True)
    console.log_to(_path(folder) / "run.log")


def _pairs(items: Any, flag: str) -> dict[str, str]:
    """["col=text", ...] -> {"col": "text"}."""
    pairs = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise RequestError("cli.want_pair", flag=flag, found=item)
        pairs[name] = value
    return pairs


def _rows_of(bundle: Any) -> Any:
    """The rows that a Bundle was trained from, when they are still where its recipe says."""
    from luban.data.prepare import prepare

    return prepare(bundle.recipe)


def _headline(bundle: Any) -> None:
    from luban.pages import headline

    for line in headline(bundle):
        print(line)


def _signal_code(bundle: Any) -> int:
    number = next((h.get("signal", 0) for h in reversed(bundle.history) if h["stage"] == "train"), 0)
    if number:
        console.tell("train.interrupted")
    return 128 + number if number else 0


if __name__ == "__main__":
    sys.exit(main())
