"""The OpenAPI document of a service: what a row is, from what its columns say. Every number in it has a maximum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luban import __version__, registry
from luban.messages import say
from luban.stages.serve.engine import TALKS, Guarded
from luban.stages.serve.openai.wanted import SCHEMAS
from luban.stages.serve.rows import LARGEST
from luban.stages.serve.service import Service

STATUSES = (400, 401, 403, 408, 413, 415, 421, 422, 429, 500, 503, 504)
HIGHEST = 1.7976931348623157e308


def openapi(service: Service, kinds: Sequence[str] = ()) -> dict[str, Any]:
    """OpenAPI 3.1 of the endpoints; `components.schemas.Row` is a row of this model. `kinds`: paths below /v1/."""
    answers = _answers(service.engine)
    posts = {name: {"post": _post(name, service)} for name in answers}
    posts |= {f"v1/{name}": {"post": _kept(name)} for name in kinds}
    gets = {name: {"get": _get(name)} for name in ("healthz", "readyz", "metrics", "docs", "openapi.json")}
    gets |= {"v1/models": {"get": _get("v1/models")}} if kinds else {}
    document = {
        "openapi": "3.1.0",
        "info": {"title": say("serve.api.title", outputs=service.engine.outputs), "version": __version__},
        "paths": {f"/{name}": path for name, path in {**posts, **gets}.items()},
        "components": {
            "schemas": _schemas(service),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }
    if service.limits.api_key:
        document["security"] = [{"bearer": []}, {"key": []}]
    return document


def _answers(engine: Guarded) -> tuple[str, ...]:
    """The paths that take rows. What reads nothing predicts nothing; where it writes, the beginning of its text is explained."""
    if not engine.outputs:
        return ()
    if engine.inputs:
        return ("predict", "explain")
    return ("explain",)


def _post(name: str, service: Service) -> dict[str, Any]:
    answer = {"predict": "Answers", "explain": "Explanation"}[name]
    wrong = {str(s): {"description": say(f"serve.status.{s}"), "content": _content("Refused")} for s in STATUSES}
    return {
        "summary": say(f"serve.api.{name}"),
        "operationId": name,
        "requestBody": {"required": True, "content": _content(f"{name.capitalize()}Request", _example(service))},
        "responses": {"200": {"description": say("serve.status.200"), "content": _content(answer)}, **wrong},
    }


EXAMPLES = {
    "completions": {"prompt": "", "max_tokens": 32},
    "chat/completions": {"messages": [{"role": "user", "content": ""}]},
    "embeddings": {"input": ""},
}


def _kept(name: str) -> dict[str, Any]:
    """One path of OpenAI's API, as far as it is kept."""
    schema = bounded(SCHEMAS[name], int(LARGEST))
    content = {"application/json": {"schema": schema, "example": EXAMPLES[name]}}
    return {
        "summary": say(f"serve.api.v1/{name}"),
        "operationId": name.replace("/", "_"),
        "requestBody": {"required": True, "content": content},
        "responses": {
            "200": {"description": say("serve.status.200")},
            **{str(s): {"description": say(f"serve.status.{s}")} for s in STATUSES},
        },
    }


def _get(name: str) -> dict[str, Any]:
    return {
        "summary": say(f"serve.api.{name}"),
        "operationId": name.partition(".")[0].replace("/", "_"),
        "responses": {"200": {"description": say("serve.status.200")}},
    }


def _content(schema: str, example: Any = None) -> dict[str, Any]:
    content = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    return {"application/json": content | ({"example": example} if example is not None else {})}


def _example(service: Service) -> dict[str, Any]:
    columns = service.engine.columns
    return {"rows": [{n: (columns[n].schema().get("examples") or [None])[0] for n in service.engine.explained}]}


def _schemas(service: Service) -> dict[str, Any]:
    engine, limits = service.engine, service.limits
    row = {
        "type": "object",
        "properties": {n: bounded(engine.columns[n].schema(), limits.body) for n in engine.explained},
        "required": [n for n in engine.explained if not engine.columns[n].drawn],
        "additionalProperties": False,
    }
    explainer = engine.explainer
    flags = getattr(explainer, "flags", ())
    settings = {
        n: {"type": "boolean"} if n in flags else bounded({"type": ["string", "number", "boolean"]}, 200)
        for n in getattr(explainer, "settings", ())
    }
    few = min(limits.batch, getattr(explainer, "most", 1))
    string = {"type": "string", "maxLength": 1000}
    error = _object({"id": string, "message": string, "place": string})
    chance = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
    most = {"maxLength": limits.body, "minimum": -HIGHEST, "maximum": HIGHEST}
    one = {"type": ["string", "object"], "maxLength": limits.body}  # a tag, a label; what was found and where
    tags = {"maxItems": limits.body, "items": one}
    value = {"type": ["string", "number", "array", "null"], **most, **tags}
    candidates = {"type": "array", "maxItems": 100, "items": _object({"value": value, "probability": chance})}
    answer = _object({"value": value, "probability": chance, "candidates": candidates})
    answered = _object({"answers": _object(dict.fromkeys(engine.outputs, answer))})
    return {
        "Row": row,
        **({"Talk": _talk(limits.body)} if engine.talks else {}),
        "PredictRequest": _request(limits.batch, {}),
        "ExplainRequest": _request(few, settings, ("Row", "Talk") if engine.talks else ("Row",)),
        "Answers": _object({"rows": _many({"oneOf": [answered, _object({"error": error})]}, limits.batch)}),
        "Explanation": {"type": "object"},
        "Refused": {"type": "object", "properties": {"error": error}, "required": ["error"]},
    }


def _talk(most: int) -> dict[str, Any]:
    """A conversation that a writer of texts answers."""
    talk = bounded(registry.find("columns", "chat")(TALKS).schema(), most)
    return {**_object({TALKS: talk}), "additionalProperties": False}


def _request(most: int, settings: dict[str, Any], rows: Sequence[str] = ("Row",)) -> dict[str, Any]:
    kinds = [{"$ref": f"#/components/schemas/{name}"} for name in rows]
    row = kinds[0] if len(kinds) == 1 else {"oneOf": kinds}
    many = {"rows": {**_many(row, most), "minItems": 1}, **settings}
    batch = {"type": "object", "properties": many, "required": ["rows"], "additionalProperties": False}
    return {"oneOf": [batch, *kinds]}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _many(items: dict[str, Any], most: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "maxItems": most}


def bounded(schema: dict[str, Any], most: int) -> dict[str, Any]:
    """The same schema with an end to every number, text and list that has none."""
    kinds = schema.get("type", [])
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    ends: dict[str, Any] = {}
    if kinds & {"number", "integer"}:
        ends |= {"minimum": -LARGEST, "maximum": LARGEST}
    if "string" in kinds:
        ends["maxLength"] = most
    if "array" in kinds:
        ends["maxItems"] = most
    result = ends | schema
    if isinstance(result.get("items"), dict):
        result["items"] = bounded(result["items"], most)
    if isinstance(result.get("anyOf"), list):
        result["anyOf"] = [bounded(s, most) for s in result["anyOf"]]
    if isinstance(result.get("additionalProperties"), dict):
        result["additionalProperties"] = bounded(result["additionalProperties"], most)
    if isinstance(result.get("properties"), dict):
        result["properties"] = {k: bounded(v, most) for k, v in result["properties"].items()}
    return result
