"""Conversations, and answers of which one is preferred: what a cell says, and the rows that hold neither."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from luban.data.rows import BadRow, Rows
from luban.errors import DataError, problem

ROLES = ("system", "user", "assistant")
KEYS = (("role", "content"), ("from", "value"))  # of OpenAI's messages and of ShareGPT's conversations
SHAREGPT = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
HOLDS = ("messages", "conversations", "conversation")  # where a record keeps the list
SPEAK = ("text", "chat")  # types of columns whose network may answer one
PLAIN = {"type": "text"}  # what OpenAI's API calls plain text
SIDES = ("chosen", "rejected")
_LIST = re.compile(r"\s*\[\s*\{")


class Said(NamedTuple):
    role: str
    content: str


def missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and value != value)


def messages(value: Any) -> list[Said]:
    """What is said, in order. Raises BadRow with what is wrong and in which message."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as e:
            raise BadRow("chat.no_json", value=value[:40]) from e
    if isinstance(value, Mapping):
        value = next((value[k] for k in HOLDS if k in value), value)
    if not isinstance(value, (list, tuple)) or not value:
        raise BadRow("chat.no_list", value=str(value)[:40])
    return [_message(m, i) for i, m in enumerate(value, 1)]


def _message(message: Any, number: int) -> Said:
    keys = next((k for k in KEYS if isinstance(message, Mapping) and all(m in message for m in k)), None)
    if keys is None:
        raise BadRow("chat.no_message", number=number, found=str(message)[:40])
    role, content = (message[k] for k in keys)
    role = SHAREGPT.get(str(role), str(role))
    if role not in ROLES:
        raise BadRow("chat.no_role", name=role[:40], number=number, allowed=[*ROLES, *SHAREGPT])
    if not isinstance(content, str):
        raise BadRow("chat.no_text", number=number, found=type(content).__name__)
    return Said(role, content)


def preferred(value: Any) -> dict[str, list[Said]]:
    """The conversations that end with the chosen answer and with the rejected one. Raises BadRow."""
    try:
        record = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as e:
        raise BadRow("preference.no_record", value=str(value)[:40]) from e
    if not isinstance(record, Mapping) or any(record.get(s) in (None, "") for s in SIDES):
        raise BadRow("preference.no_record", value=str(value)[:40])
    return {side: _ending(record.get("prompt"), record[side], side) for side in SIDES}


def _ending(prompt: Any, answer: Any, side: str) -> list[Said]:
    said = messages(answer) if is_talk(answer) else [Said("assistant", str(answer))]
    if said[0].role == "assistant" and prompt is not None:
        before = messages(prompt) if is_talk(prompt) else [Said("user", str(prompt))]
        said = [*before, *said]
    if said[-1].role != "assistant":
        raise BadRow("preference.no_answer", side=side, role=said[-1].role)
    return said


def is_talk(value: Any) -> bool:
    """Whether it is a list of messages, or begins as one in JSON does; a text may well begin with a bracket."""
    return isinstance(value, (list, tuple)) or (isinstance(value, str) and bool(_LIST.match(value)))


def spoken(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages of OpenAI's API as a template takes them: a list of text parts is the text of all, a line each; a `developer` is
    the system; keys that are null or empty ask for nothing. Raises DataError with the place of a part that is no text, or a key that is not kept.
    """
    found = []
    for i, message in enumerate(messages):
        told = {k: v for k, v in message.items() if v not in (None, [], {})}
        for key, value in told.items():
            if key == "content" and isinstance(value, list):
                told[key] = "\n".join(_part(p, f"messages[{i}].content[{j}]") for j, p in enumerate(value))
            elif not isinstance(value, str):
                raise DataError(problem("chat.not_kept", place=f"messages[{i}].{key}"[:80], name=key[:80]))
        found.append(told | ({"role": "system"} if told.get("role") == "developer" else {}))
    return found


def _part(part: Any, place: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") != PLAIN["type"] or not isinstance(part.get("text"), str):
        raise DataError(problem("chat.no_part", place=place))
    return part["text"]


def held(names: Sequence[str]) -> str | None:
    """The first of some columns that conversations usually stand in."""
    return next((n for n in HOLDS if n in names), None)


READ: Mapping[str, Callable[[Any], Any]] = {"chat": messages, "preference": preferred}


def talked(rows: Rows, name: str, kind: str, learned: bool) -> Rows:
    """The rows whose cell of the column `name` is none or is right; the others go aside. `learned`: the assistant must say something.

    Raises DataError where no row is right.
    """
    reasons: dict[int, tuple[str, dict[str, Any]]] = {}
    for i, cell in enumerate(rows.column(name).to_pylist()):
        try:
            found = [] if missing(cell) else READ[kind](cell)
            if learned and kind == "chat" and found and not any(s.role == "assistant" for s in found):
                raise BadRow("chat.no_answer")
        except BadRow as e:
            reasons[i] = (e.id, {"name": name, **e.values})
    if reasons and len(reasons) == len(rows):
        id, values = reasons[min(reasons)]
        raise DataError(problem(id, place=rows.place(min(reasons)), **values))
    return rows.drop_each(reasons)
