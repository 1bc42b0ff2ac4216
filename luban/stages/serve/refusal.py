"""How the server says no: a status, a problem for machines and people, and when to come back."""

from __future__ import annotations

from typing import Any

from luban.errors import Problem, problem


class Refusal(Exception):
    """A request that is not answered. `status`: HTTP; `again`: seconds for Retry-After; `close`: hang up afterwards."""

    def __init__(
        self, status: int, id: str | Problem, *, place: str = "", again: int = 0, close: bool = False, **values: Any
    ):
        super().__init__(id if isinstance(id, str) else id.id)
        self.status, self.again, self.close = status, again, close
        self.problem = problem(id, place=place, **values) if isinstance(id, str) else id

    @property
    def headers(self) -> dict[str, str]:
        found = {"retry-after": str(self.again)} if self.again else {}
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        return found | ({"connection": "close"} if self.close else {})


def placed(found: Problem, place: str) -> Problem:
    """The same problem at another place."""
    return Problem(found.id, place, found.values, found.allowed, found.nearest)


def plain(found: Problem) -> dict[str, str]:
    """{"id", "message", "place"}: `message` is a sentence, the other two are for machines."""
    text = str(found)
    lead = f"{found.place}: "
    return {"id": found.id, "message": text.removeprefix(lead)[:1000], "place": found.place[:200]}
