"""How conversations are written down: a template is plain data in a column's state, never code.

A checkpoint's own one is a Jinja program. It is rendered for a few conversations, in a sandbox in a process of its own, and
what stands around the messages there is what is kept; the program is not. Only a template that is the same thing again for
all of those conversations is taken.

    begin  the id that stands first
    roles  role -> [open, close]: what stands before and behind a message, lists of ids and of texts
    system what is said first where a conversation does not say it itself; "" = nothing

Ids are control tokens, which no user can type; texts are cut together with the message beside them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from luban.columns import rendering
from luban.data.talks import ROLES

Template = Mapping[str, Any]
DEFAULT = re.compile(r"<\|im_start\|>system(?:\\n|\n)([^<>{}'\"]*)<\|im_end\|>")  # what a template says first by itself


def template_of(state: Mapping[str, Any]) -> Template:
    """The checkpoint's own, or plain marks: `role`, a new line, the message, the end token."""
    if state.get("chat"):
        return state["chat"]
    end = state["end"]
    return {"begin": state.get("begin", end), "system": "", "roles": {r: [[f"{r}\n"], [end]] for r in ROLES}}


def derived(source: str, tokens: Mapping[str, str], ids: Mapping[str, int], begin: int) -> Template | None:
    """The template that a Jinja program stands for; None where it is more than what stands around each message.

    `tokens`: bos_token and eos_token as the program knows them; `ids`: of the control tokens; `begin`: of the one that
    stands first. A program that knows no system messages gives a template without that role.
    """
    if not source or len(source) > rendering.LONGEST or find_spec("jinja2") is None:
        return None
    text = dict(zip(_PROBES, _rendered(source, tokens, [(_talk(roles), opened) for roles, opened in _PROBES])))
    found = _taken_apart(text, tokens)
    if found is None:
        return None
    bos, usual, marks = found
    for (roles, opened), rendered in text.items():
        if set(roles) <= set(marks) and rendered != _put_together(bos, usual, marks, roles, opened):
            return None
    roles = {r: [_pieces(part, ids) for part in pair] for r, pair in marks.items()}
    starts = {opens[0] if opens and isinstance(opens[0], int) else None for opens, _ in roles.values()}
    if not bos and len(starts) == 1 and None not in starts:
        begin = starts.pop()
    elif bos:
        first = _pieces(bos, ids)
        if len(first) != 1 or not isinstance(first[0], int):
            return None  # more than a token stands before all messages
        begin = first[0]
    return {"begin": begin, "system": usual or "", "roles": roles}


SYSTEM, USER, ASSISTANT = ROLES
_PROBES = tuple(
    (roles, opened)
    for roles in (
        (USER,), (USER, ASSISTANT), (USER, ASSISTANT, USER), (USER, ASSISTANT, USER, ASSISTANT),
        (SYSTEM, USER), (SYSTEM, USER, ASSISTANT), (SYSTEM, USER, ASSISTANT, USER),
    )
    for opened in (False, True)
    if not (opened and roles[-1] == ASSISTANT)
)  # fmt: skip


def _talk(roles: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": role, "content": _content(i)} for i, role in enumerate(roles)]


def _content(i: int) -> str:
    """A message that stands nowhere else, without blanks at its ends."""
    return f"\ue011 a {i}\ue012"


def _rendered(source: str, tokens: Mapping[str, str], talks: Sequence[Any]) -> list[str | None]:
    """What the program makes of each conversation; None where it refuses, all of them where it does not end in time."""
    asked = json.dumps({"source": source, "tokens": dict(tokens), "talks": talks, "seconds": rendering.SECONDS})
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(Path(rendering.__file__))], input=asked, capture_output=True, text=True,
            timeout=10 * rendering.SECONDS + 20, encoding="utf-8", check=False,
        )  # fmt: skip
        found = json.loads(done.stdout) if done.returncode == 0 else None
    except (subprocess.TimeoutExpired, ValueError, OSError):
        found = None
    wanted = isinstance(found, list) and len(found) == len(talks)
    return [t if isinstance(t, str) else None for t in found] if wanted else [None] * len(talks)


Marks = dict[str, tuple[str, str]]  # role -> what stands before and behind a message


