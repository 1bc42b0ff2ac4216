"""What a request asks for, checked key by key. The signatures are the schemas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from luban.checking import Check
from luban.data.json_lines import strict
from luban.data.rows import BadRow
from luban.data.talks import PLAIN
from luban.errors import Problem, problem
from luban.generation.sampling import Penalty, Sampling
from luban.settings import MOST_BEAMS, Fraction, Range, schema_of
from luban.stages.serve.refusal import Refusal

MOST = 2**31 - 1
Some = Annotated[int, Range(low=1, high=MOST)]
Seed = Annotated[int, Range(low=0, high=2**63 - 1)]
Temperature = Annotated[float, Range(low=0, high=100)]
Share = Annotated[float, Range(above=0, high=1)]
Repetition = Annotated[float, Range(low=0.01, high=100)]
STOPS = 16

# Keys of the API that change nothing about the answer here.
NEUTRAL = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
# Keys that would change it and are not kept, with the values that ask for nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "echo": (False,), "suffix": ("",), "logit_bias": ({},), "tools": ([],), "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False), "functions": ([],), "function_call": ("none", "auto"), "top_logprobs": (0,),
    "response_format": (PLAIN,), "prediction": (), "reasoning_effort": (), "verbosity": (),
    "web_search_options": (), "dimensions": (),
}  # fmt: skip


def _sampled(
    *,
    model: str | None = None,
    n: Some = 1,
    stop: str | list[str] | None = None,
    stream: bool = False,
    stream_options: dict | None = None,
    seed: Seed | None = None,
    temperature: Temperature = 1.0,
    top_p: Share = 1.0,
    top_k: Annotated[int, Range(low=0, high=MOST)] = 0,
    min_p: Fraction = 0.0,
    repetition_penalty: Repetition = 1.0,
    presence_penalty: Penalty = 0.0,
    frequency_penalty: Penalty = 0.0,
    use_beam_search: bool = False,
    best_of: Some | None = None,
) -> None: ...


def _completion(
    *,
    prompt: str | list[str] = "",
    max_tokens: Some = 16,
    logprobs: Annotated[int, Range(low=0, high=0)] | None = None,
) -> None: ...


def _chat(
    *,
    messages: list[dict],
    max_tokens: Some | None = None,
    max_completion_tokens: Some | None = None,
    logprobs: bool = False,
) -> None: ...


def _embedding(
    *,
    input: str | list[str],
    model: str | None = None,
    encoding_format: Literal["float", "base64"] = "float",
) -> None: ...


def _schema(*parts: Callable[..., Any]) -> dict[str, Any]:
    found = [schema_of(p) for p in parts]
    required = [name for f in found for name in f.get("required", ())]
    properties = {k: v for f in found for k, v in f["properties"].items()}
    return {"type": "object", "properties": properties} | ({"required": required} if required else {})


SCHEMAS = {
    "completions": _schema(_completion, _sampled),
    "chat/completions": _schema(_chat, _sampled),
    "embeddings": _schema(_embedding),
}
SAMPLING = tuple(n for n in Sampling.__dataclass_fields__ if n != "seed")


def read(body: bytes, kind: str, model: str) -> dict[str, Any]:
    """The settings of a request, defaults filled in; a key that is null is not there. Raises Refusal."""
    try:
        found = strict(body)
    except BadRow as e:
        raise Refusal(400, e.id, place="body", **e.values) from e
    if not isinstance(found, dict):
        raise Refusal(400, "serve.openai.want_object", place="body")
    given = {k: v for k, v in found.items() if v is not None}
    wrong = _wrong(given, SCHEMAS[kind])
    if wrong is not None:
        raise Refusal(400, wrong)
    if given.get("model", model) != model:
        raise Refusal(404, problem("serve.openai.no_model", place="model", name=given["model"][:80], allowed=[model]))
    known = SCHEMAS[kind]["properties"]
    asked = {k: given.get(k, s.get("default")) for k, s in known.items()}
    return _searched(asked, given) if "best_of" in known else asked


def _searched(asked: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`beams`: how many beginnings are kept. Names as vLLM and OpenVINO's server have them: `use_beam_search`, with `best_of` as the
    width; then a temperature that is not given is 0. Raises Refusal for what a search does not do.
    """
    if not asked["use_beam_search"]:
        if asked["best_of"] not in (None, 1):
            raise Refusal(400, "serve.openai.best_of_alone", place="best_of")
        return asked | {"beams": 1}
    asked["temperature"] = given.get("temperature", 0.0)
    if asked["best_of"] is None:
        raise Refusal(400, "serve.openai.no_width", place="best_of")
    if asked["best_of"] > MOST_BEAMS:
        raise Refusal(400, "serve.count", place="best_of", found=asked["best_of"], limit=MOST_BEAMS)
    penalties = ("presence_penalty", "frequency_penalty")
    odd = {"stream": asked["stream"], "temperature": asked["temperature"] != 0, "n": asked["n"] != 1}
    odd |= {k: asked[k] != 0 for k in penalties} | {"repetition_penalty": asked["repetition_penalty"] != 1}
    if wrong := [k for k, found in odd.items() if found]:
        raise Refusal(400, "serve.openai.beams_alone", place=wrong[0], names=wrong)
    return asked | {"beams": asked["best_of"]}


def _wrong(given: Mapping[str, Any], schema: Mapping[str, Any]) -> Problem | None:
    """The first mistake."""
    known = schema["properties"]
    for key, value in given.items():
        if key in known or key in NEUTRAL:
            continue
        if key not in REFUSED:
            return problem("serve.unknown_key", place="body", name=key[:80], allowed=known)
        if value not in REFUSED[key]:
            return problem("serve.openai.not_kept", place=key, name=key)
    own = {k: v for k, v in given.items() if k in known}
    missing = next((k for k in schema.get("required", ()) if k not in own), None)
    if missing is not None:
        return problem("serve.openai.missing", place="body", name=missing)
    return next(iter(Check().value(own, schema, ())), None)


def several(value: str | list[str], place: str, most: int) -> list[str]:
    """One text or some. Raises Refusal for none and for too many."""
    found = [value] if isinstance(value, str) else list(value)
    if not 1 <= len(found) <= most:
        raise Refusal(400, "serve.count", place=place, found=len(found), limit=most)
    return found


def stops(value: str | list[str] | None) -> tuple[str, ...]:
    """Words that end a text; an empty one ends none. Raises Refusal for too many."""
    found = [value] if isinstance(value, str) else list(value or ())
    if len(found) > STOPS:
        raise Refusal(400, "serve.openai.stops", place="stop", limit=STOPS)
    return tuple(w for w in found if w)
