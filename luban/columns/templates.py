"""How conversations are written down: a template is plain data in a column's state, never code.

    begin  the id that stands first
    roles  role -> [open, close]: what stands before and behind a message, lists of ids and of texts
    system what is said first where a conversation does not say it itself; "" = nothing

Ids are control tokens, which no user can type; texts are cut together with the message beside them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Template = Mapping[str, Any]
ROLES = ("system", "user", "assistant")
DEFAULT = re.compile(r"<\|im_start\|>system(?:\\n|\n)([^<>{}'\"]*)<\|im_end\|>")  # what a template says first by itself


def template_of(state: Mapping[str, Any]) -> Template:
    """The checkpoint's own, or plain marks: `role`, a new line, the message, the end token."""
    if state.get("chat"):
        return state["chat"]
    end = state["end"]
    return {"begin": state.get("begin", end), "system": "", "roles": {r: [[f"{r}\n"], [end]] for r in ROLES}}


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
