"""The OpenAPI document, and a page of it that needs no network."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from headrace.proxy.openai import ChatRequest, CompletionRequest, ModelChatRequest
from headrace.proxy.tasks import (
    DetokenizeRequest,
    EmbeddingRequest,
    RerankRequest,
    ScoreRequest,
    TokenizeRequest,
)

_REF = "#/components/schemas/{model}"
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def _ref(name: str) -> dict[str, Any]:
    return {"schema": {"$ref": _REF.format(model=name)}}


def _operation(summary: str, ok: str, content: dict[str, Any], **more: Any) -> dict[str, Any]:
    errors = {"description": "An error.", "content": {"application/json": _ref("Error")}}
    return {
        "summary": summary,
        "response_model": None,
        "openapi_extra": {"responses": {"200": {"description": ok, "content": content}, "4XX": errors, "5XX": errors}}
        | more,
    }


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": content}


_JSON = {"application/json": {"schema": {"type": "object"}}}
_STREAMED = _JSON | {"text/event-stream": {"schema": {"type": "string"}}}
_SEVERAL = "One object, or with stream: true its chunks as server-sent events."
_QUERY = ("temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "stop", "repetition_penalty")

chat = _operation(
    "Answer a conversation", _SEVERAL, _STREAMED, requestBody=_body({"application/json": _ref("ChatRequest")})
)
complete = _operation(
    "Continue a text", _SEVERAL, _STREAMED, requestBody=_body({"application/json": _ref("CompletionRequest")})
)
chat_with = _operation(
    "Answer a prompt",
    "Plain text as it is made for a plain body; for JSON as /v1/chat/completions.",
    {"text/plain": {"schema": {"type": "string"}}, **_STREAMED},
    requestBody=_body(
        {"text/plain": {"schema": {"type": "string"}}, "application/json": _ref("ModelChatRequest")},
    ),
    parameters=[{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    + [
        {"name": q, "in": "query", "description": "With a plain body.", "schema": {"$ref": f"#/x-fields/{q}"}}
        for q in _QUERY
    ],
)


def _task(summary: str, ok: str, name: str) -> dict[str, Any]:
    return _operation(summary, ok, _JSON, requestBody=_body({"application/json": _ref(name)}))


embed = _task("Make vectors of texts", "One vector per input.", "EmbeddingRequest")
score = _task("Score pairs of texts", "One score per pair. Also at /score.", "ScoreRequest")
rerank = _task("Order documents by a query", "The best first. Also at /rerank and /v2/rerank.", "RerankRequest")
tokenize = _task("Text to tokens", "count, max_model_len, tokens, token_strs. Also at /v1/tokenize.", "TokenizeRequest")
detokenize = _task("Tokens to text", "The text as `prompt`. Also at /v1/detokenize.", "DetokenizeRequest")
_NAMED = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
models = _operation("List the models", "A list.", _JSON)
model = _operation("One model", "The model.", _JSON, parameters=_NAMED)
health = _operation("Alive", "The process works.", _JSON)
ready = _operation("Ready", "At least one model can be called.", _JSON)
metrics = _operation("Metrics", "Prometheus text.", {"text/plain": {"schema": {"type": "string"}}})


_REQUESTS: tuple[type[BaseModel], ...] = (
    ChatRequest,
    CompletionRequest,
    ModelChatRequest,
    EmbeddingRequest,
    ScoreRequest,
    RerankRequest,
    TokenizeRequest,
    DetokenizeRequest,
)


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, made once."""
    if app.openapi_schema is None:
        doc = app.openapi()
        schemas: dict[str, Any] = {"Error": _ERROR}
        for request in _REQUESTS:
            schema = request.model_json_schema(ref_template=_REF)
            schemas |= schema.pop("$defs", {})
            schemas[request.__name__] = schema
        doc["components"] = {"schemas": schemas}
        fields = schemas["ModelChatRequest"]["properties"]
        for item in doc["paths"].values():
            for operation in item.values():
                for parameter in operation.get("parameters", ()):
                    if "$ref" in parameter["schema"]:
                        parameter["schema"] = fields[parameter["name"]]
        app.openapi_schema = doc
    return app.openapi_schema


def page(doc: dict[str, Any]) -> str:
    """The document for people: plain HTML, nothing loaded from elsewhere."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{escape(doc['info']['title'])} API</title><style>",
        "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse;width:100%}td,th{text-align:left;border-bottom:1px solid #ccc;"
        "padding:.2rem .6rem;vertical-align:top}code{font-size:.9em}.m{color:#06c;font-weight:bold}</style>",
        f"<h1>{escape(doc['info']['title'])} {escape(doc['info']['version'])}</h1>",
        "<p>The same for programs: <a href=/openapi.json>/openapi.json</a></p>",
    ]
    for path, item in doc["paths"].items():
        for method, op in item.items():
            parts.append(f"<h2><span class=m>{method.upper()}</span> <code>{escape(path)}</code></h2>")
            parts.append(f"<p>{escape(op.get('description') or op.get('summary', ''))}</p>")
            for media, content in op.get("requestBody", {}).get("content", {}).items():
                name = content["schema"].get("$ref", "").rpartition("/")[2]
                link = f"<a href='#{escape(name)}'>{escape(name)}</a>" if name else "text"
                parts.append(f"<p>Body: <code>{escape(media)}</code>: {link}</p>")
            if parameters := [p for p in op.get("parameters", ()) if p["in"] == "query"]:
                parts.append("<p>Query: " + ", ".join(f"<code>{escape(p['name'])}</code>" for p in parameters) + "</p>")
            parts.append(f"<p>Answer: {escape(op['responses']['200']['description'])}</p>")
    for name, schema in doc["components"]["schemas"].items():
        required = set(schema.get("required", ()))
        parts.append(f"<h2 id='{escape(name)}'>{escape(name)}</h2><table><tr><th>field<th>type and bounds<th>notes")
        for field, s in schema.get("properties", {}).items():
            star = " (required)" if field in required else ""
            row = f"<tr><td><code>{escape(field)}</code>{star}<td>{escape(_type(s))}<td>"
            parts.append(row + escape(s.get("description", "")))
        parts.append("</table>")
    return "".join(parts) + "</html>"


def _type(s: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "anyOf" in s:
        return " or ".join(dict.fromkeys(_type(x) for x in s["anyOf"] if x.get("type") != "null"))
    if "$ref" in s:
        return s["$ref"].rpartition("/")[2]
    if "enum" in s:
        return " or ".join(json.dumps(x) for x in s["enum"])
    names = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "maxItems": "at most"}
    bounds = [f"{sign} {s[key]}" for key, sign in names.items() if key in s]
    kind = s.get("type", "any")
    if kind == "array":
        kind = f"list of {_type(s.get('items', {}))}"
    return " ".join([str(kind), ", ".join(bounds)]).strip()
