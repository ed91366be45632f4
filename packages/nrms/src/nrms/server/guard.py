"""What every request passes: the size of its body, the token of a write, a log line, a measurement."""

from __future__ import annotations

import hmac
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from nrms.server.observe import Metrics

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger("nrms.server.access")
_OPEN = frozenset({"/recommend"})  # POST routes that change nothing


class Guard:
    """ASGI middleware around the application.

    Args:
        app: the application.
        metrics: where requests are counted.
        token: what a write must bring; "" for nothing.
        max_body: bytes of a request.
    """

    def __init__(self, app: App, metrics: Metrics, token: str, max_body: int) -> None:
        self._app, self._metrics, self._token, self._max_body = app, metrics, token, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500
        request_id = uuid.uuid4().hex[:16]

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            refused = self._refuse(scope)
            body = b"" if refused else await self._body(receive)
            if body is None:
                refused = 413, f"the body is larger than {self._max_body} bytes"
            if refused:
                await _answer(reply, *refused)
            else:
                await self._app(scope, _replay(body or b"", receive), reply)
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            _log.info(
                "request",
                extra={
                    "request_id": request_id,
                    "method": scope["method"],
                    "route": route,
                    "status": status,
                    "ms": round(1000 * seconds, 2),
                },
            )

    def _refuse(self, scope: Scope) -> tuple[int, str] | None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._max_body:
            return 413, f"the body is larger than {self._max_body} bytes"
        if self._token and scope["method"] not in ("GET", "HEAD", "OPTIONS") and scope["path"] not in _OPEN:
            brought = headers.get(b"authorization", b"")
            if not hmac.compare_digest(brought, b"Bearer " + self._token.encode()):
                return 401, "writing needs the bearer token"
        return None

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body, read before anything is done with it; None if it is too large."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return b"".join(parts)
            part = message.get("body", b"")
            size += len(part)
            if size > self._max_body:
                return None
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _answer(send: Send, status: int, message: str) -> None:
    headers = [(b"content-type", b"application/json")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": message}).encode()})
