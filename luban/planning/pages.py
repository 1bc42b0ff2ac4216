"""A plan as a Report: numbers for machines, tables and sentences for people."""

from __future__ import annotations

from typing import Any

from luban.messages import say
from luban.nn.transformer import Layer
from luban.planning import hardware
from luban.planning.layout import Layout
from luban.planning.plan import Planned
from luban.report import Report

HOUR = 3600
LEAST = 0.001
LARGE = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
PARTS = ("weights", "gradients", "optimizer", "gathered", "activations", "best", "rows", "process")


def page(p: Planned, price: float | None = None, carbon: float | None = None) -> Report:
    """`price`: USD for a device's hour, `carbon`: g for a kWh, in place of the table's."""
    report = Report("plan", say("plan.title"), numbers(p, price, carbon))
    n = report.numbers
    report.text(p.subject.title)
    _network(report, n)
    _memory(report, p)
    _verdict(report, p)
    _cost(report, p, n["plan"])
    report.heading(say("plan.assumed"))
    for sentence in n["assumptions"]:
        report.text(f"- {sentence}")
    return report


# -- numbers -----------------------------------------------------------------------------------------------------------------


def numbers(p: Planned, price: float | None = None, carbon: float | None = None) -> dict[str, Any]:
    """All that a plan says, in plain units: bytes, FLOPs, seconds, USD, kWh, kg. What is `estimated` says so."""
    s, m = p.subject, p.measured
    setup = p.asked.setup
    step = m.pace(p.asked.micro, setup.precision, setup.recompute)
    example = (step.forward + step.backward) / step.examples
    judged = step.forward / step.examples * s.validation * s.epochs
    plain = {
        "parameters": m.standing.parameters,
        "trainable": m.standing.trainable,
        "flops": {
            "example": example,
            "token": example / s.positions if s.positions else None,
            "update": example * s.update,
            "run": example * s.update * s.steps + judged,
            "by_formula": formula(p),
        },
        "run": {
            "updates": s.steps, "epochs": s.epochs, "batch": s.update, "rows": s.rows, "validation_rows": s.validation,
            "positions": s.positions, "longest": s.longest,
        },
        "device": {"name": setup.device.name, "title": setup.device.title, "count": setup.devices},
        "strategies": {name: _layout(e) for name, e in p.laid.items()},
        "plan": _plan(p, p.best, price, carbon),
        "fits": p.stands.able(s.update),
        "changes": changes(p),
    }  # fmt: skip
    return plain | {"assumptions": assumptions(p, price, carbon)}


def _layout(e: Layout) -> dict[str, Any]:
    return {
        "memory_bytes": {**e.memory, "total": e.total}, "memory_limit": e.limit, "fits": e.fits,
        "refused": [str(r) for r in e.refused],
        "micro_batch": e.micro, "accumulate": e.setup.accumulate, "precision": e.setup.precision,
        "recompute": e.setup.recompute, "sent_bytes_per_update": e.sent, "link": e.link, "sending_seconds": e.sending,
        "share_of_update": e.share, "update_seconds": e.seconds,
    }  # fmt: skip


def _plan(p: Planned, e: Layout, price: float | None, carbon: float | None) -> dict[str, Any]:
    """What the plan that fits would take. Every number here is an estimate."""
    device, count = e.setup.device, e.setup.devices
    seconds = p.run_seconds(e)
    price = device.price if price is None else price
    hours = seconds / HOUR * count
    kwh = device.watts * hours / 1000 * hardware.assumption("pue")
    return {
        **_layout(e), "strategy": e.setup.strategy, "devices": count, "estimated": True, "timed": p.timed is not None,
        "minutes": seconds / 60, "cpu_seconds": seconds * device.cores if device.cpu else None, "device_hours": hours,
        "usd": None if price is None else price * hours, "kwh": kwh,
        "kg_co2": kwh * (hardware.assumption("carbon_g_kwh") if carbon is None else carbon) / 1000,
        "achieved_share_of_peak": _achieved(p, e),
    }  # fmt: skip


def _achieved(p: Planned, e: Layout) -> float:
    """Of the peak, what the model's own FLOPs (without those that are computed again) come to."""
    step = p.measured.pace(e.micro, e.setup.precision, False)
    flops = (step.forward + step.backward) / step.examples * p.aim.update
    return flops / e.setup.devices / e.seconds / e.setup.device.peak(e.setup.precision)


