"""The page at /docs: no address outside, no word about the model until the browser has asked with its key."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from luban.markup import escape
from luban.messages import language, say

_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def docs() -> tuple[str, str]:
    """HTML, and the Content-Security-Policy under which it works."""
    return _docs(language())


@cache
def _docs(language: str) -> tuple[str, str]:
    template = (Path(__file__).parent / "docs.html").read_text(encoding="utf-8")
    said = lambda word: language if word == "lang" else say(f"serve.page.{word}")  # noqa: E731
    text = re.sub(r"%([a-z_.]+)%", lambda m: escape(said(m[1])), template)
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.search(text)[1].encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy
