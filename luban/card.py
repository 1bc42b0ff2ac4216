"""The model card: README.md of a Bundle, with Hugging Face front matter. Every number in it is a stored one."""

from __future__ import annotations

from typing import Any

from luban.messages import say
from luban.yaml_file import dump


def card(bundle: Any) -> str:
    """Markdown: what the model is for, what it was trained on, how well it does beside the baselines, what was not checked."""
    recipe = bundle.recipe
    front = {"library_name": "luban", "pipeline_tag": recipe.task(), "tags": ["luban", recipe.task()]}
    parts = ["---\n" + dump(front) + "---", "# " + say("card.title", task=recipe.task())]
    parts += [_intended(bundle), _data(bundle), _numbers(bundle), _checked(bundle), _use(bundle)]
    return "\n\n".join(p for p in parts if p) + "\n"


def code(name: str) -> str:
    """A name as Markdown shows it: in backticks, without what could end them, a table's cell, the line or be HTML."""
    plain = "".join(c if c.isprintable() else " " for c in name)
    return "`" + plain.translate({ord("`"): "'", ord("|"): "¦", ord("<"): "‹", ord(">"): "›"}) + "`"


def _intended(bundle: Any) -> str:
    lines = ["## " + say("card.use"), say("card.use_text")]
    for title, parts in (("card.inputs", bundle.recipe.inputs), ("card.outputs", bundle.recipe.outputs)):
        if parts:
            lines += [say(title), "\n".join(f"- {code(n)}: {p.type}" for n, p in parts.items())]
    return "\n\n".join(lines)


def _data(bundle: Any) -> str:
    trained = next((h for h in reversed(bundle.history) if h["stage"] == "train"), None)
    if trained is None:
        return ""
    rows, ledger = trained["rows"], trained["ledger"]
    lines = [
        say("card.rows", train=rows["train"], validation=rows["validation"], test=rows["test"]),
        say("card.ledger", rows_in=ledger["in"], used=ledger["used"], quarantined=ledger["quarantined"]),
        *(
            say("columns.sampled", name=n, count=count, rows=rows["train"])
            for n, count in trained.get("learned_from", {}).items()
        ),
        say(
            "card.training", parameters=f"{trained['parameters']:,}", steps=trained["steps"], seconds=trained["seconds"]
        ),
    ]
    return "\n\n".join(["## " + say("card.data"), *lines])


def _numbers(bundle: Any) -> str:
    report = bundle.reports.get("evaluate")
    if report is None:
        return ""
    lines = [
        "## " + say("card.numbers"),
        say("card.rows_judged", rows=report.numbers.get("rows"), part=str(report.numbers.get("part"))),
    ]
    for name, output in report.numbers.get("outputs", {}).items():
        table = [f"| {code(name)} | {say('card.value')} | {say('card.interval')} |", "|---|---|---|"]
        for metric, m in output["metrics"].items():
            if m.get("value") is not None:
                interval = f"{m['low']:.4g} - {m['high']:.4g}" if m.get("low") is not None else ""
                table.append(f"| {metric} | {m['value']:.4g} | {interval} |")
        lines.append("\n".join(table))
    return "\n\n".join(lines)


def _checked(bundle: Any) -> str:
    done = [h["stage"] for h in bundle.history]
    lines = [
        say("card.checked." + s) if s in done or s in bundle.reports else say("card.unchecked." + s)
        for s in ("evaluate", "explain", "audit", "export")
    ]
    return "\n".join(["## " + say("card.checked"), "", *(f"- {line}" for line in lines)])


def _use(bundle: Any) -> str:
    return "\n\n".join(["## " + say("card.how"), say("card.snippet" if bundle.inputs else "card.snippet_writes")])