def _taken_apart(text: Mapping[Any, str | None], tokens: Mapping[str, str]) -> tuple[str, str | None, Marks] | None:
    """(what stands before everything, what the system says by itself, marks), so far as the probes tell."""
    around = {probe: _around(t, len(probe[0])) for probe, t in text.items() if t is not None}
    asked = (((USER,), False), ((USER,), True), ((USER, ASSISTANT), False), ((USER, ASSISTANT, USER), False))
    one, opened, two, three = (around.get(probe) for probe in asked)
    if None in (one, opened, two, three):
        return None
    close_user, close_assistant = one[1], two[2]
    if not opened[1].startswith(close_user) or not three[2].startswith(close_assistant):
        return None
    open_assistant, open_user = opened[1][len(close_user) :], three[2][len(close_assistant) :]
    if not one[0].endswith(open_user):
        return None
    before = one[0][: len(one[0]) - len(open_user)]  # of all, and what the system says where nobody said it
    marks = {"user": (open_user, close_user), "assistant": (open_assistant, close_assistant)}
    led = around.get(((SYSTEM, USER), False))
    if led is None or not led[1].endswith(open_user):
        return before, None, marks
    close_system = led[1][: len(led[1]) - len(open_user)]
    bos = before if led[0].startswith(before) else ""
    usual = None
    if before.startswith(led[0]) and before.endswith(close_system) and len(before) > len(led[0]):
        bos = ""
        usual = before[len(led[0]) : len(before) - len(close_system)]
    open_system, first = led[0][len(bos) :], tokens.get("bos_token") or ""
    if first and not bos and open_system.startswith(first) and not open_user.startswith(first):
        bos, open_system = first, open_system[len(first) :]
    return bos, usual, marks | {"system": (open_system, close_system)}


def _around(text: str, count: int) -> list[str] | None:
    """What stands before, between and behind the messages; None where one is not there as it was, once."""
    parts = []
    for i in range(count):
        before, found, text = text.partition(_content(i))
        if not found:
            return None
        parts.append(before)
    return [*parts, text]


def _put_together(bos: str, usual: str | None, marks: Marks, roles: Sequence[str], opened: bool) -> str:
    text = bos
    if usual is not None and roles[0] != "system":
        text += marks["system"][0] + usual + marks["system"][1]
    for i, role in enumerate(roles):
        text += marks[role][0] + _content(i) + marks[role][1]
    return text + (marks["assistant"][0] if opened else "")


def _pieces(text: str, ids: Mapping[str, int]) -> list[int | str]:
    """Control tokens as ids, all else as text."""
    if not ids:
        return [text] if text else []
    names = sorted(ids, key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, names)) + ")", text)
    return [ids.get(p, p) for p in parts if p]


def jinja(template: Template, names: Mapping[int, str]) -> str | None:
    """The Jinja program of a template, for `transformers`, vLLM and llama.cpp. `names`: of control tokens.

    None where an id has no name.
    """
    roles = template["roles"]
    used = [template["begin"], *(i for pair in roles.values() for part in pair for i in part if isinstance(i, int))]
    if any(i not in names for i in used):
        return None
    said = lambda part: json.dumps("".join(names[p] if isinstance(p, int) else p for p in part), ensure_ascii=False)  # noqa: E731
    starts = all(opens and opens[0] == template["begin"] for opens, _ in roles.values())
    lines = [] if starts else ["{{ " + said([template["begin"]]) + " }}"]
    if template["system"]:
        opens, closes = roles["system"]
        first = said([*opens, template["system"], *closes])
        lines.append("{% if messages[0]['role'] != 'system' %}{{ " + first + " }}{% endif %}")
    lines.append("{% for message in messages %}")
    for i, (role, (opens, closes)) in enumerate(roles.items()):
        asked = "{% " + ("elif" if i else "if") + f" message['role'] == '{role}' %}}"
        lines.append(asked + "{{ " + f"{said(opens)} + message['content'] + {said(closes)}" + " }}")
    lines.append("{% else %}{{ raise_exception('role') }}{% endif %}{% endfor %}")
    lines.append("{% if add_generation_prompt %}{{ " + said(roles["assistant"][0]) + " }}{% endif %}")
    return "".join(lines)


def known(source: str, ids: Mapping[str, int], begin: int) -> Template | None:
    """The template of a checkpoint whose own one (Jinja, which is only looked at) is one of those that are known."""
    if all(t in source and t in ids for t in ("<|im_start|>", "<|im_end|>")):  # ChatML
        start, end = ids["<|im_start|>"], ids["<|im_end|>"]
        usual = DEFAULT.search(source)
        roles = {r: [[start, f"{r}\n"], [end, "\n"]] for r in ROLES}
        return {"begin": start, "system": usual[1] if usual else "", "roles": roles}
    llama = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    if all(t in source and t in ids for t in llama):
        start, end, over = (ids[t] for t in llama)
        roles = {r: [[start, r, end, "\n\n"], [over]] for r in ROLES}
        return {"begin": begin, "system": "", "roles": roles}
    return None
