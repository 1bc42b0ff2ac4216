"""Luban (鲁班): from data to a deep model that can be trusted and shipped, and stays with it for its whole life.

import luban
model = luban.train("reviews.csv", target="sentiment")
model.predict([{"review": "great film"}])

Nothing heavy is imported until it is used.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from luban.asking import check
    from luban.bundle import Bundle
    from luban.errors import LubanError
    from luban.pipeline import load, run, train
    from luban.planning.plan import plan
    from luban.prompted import shots
    from luban.recipe import Recipe
    from luban.report import Report
    from luban.tuning.verbs import curve, tune

_WHERE = {
    "Bundle": "luban.bundle",
    "LubanError": "luban.errors",
    "Recipe": "luban.recipe",
    "Report": "luban.report",
    "check": "luban.asking",
    "curve": "luban.tuning.verbs",
    "load": "luban.pipeline",
    "plan": "luban.planning.plan",
    "run": "luban.pipeline",
    "shots": "luban.prompted",
    "train": "luban.pipeline",
    "tune": "luban.tuning.verbs",
}
__all__ = [
    "Bundle",
    "LubanError",
    "Recipe",
    "Report",
    "check",
    "curve",
    "load",
    "plan",
    "run",
    "shots",
    "train",
    "tune",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(name)
    import importlib

    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