def formula(p: Planned) -> float | None:
    """6 N + 12 L d T for a token of a transformer (Kaplan et al. 2020, Chowdhery et al. 2022); None for another network."""
    network = p.measured.network
    blocks = [m for m in network.modules() if isinstance(m, Layer)]
    if not blocks or not p.subject.positions:
        return None
    matrices = sum(q.numel() for b in blocks for q in b.parameters()) + getattr(network, "output_parameters", 0)
    wide = sum(b.attention.outer.in_features for b in blocks)
    return 6 * matrices + 12 * wide * p.subject.positions


def changes(p: Planned) -> dict[str, Any]:
    """Recipe keys that make the plan that minutes are told of, with their values; {} where that is how training would go."""
    a, b = p.stands.setup, p.best.setup
    keys: dict[str, Any] = {}
    if (a.devices, a.strategy) != (b.devices, b.strategy):
        keys["scale.ranks"] = b.devices
        keys["scale.strategy"] = b.strategy if b.devices > 1 else "ddp"
    keys |= {
        f"train.{n}": getattr(b, n) for n in ("precision", "accumulate", "recompute") if getattr(a, n) != getattr(b, n)
    }
    if "train.accumulate" in keys or p.larger:  # so many pieces of one update
        keys["train.batch"] = -(-p.aim.plan.batch // b.accumulate)
    return keys


def assumptions(p: Planned, price: float | None, carbon: float | None) -> list[str]:
    """Every figure that was taken for granted, as sentences."""
    device = p.best.setup.device
    found = list(p.subject.assumed)
    if p.timed is not None:
        found.append(say("plan.by_timing", seconds=f"{p.timed.update:.3g}"))
    elif p.achieved is not None:
        found.append(say("plan.by_share", share=f"{p.achieved:.0%}"))
    else:
        found.append(
            say(
                "plan.by_roofline", matrices=f"{device.assumed('matrix_share'):.0%}", bandwidth=f"{device.assumed('bandwidth_share'):.0%}",
                kernel=f"{device.assumed('kernel_seconds') * 1e6:.0f}",
            )
        )  # fmt: skip
    if p.best.setup.devices > 1:
        found.append(say("plan.by_link", share=f"{device.assumed('link_share'):.0%}", nodes=device.per_node))
    found.append(say("plan.by_energy", watts=f"{device.watts:g}", pue=hardware.assumption("pue"),
                     carbon=f"{hardware.assumption('carbon_g_kwh') if carbon is None else carbon:g}"))  # fmt: skip
    money = device.price if price is None else price
    found.append(say("plan.no_price") if money is None else say("plan.by_price", usd=f"{money:g}"))
    if not device.cpu:
        found.append(say("plan.by_memory", share=f"{device.assumed('memory_share'):.0%}"))
    return found


# -- sentences ---------------------------------------------------------------------------------------------------------------


def _network(report: Report, n: dict[str, Any]) -> None:
    flops, run = n["flops"], n["run"]
    rows = [
        [say("plan.parameters"), f"{n['parameters']:,}"],
        [say("plan.flops_example"), large(flops["example"], "FLOP")],
    ]
    if flops["token"]:
        rows.append([say("plan.flops_token", positions=f"{run['positions']:.0f}"), large(flops["token"], "FLOP")])
    if flops["by_formula"]:
        part = flops["by_formula"] / flops["token"]
        rows.append([say("plan.flops_formula"), say("plan.of_counted", value=large(flops["by_formula"], "FLOP"), share=f"{part:.0%}")])  # fmt: skip
    rows.append([say("plan.flops_run"), large(flops["run"], "FLOP")])
    epochs = f"{run['epochs']:.3g}"
    rows.append([say("plan.updates"), say("plan.updates_text", updates=f"{run['updates']:,}", batch=f"{run['batch']:,}", epochs=epochs)])  # fmt: skip
    report.table("", [say("plan.what"), say("plan.amount")], rows)


def _memory(report: Report, p: Planned) -> None:
    setup = p.asked.setup
    report.heading(say("plan.memory", device=setup.device.title, count=setup.devices))
    rows: list[list[Any]] = []
    for part in PARTS:
        cells = [e.memory.get(part, 0.0) for e in p.laid.values()]
        if any(cells):
            rows.append([say(f"plan.part_{part}"), *(large(c, "B") for c in cells)])
    rows.append([say("plan.total"), *(large(e.total, "B") for e in p.laid.values())])
    rows.append([say("plan.limit"), *(large(e.limit, "B") for e in p.laid.values())])
    rows.append([say("plan.fits"), *(say(_fits(e)) for e in p.laid.values())])
    rows.append([say("plan.micro"), *(f"{e.micro:,}" for e in p.laid.values())])
    if setup.devices > 1:
        rows.append([say("plan.sent"), *(large(e.sent, "B") for e in p.laid.values())])
        rows.append([say("plan.link"), *(e.link for e in p.laid.values())])
        rows.append([say("plan.share"), *(f"{e.share:.0%}" for e in p.laid.values())])
    report.table("", [say("plan.strategy"), *map(_way, p.laid)], rows)


def _way(strategy: str) -> str:
    return say("plan.one") if strategy == "one" else strategy


def _fits(e: Layout) -> str:
    return "plan.cannot" if e.refused else "plan.yes" if e.fits else "plan.no"


def _verdict(report: Report, p: Planned) -> None:
    batch, e, best = p.subject.update, p.stands, p.best
    for reason in dict.fromkeys(str(r) for each in p.laid.values() for r in each.refused):
        report.note("bad" if reason in map(str, e.refused) else "warn", reason)
    if not e.fits:
        report.note("bad", say("plan.too_large", strategy=_way(e.setup.strategy), wanted=large(e.total, "B"), found=large(e.limit, "B")))  # fmt: skip
    if e.idle(batch):
        report.note("bad", say("plan.idle", idle=e.idle(batch), count=e.setup.devices, batch=batch))
    keys = ", ".join(f"{k}: {str(v).lower() if isinstance(v, bool) else v}" for k, v in changes(p).items())
    if e.able(batch):
        if keys:
            report.note("good", say("plan.faster", keys=keys, share=f"{1 - best.seconds / e.seconds:.0%}"))
        return
    if not best.able(p.aim.update):
        report.note("bad", say("plan.nothing_fits"))
        return
    report.note("good", say("plan.nearest", keys=keys, devices=best.setup.devices, total=large(best.total, "B")))
    if best.setup.strategy == "tensor":
        report.note("warn", say("plan.tensor_elsewhere"))


def _cost(report: Report, p: Planned, n: dict[str, Any]) -> None:
    other = changes(p) and not p.stands.able(p.subject.update)
    title = say("plan.cost_nearest") if other else say("plan.cost")
    report.heading(title)
    rows = [
        [say("plan.update_time"), duration(n["update_seconds"])],
        [say("plan.run_time"), duration(n["minutes"] * 60)],
    ]
    rows += [
        [say(f"plan.{k}"), amount(n[k])]
        for k in ("device_hours", "cpu_seconds", "usd", "kwh", "kg_co2")
        if n[k] is not None
    ]
    rows.append([say("plan.achieved"), f"{n['achieved_share_of_peak']:.0%}"])
    report.table("", [say("plan.what"), say("plan.estimated")], rows)


def large(value: float, unit: str) -> str:
    """1234567 B -> "1.23 MB"."""
    step = 0
    while abs(value) >= 1000 and step < len(LARGE) - 1:
        value, step = value / 1000, step + 1
    return say("plan.quantity", value=f"{value:.3g}" if value < 999.5 else f"{value:.0f}", unit=LARGE[step] + unit)


def amount(value: float) -> str:
    """Three figures, none of them behind the third place."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= LEAST or not value else f"< {LEAST}"


def duration(seconds: float) -> str:
    for id, size in (("plan.days", 86400), ("plan.hours", HOUR), ("plan.minutes", 60), ("plan.seconds", 1)):
        if seconds >= min(size, 2) * size:
            return say(id, value=f"{seconds / size:,.3g}" if seconds < 1000 * size else f"{seconds / size:,.0f}")
    return say("plan.milliseconds", value=f"{seconds * 1000:.3g}")
