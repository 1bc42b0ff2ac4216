"""Renders a checkpoint's chat template (Jinja) for some conversations: a process of its own, which is given JSON and gives JSON.

As `transformers` does it, in an immutable sandbox; beyond that with a limit on time and memory, without numbers that grow, and
without the clock. What the process says is taken for text and for nothing else. Stand-alone: imports nothing of Luban.
"""

from __future__ import annotations

import json
import sys
from typing import Any

SECONDS, MEMORY = 10, 1 << 30  # of the processor; bytes
LONGEST = 1 << 16  # characters of a template, and of what it renders


def limited(seconds: int) -> None:
    """What it may use of the machine, where the system can be told so."""
    try:
        import resource
    except ImportError:  # Windows: the parent's clock is all there is
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def rendered(source: str, tokens: dict[str, str], talk: list[dict[str, str]], opened: bool) -> str | None:
    """The text of a conversation; None where the template fails or refuses it. `opened`: the answer's beginning behind it."""
    from jinja2.exceptions import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

    class Small(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["*", "**"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**" or not isinstance(left, (int, float)) or not isinstance(right, (int, float)):
                raise SecurityError(operator)
            return super().call_binop(context, operator, left, right)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = Small(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals = {
        "raise_exception": refuse,
        "namespace": environment.globals["namespace"],
        "range": environment.globals["range"],
    }
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    try:
        text = environment.from_string(source).render(messages=talk, add_generation_prompt=opened, **tokens)
    except (
        TemplateError,
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        RecursionError,
        MemoryError,
    ):
        return None
    return text if len(text) <= LONGEST else None


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    limited(asked["seconds"])
    json.dump([rendered(asked["source"], asked["tokens"], talk, opened) for talk, opened in asked["talks"]], sys.stdout)
