"""What every HTTP API of the lab has: one-line errors, bounded bodies, a page that loads nothing from elsewhere.

Needs the package ``fastapi``.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib.resources import files

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from latentlab_shared.errors import RunFailed, UserError

# A page runs only its own script and talks only to its own server.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"


_TYPES = (
    "body",
    "str",
    "int",
    "float",
    "bool",
)  # a union's branches stand in the place of a fault as if they were keys


def _named(part: str | int) -> bool:
    return isinstance(part, int) or part.isidentifier()


def error(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """``{"error": message}``, the message on one line."""
    return JSONResponse({"error": " ".join(message.split())}, status_code=status, headers=dict(headers or {}))


def add_errors(app: FastAPI) -> None:
    """Answer every fault with one line: 422 for wrong input; 500, without details, for the rest."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, fault: RequestValidationError) -> JSONResponse:
        first = fault.errors()[0]
        if first["type"] == "json_invalid":
            return error(422, f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}")
        kind = request.headers.get("content-type", "")
        if tuple(first["loc"]) == ("body",) and "json" not in kind:
            return error(422, f"the body is {kind or 'of no kind'}: send JSON, with content-type: application/json")
        where = ".".join(str(part) for part in first["loc"] if part not in _TYPES and _named(part)) or "body"
        return error(422, f"{where}: {str(first['msg']).removeprefix('Value error, ')}")

    @app.exception_handler(UserError)
    async def refused(request: Request, fault: UserError) -> JSONResponse:
        return error(500 if isinstance(fault, RunFailed) else 422, str(fault))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, fault: HTTPException) -> JSONResponse:
        if fault.status_code == 400 and "parsing the body" in str(fault.detail):  # nested too deeply, say
            return error(422, "the body cannot be read: send plain JSON", fault.headers)
        return error(fault.status_code, str(fault.detail), fault.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, fault: Exception) -> JSONResponse:
        return error(500, "the server failed; its log says why")


def limit_bodies(app: FastAPI, max_bytes: int) -> None:
    """Refuse, with 413 and before anything is read, bodies that are larger or do not say how large they are."""
    app.add_middleware(_Limit, max_bytes=max_bytes)


class _Limit:
    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"")
        most = f"of at most {self._max_bytes / 2**20:g} MiB"
        if not length.isdigit():
            # A body in pieces whose first is malformed was answered by the server itself: nobody is there any more.
            if (await receive())["type"] != "http.disconnect":
                await error(413, f"the body must name its length, {most}")(scope, receive, send)
        elif int(length) > self._max_bytes:
            await error(413, f"the body is too large: give one {most}")(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def page(html: str, texts: Mapping[str, str] | None = None) -> HTMLResponse:
    """A page: ``/* base.css */`` and ``/* base.js */`` become what all pages have, ``%%NAME%%`` an escaped text."""
    home = files("latentlab_shared") / "web"
    for name in ("base.css", "base.js"):
        html = html.replace(f"/* {name} */\n", home.joinpath(name).read_text(encoding="utf-8"))
    for name, text in (texts or {}).items():
        html = html.replace(f"%%{name}%%", escape(text))
    return HTMLResponse(html, headers={"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"})
