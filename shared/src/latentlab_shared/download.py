"""Large files over HTTP that survive a broken connection, a kill and a rerun."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from latentlab_shared.errors import NeedsNetwork, RunFailed, UserError
from latentlab_shared.files import disk_errors, read_json, sha256_file, sync_dir, write_json

_RECORD = "downloads.json"  # file name → {"url", "bytes", "sha256"}
_BLOCK = 2**20


@dataclass(frozen=True)
class _Reply:
    """What the server said about the file."""

    size: int | None  # of the whole file
    tag: str  # ETag or Last-Modified: the file has changed when it has
    first: int  # offset of the first byte sent


def download(
    url: str,
    target: Path,
    *,
    offline: str = "",
    attempts: int = 5,
    timeout: float = 30.0,
    advance: Callable[[float], None] = lambda _: None,
) -> Path:
    """Fetch a file once; go on where an earlier attempt stopped.

    The bytes so far stand in ``<target>.part``. A finished file's size and sha256 are kept in ``downloads.json`` beside
    it and checked when the command is run again.

    Args:
        url: an HTTP address.
        target: the file.
        offline: what to do without a network, for the error.
        attempts: how often a broken connection is taken up again.
        timeout: seconds without an answer.
        advance: told the bytes of every block.

    Raises:
        NeedsNetwork: when the host cannot be reached.
        RunFailed: when the connection kept breaking; the next run goes on.
        UserError: when the server has no such file, or a finished file has changed since.
    """
    record = target.parent / _RECORD
    known = read_json(record) if record.is_file() else {}
    if target.exists():
        entry = known.get(target.name)
        if entry and entry["url"] == url and sha256_file(target) == entry["sha256"]:
            return target
        if entry and entry["url"] == url:
            raise UserError("has changed since it was downloaded", target, "Delete it and run the command again")
        raise UserError("is in the way of the download", target, "Move it, or choose another --output-dir")
    part = target.with_name(f"{target.name}.part")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(attempts):
        if attempt:
            time.sleep(min(2.0**attempt, 10.0) * 0.1)
        try:
            size = _fetch(url, part, timeout, advance)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise UserError(f"the server answers {error.code} {error.reason}", url, offline) from None
        except urllib.error.URLError as error:
            if not part.exists() or attempt == attempts - 1:
                raise NeedsNetwork(f"cannot be reached ({error.reason})", url, offline) from None
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno == 28:  # ENOSPC: disk_errors has the words for it
                with disk_errors(part):
                    raise
    else:
        got = part.stat().st_size if part.exists() else 0
        raise RunFailed(f"the connection broke after {got} bytes", url, "Run the command again; it goes on there")
    known[target.name] = {"url": url, "bytes": size, "sha256": sha256_file(part)}
    write_json(record, known)
    os.replace(part, target)
    _tag_file(part).unlink(missing_ok=True)
    sync_dir(target.parent)
    return target


def _tag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _fetch(url: str, part: Path, timeout: float, advance: Callable[[float], None]) -> int:
    """Append what is missing to ``part``; returns the whole size."""
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "latentlab"})
    have, tag = _held(part)
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", tag)
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing after what we have; the size in the answer tells whether it is all
            total = error.headers.get("Content-Range", "").rpartition("/")[2]
            if total == str(have):
                return have
            part.unlink()
            return _fetch(url, part, timeout, advance)
        raise
    with response, disk_errors(part):
        reply = _reply(response)
        if reply.first != have:  # the server sends the whole file: it has changed, or knows no ranges
            part.unlink(missing_ok=True)
        _tag_file(part).write_text(json.dumps({"tag": reply.tag}), encoding="utf-8")
        with part.open("ab") as file:
            advance(file.tell())
            while block := response.read(_BLOCK):
                file.write(block)
                advance(len(block))
            file.flush()
            os.fsync(file.fileno())
    got = part.stat().st_size
    if reply.size is not None and got != reply.size:
        if got > reply.size:
            part.unlink()
        raise http.client.IncompleteRead(b"", reply.size - got)
    return got


def _held(part: Path) -> tuple[int, str]:
    """Bytes we may keep, and the mark of the file they belong to; nothing without a mark."""
    try:
        tag = json.loads(_tag_file(part).read_text(encoding="utf-8"))["tag"]
        return (part.stat().st_size, tag) if tag else (0, "")
    except (OSError, ValueError, KeyError, TypeError):
        return 0, ""


def _reply(response: http.client.HTTPResponse) -> _Reply:
    headers = response.headers
    # A weak ETag is no promise that the bytes are the same.
    etag = headers.get("ETag", "")
    tag = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
    if response.status == 206:
        span, _, total = headers["Content-Range"].removeprefix("bytes ").partition("/")
        return _Reply(int(total) if total.isdigit() else None, tag, int(span.partition("-")[0]))
    length = headers.get("Content-Length", "")
    return _Reply(int(length) if length.isdigit() else None, tag, 0)
