"""What is answered, in the words of the API."""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from luban.errors import Problem
from luban.generation.sampling import LENGTH
from luban.stages.serve.refusal import plain

if TYPE_CHECKING:  # torch comes with it
    from luban.generation.writing import Text

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
CODES = {
    "serve.wrong_key": "invalid_api_key", "serve.openai.no_model": "model_not_found", "serve.full": "rate_limit_exceeded",
    "serve.openai.too_long": "context_length_exceeded", "serve.openai.far_too_long": "context_length_exceeded",
}  # fmt: skip


def refused(status: int, found: Problem) -> dict[str, Any]:
    """An error: its sentence, its kind by the status, the key that it is about, and a word for machines."""
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    said = plain(found)
    return {
        "error": {
            "message": said["message"],
            "type": kind,
            "param": said["place"] or None,
            "code": CODES.get(found.id, found.id),
        }
    }


@dataclass
class Choice:
    """One text of a completion, or a piece of it."""

    index: int
    text: str
    logprobs: Any = None
    finish_reason: str | None = None


def ending(reason: str) -> str | None:
    """Why a text ended: by itself or at a word is `stop`, for want of room `length`."""
    return None if not reason else "length" if reason == LENGTH else "stop"


@dataclass
class Frame:
    """What all that is said of one request has in common."""

    model: str
    chat: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def _around(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        name = f"chatcmpl-{self.id}" if self.chat else f"cmpl-{self.id}"
        return {"id": name, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def whole(self, texts: Sequence[Text], column: Any, logprobs: bool, read: int) -> dict[str, Any]:
        """All of a request. `read`: tokens of its prompts."""
        choices = []
        for i, t in enumerate(texts):
            chances = None
            if logprobs:
                chances = _of_chat(t, column) if self.chat else _of_completion(t, column)
            found = asdict(Choice(i, t.text, chances, ending(t.reason)))
            if self.chat:
                message = {"role": "assistant", "content": t.text, "refusal": None}
                found = {"index": i, "message": message, "logprobs": chances, "finish_reason": ending(t.reason)}
            choices.append(found)
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._around(kind, choices), "usage": usage(read, sum(len(t.ids) for t in texts))}

    def piece(self, index: int, text: str, reason: str = "", first: bool = False) -> dict[str, Any]:
        """Some more of one text; of a chat, the first says who speaks, and the last says nothing."""
        if not self.chat:
            return self._around("text_completion", [asdict(Choice(index, text, None, ending(reason)))])
        delta = {"role": "assistant", "content": text} if first else {"content": text} if text else {}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": ending(reason)}
        return self._around("chat.completion.chunk", [choice])

    def last(self, read: int, written: int) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._around(kind, []), "usage": usage(read, written)}


def usage(read: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _tokens(t: Text, column: Any) -> list[str]:
    return [column.text([i]) for i in t.ids]


def _of_completion(t: Text, column: Any) -> dict[str, Any]:
    tokens = _tokens(t, column)
    offsets = np.cumsum([0, *(len(w) for w in tokens)])[:-1].tolist()
    return {
        "tokens": tokens,
        "token_logprobs": t.log_probabilities,
        "top_logprobs": None,
        "text_offset": offsets,
    }


def _of_chat(t: Text, column: Any) -> dict[str, Any]:
    pairs = zip(_tokens(t, column), t.log_probabilities)
    return {"content": [{"token": w, "logprob": p, "bytes": None, "top_logprobs": []} for w, p in pairs]}


def models(name: str, created: int) -> dict[str, Any]:
    return {"object": "list", "data": [model(name, created)]}


def model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "luban"}


def vectors(name: str, found: np.ndarray, packed: bool, read: int) -> dict[str, Any]:
    """(N, D) as lists of numbers, or as base64 of little-endian float32."""
    shown = [base64.b64encode(v.astype("<f4").tobytes()).decode() if packed else [float(x) for x in v] for v in found]
    data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(shown)]
    return {"object": "list", "data": data, "model": name, "usage": {"prompt_tokens": read, "total_tokens": read}}
