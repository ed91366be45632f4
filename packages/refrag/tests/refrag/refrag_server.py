"""A real server of the API on a free port of this machine, and its events."""

import contextlib
import json
import threading

from latentlab_shared.serving import address_of, listen


def events(text):
    """Names and data of a stream of server-sent events."""
    found = []
    for block in text.strip().split("\n\n"):
        if block.startswith(":"):
            continue
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


@contextlib.contextmanager
def serving(app):
    """Serve an application in a thread; its address."""
    import uvicorn

    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield address_of(listener).rstrip("/")
    finally:
        server.should_exit = True
        thread.join(30)
