"""What a command was asked, held against what is there: all that is wrong, at once, before torch is imported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from luban import console, files, registry
from luban.checking import Check
from luban.errors import LubanError, RequestError, Unsupported, problem, raise_all


def sound(
    folder: str | None = None,
    data: str | None = None,
    stage: str = "",
    *,
    out: str | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> Path:
    """The path of `out`. `folder`: a saved model; `data`: rows; `settings`: of the stage, each with its flag's name.

    Raises RequestError with every mistake.
    """
    problems = []
    for look, value in ((saved, folder), (there, data), (lambda p: fresh(p, overwrite), out)):
        try:
            look(value) if value is not None else None
        except LubanError as e:
            problems += e.problems
    shapes = registry.schema("stages", stage)["properties"] if stage else {}
    for name, value in settings.items():
        problems += Check().value(value, shapes[name], (f"--{name}",))
    raise_all(RequestError, problems)
    return Path(out or "")


def named(out: str, verb: str) -> str:
    if not out:
        raise RequestError("cli.lacking", what="--out", verb=verb)
    return out


def fresh(folder: str, overwrite: bool) -> Path:
    """An --out that is empty or not there, or may be overwritten."""
    path = Path(folder)
    if path.exists() and not overwrite and (path.is_file() or any(p.name != "run.log" for p in path.iterdir())):
        raise RequestError("cli.not_empty", path=folder)
    return path


def saved(folder: str) -> None:
    files.open_sealed(files.recovered(Path(folder).absolute()), "bundle", whole=False)


def language_model(name: str) -> None:
    """A saved model that writes without inputs, or what may be a checkpoint. Raises RequestError, Unsupported."""
    from luban.data import models
    from luban.recipe import Recipe

    if (Path(name) / files.MANIFEST).is_file():
        saved(name)
        recipe = Recipe.load(Path(name) / "recipe.yaml")
        if not recipe.writes or recipe.inputs:
            raise Unsupported("shots.no_language_model", model=name)
    elif not models.possible(name):
        raise RequestError(models.absent(name, ""))


def there(data: str) -> None:
    from luban.data.samples import SAMPLES

    path = Path(data).expanduser()
    if data != "-" and not path.exists() and data not in SAMPLES:
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise RequestError(problem("data.no_such_file", name=path.name, path=data, allowed=[*near, *SAMPLES]))


def own(folder: str | Path) -> None:
    """A folder that a model is written to holds nobody else's files."""
    files.refuse_foreign(Path(folder).resolve(), "bundle")


@contextmanager
def logged(folder: str | Path) -> Iterator[None]:
    """What happens goes to FOLDER/run.log, too. A folder that a wrong request would have filled is not left behind."""
    own(folder)
    path = Path(folder)
    made = [p for p in (path, *path.absolute().parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    console.log_to(path / "run.log")
    try:
        yield
    except RequestError:
        if made and not [p for p in path.iterdir() if p.name != "run.log"]:
            console.log_to(None)
            (path / "run.log").unlink(missing_ok=True)
            with suppress(OSError):
                for empty in made:
                    empty.rmdir()
        raise


def pairs(items: Any, flag: str) -> dict[str, str]:
    """["col=text", ...] -> {"col": "text"}."""
    found = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise RequestError("cli.want_pair", flag=flag, found=item)
        found[name] = value
    return found
