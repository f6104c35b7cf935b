"""What stands at /: what this is, and where to go. The same for everybody, and nothing loaded from elsewhere."""

from __future__ import annotations

from html import escape

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

_PLACES = (
    ("POST", "/v1/chat/completions", "a conversation, as OpenAI's clients ask"),
    ("POST", "/v1/chat/MODEL", "a prompt as plain text, answered in plain text as it is made"),
    ("GET", "/v1/models", "the models that can be called"),
    ("GET", "/docs", "everything that can be asked, field by field"),
    ("GET", "/openapi.json", "the same for programs"),
)
_TITLE = "Headrace serves large language models."
_MORE = "On the machine: headrace status, headrace chat MODEL."


def _text() -> str:
    width = max(len(path) for _, path, _ in _PLACES)
    lines = [f"  {method:<4} {path:<{width}}  {what}" for method, path, what in _PLACES]
    return "\n".join([_TITLE, "", *lines, "", _MORE, ""])


def _html() -> str:
    rows = "".join(f"<tr><td>{method}<td>{_link(method, path)}<td>{escape(what)}" for method, path, what in _PLACES)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<title>Headrace</title><style>body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;"
        "padding:0 1rem}td{padding:.2rem .8rem .2rem 0;vertical-align:top}</style>"
        f"<h1>Headrace</h1><p>{_TITLE}</p><table>{rows}</table><p>{_MORE}</p></html>"
    )


def _link(method: str, path: str) -> str:
    code = f"<code>{escape(path)}</code>"
    return f"<a href='{escape(path)}'>{code}</a>" if method == "GET" else code


async def front(request: Request) -> Response:
    """A page for browsers, an object for who asks for JSON, else text."""
    accept = request.headers.get("accept", "")
    headers = {"Vary": "Accept"}
    if "text/html" in accept:
        return HTMLResponse(_html(), headers=headers)
    if "application/json" in accept:
        places = [{"method": method, "path": path, "what": what} for method, path, what in _PLACES]
        return JSONResponse({"name": "Headrace", "places": places}, headers=headers)
    return PlainTextResponse(_text(), headers=headers)
