"""What a model that writes gives back of the texts that it was trained on, beside texts that it never saw."""

from __future__ import annotations

from typing import Any

import numpy as np

from luban.evaluation import memory
from luban.evaluation.memory import Passage
from luban.evaluation.seen import which_seen
from luban.messages import say

SHOWN, LONGEST = 5, 240  # passages of the report, characters of each
WORTH = 5  # tokens that are worth showing


def audit(report: Any, bundle: Any, data: Any, rows: np.ndarray, *, passages: int, context: int, follow: int) -> None:
    """Writes what was found into the report. Only for a network that writes token by token."""
    trained, held = _sides(bundle, data, rows)
    report.heading(say("memory.title"), 2)
    seed, sides = bundle.recipe.seed, {}
    for name, part in (("trained", trained), ("held_out", held)):
        if len(part):
            framed = data.framed(part, bundle.recipe.frame)
            asked = {"count": passages, "context": context, "follow": follow, "seed": seed}
            sides[name] = memory.passages(bundle.engine.network, bundle.columns, bundle.inputs, framed, **asked)
    sides = {name: found for name, found in sides.items() if found}
    if "trained" not in sides:
        report.note("info", say("memory.too_short", least=2 * memory.FEWEST) if len(trained) else say("memory.no_rows"))
        return
    found: dict[str, Any] = {"context": context, "follow": follow}
    found |= {n: {"passages": len(p), **memory.measured(p, seed)} for n, p in sides.items()}
    report.numbers["memory"] = found
    body = [[say(f"memory.{n}"), m["passages"], m["extracted"].to_json(), m["copied"].to_json()] for n, m in ((n, found[n]) for n in sides)]  # fmt: skip
    if "held_out" in sides:
        found["beyond"] = memory.beyond(sides["trained"], sides["held_out"], seed)
        body.append([say("memory.beyond"), None, *(m.to_json() for m in found["beyond"].values())])
    head = ["", say("memory.passages"), say("memory.extracted"), say("memory.copied")]
    report.text(say("memory.about", context=context, follow=follow))
    report.table("", head, body)
    report.note(*_verdict(found))
    _show(report, bundle, sides["trained"])


def _sides(bundle: Any, data: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that were trained on, and others. Of a file without parts the model's fingerprints tell."""
    if data.splits is not None:
        return data.part("train"), rows
    known = which_seen(bundle, data, rows)
    return (rows[:0], rows) if known is None else (rows[known], rows[~known])


def _verdict(found: dict[str, Any]) -> tuple[str, str]:
    if "beyond" not in found:
        return "info", say("memory.no_control")
    share, copied = found["beyond"]["extracted"], found["beyond"]["copied"]
    if share.low > 0:
        return "bad", say("memory.gives_back", share=f"{100 * found['trained']['extracted'].value:.1f}")
    if copied.low is not None and copied.low > 0:
        return "warn", say("memory.copies_more", percent=f"{100 * copied.value:.1f}")
    return "good", say("memory.no_more", high=f"{100 * share.high:.1f}")


def _show(report: Any, bundle: Any, found: list[Passage]) -> None:
    """The training passages of which most came back, each once."""
    column = bundle.columns[bundle.network.written]
    told: dict[str, list[Any]] = {}
    for p in sorted(found, key=lambda p: (-p.copied, p.example)):
        if p.copied < WORTH or len(told) == SHOWN:
            break
        prompt, wrote = (column.text(ids) for ids in (p.prompt, p.wrote))
        told.setdefault(wrote, ["… " + prompt[-LONGEST:], wrote[:LONGEST], f"{p.copied} / {len(p.truth)}"])
    if told:
        report.table(say("memory.shown"), [say("memory.prompt"), say("memory.wrote"), say("memory.tokens")], [*told.values()])  # fmt: skip
        report.note("info", say("memory.holds_text"))
