"""An HTTP application on a socket of this machine, until it is told to stop."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

from latentlab_shared.errors import UserError


def serve_app(app: Any, host: str, port: int, log: Callable[[str], None] = lambda _: None) -> None:
    """Serve until Ctrl-C or SIGTERM; requests in hand are answered first. Needs the package ``uvicorn``.

    Args:
        app: an ASGI application.
        host: address to listen on.
        port: 0 takes a free one.
        log: told the address when the server is ready.

    Raises:
        UserError: if the port is taken or the address is not this machine's.
    """
    import uvicorn

    listener = listen(host, port)
    settings = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=10)
    log(f"{address_of(listener)} (Ctrl-C stops)")
    uvicorn.Server(settings).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one.

    Raises:
        UserError: if the port is taken or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio sends small packets at once only where it is: else answers wait 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be one
        listener.close()
        of_port = isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES)
        why = str(getattr(error, "strerror", "") or "no name of a machine")
        fix = "Choose another --port" if of_port else "Give an address of this machine as --host"
        raise UserError(f"cannot listen here ({why})", f"{host}:{port}", fix) from None
    listener.listen(512)
    return listener


def check_address(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on, before a model is loaded for it.

    Raises:
        UserError: as for ``listen``.
    """
    listen(host, port).close()


def address_of(listener: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
