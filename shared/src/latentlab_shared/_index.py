"""The SQLite index of a cache: one connection per process, transactions, and one clear line for what goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from latentlab_shared.errors import RunFailed, UserError

WAIT_S = 60.0  # how long a writer waits for another one
_SCHEMA = (
    # Identity: format, fingerprint, dim, dtype, layout.
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID",
    # clock orders uses for eviction; live counts the vectors that entries reach.
    "CREATE TABLE state (id INTEGER PRIMARY KEY CHECK (id = 1), clock INTEGER NOT NULL, live INTEGER NOT NULL) STRICT",
    "INSERT INTO state VALUES (1, 0, 0)",
    # keys: 16 bytes per entry in file order; counts: uint32 per entry, NULL where every entry is one vector.
    # Ids are never used twice, so a process may keep a shard mapped under its id.
    "CREATE TABLE shards (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, rows INTEGER NOT NULL,"
    " entries INTEGER NOT NULL, live INTEGER NOT NULL, crc32 INTEGER NOT NULL, keys BLOB NOT NULL, counts BLOB) STRICT",
    # Small puts wait here, under their keys, until there are enough for a shard.
    "CREATE TABLE pending (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, used INTEGER NOT NULL,"
    " value BLOB NOT NULL) STRICT",
    # Which entry of which shard a key is.
    "CREATE TABLE entries (key BLOB PRIMARY KEY, shard INTEGER NOT NULL, row INTEGER NOT NULL, used INTEGER NOT NULL)"
    " STRICT, WITHOUT ROWID",
)
IF_A_CACHE = "If this is a cache, delete its folder: it is computed again"
_IS_MADE = "SELECT 1 FROM sqlite_master WHERE name = 'meta'"
_MADE_OF = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite!_%' ESCAPE '!'"
# A connection that came through fork() is kept here: closing it would disturb the parent's locks.
_inherited: list[sqlite3.Connection] = []


class Index:
    """A connection to ``index.sqlite`` that is opened when first used, anew in every process.

    Args:
        path: the database file.
        read_only: never write; the file must exist.
    """

    def __init__(self, path: Path, read_only: bool) -> None:
        self.path, self.read_only = path, read_only
        self._pid, self._lock = os.getpid(), threading.RLock()
        self._db: sqlite3.Connection | None = None

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A transaction that sees one state of the index."""
        with self._held() as db, self._errors():
            db.execute("BEGIN")
            try:
                yield db
            finally:
                db.rollback()

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that holds the write lock; an error undoes all of it.

        Raises:
            UserError: if the cache was opened read-only.
            RunFailed: if another process holds the lock for a minute, or the disk is full.
        """
        if self.read_only:
            raise UserError("the cache is open for reading only", self.path.parent, "Open it without read_only")
        with self._held() as db, self._errors():
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    db.rollback()
                raise

    def vacuum(self) -> None:
        """Give the space of deleted rows back, unless another process is at work."""
        with self._held() as db, self._errors():
            free, total = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "page_count"))
            with contextlib.suppress(sqlite3.OperationalError):
                if free * 4 > total:
                    db.execute("VACUUM")
                db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def version(self) -> int:
        """A number that changes when another connection has committed."""
        with self._held() as db, self._errors():
            return int(db.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        """Close this process's connection; the next use opens it again."""
        if self._db is not None and self._pid == os.getpid():
            self._db.close()
        self._db = None

    @contextlib.contextmanager
    def _held(self) -> Iterator[sqlite3.Connection]:
        if self._pid != os.getpid():
            if self._db is not None:
                _inherited.append(self._db)
            self._pid, self._lock, self._db = os.getpid(), threading.RLock(), None
        with self._lock:
            if self._db is None:
                with self._errors():
                    self._db = self._connect()
            yield self._db

    def _connect(self) -> sqlite3.Connection:
        if self.read_only:
            if not self.path.is_file():
                raise UserError("there is no cache here", self.path.parent, "Give the folder of an EmbeddingCache")
            return self._connect_read_only()
        if self.path.is_file() and self.path.stat().st_size:  # a stranger's database is left as it is
            held = self._connect_read_only()
            try:
                if tables := _tables(held):
                    _ensure_ours(tables, self.path)
            finally:
                held.close()
        try:
            self.path.parent.joinpath("shards").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make the cache's folder ({error.strerror})", self.path.parent, "Choose a folder you can write"
            ) from None
        db = self._open(str(self.path), uri=False)
        db.execute("PRAGMA page_size = 8192")  # of a new file: pending rows of 1.5 kB fill five sixths of a page
        deadline = time.monotonic() + WAIT_S
        while True:
            try:  # changing the journal mode does not wait for others by itself
                db.execute("PRAGMA journal_mode = WAL").fetchone()
                break
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        # NORMAL: a power cut may undo the last commits but never damages the file; a cache can compute them again.
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA wal_autocheckpoint = 4096")  # pages, 32 MiB
        return db

    def _connect_read_only(self) -> sqlite3.Connection:
        uri = self.path.resolve().as_uri()
        db = None
        try:
            db = self._open(f"{uri}?mode=ro", uri=True)
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            wal = self.path.with_name(f"{self.path.name}-wal")
            if _code(error) not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY) or (
                wal.exists() and wal.stat().st_size
            ):
                raise
            # A folder without write permission cannot hold the WAL's shared memory; without a WAL nothing can change.
            if db is not None:
                db.close()
            db = self._open(f"{uri}?mode=ro&immutable=1", uri=True)
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return db

    def _open(self, target: str, uri: bool) -> sqlite3.Connection:
        db = sqlite3.connect(target, timeout=WAIT_S, isolation_level=None, check_same_thread=False, uri=uri)
        db.execute("PRAGMA cache_size = -32768")  # KiB: the upper levels of the tree stay in memory
        db.execute("PRAGMA trusted_schema = OFF")
        return db

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._explained(error) from error
        except UnicodeDecodeError as error:  # SQLite's own message quotes a schema that is no text
            raise self._explained(sqlite3.DatabaseError("its schema is no text")) from error

    def _explained(self, error: sqlite3.Error) -> UserError:
        code, where = _code(error), self.path
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return RunFailed(f"another process kept the cache locked for {WAIT_S:.0f} s", where, "Try again")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return UserError(
                "the cache cannot be written here", where, "Open it with read_only, or choose another folder"
            )
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            return RunFailed(f"the disk is full or failing ({error})", where, "Free some space and run again")
        return UserError(f"the index is damaged ({error})", where, IF_A_CACHE)


def _code(error: sqlite3.Error) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF  # extended codes carry the primary one in the low byte


def ensure_identity(index: Index, identity: Mapping[str, Any]) -> None:
    """Write the identity into a new index, or compare it with what stands there.

    Raises:
        UserError: naming every field that differs.
    """
    if not index.read_only and not _made(index):
        with index.writing() as db:
            if db.execute(_IS_MADE).fetchone() is None:  # another process may have been faster
                for statement in _SCHEMA:
                    db.execute(statement)
                fields = [(name, json.dumps(value, sort_keys=True)) for name, value in identity.items()]
                db.executemany("INSERT INTO meta VALUES (?, ?)", fields)
    compare_identity(read_identity(index), identity, index.path.parent)


def _made(index: Index) -> bool:
    with index.reading() as db:  # opening a cache must not wait for its writers
        return db.execute(_IS_MADE).fetchone() is not None


def compare_identity(stored: Mapping[str, Any], wanted: Mapping[str, Any], where: object) -> None:
    """Compare what something was made for with what is wanted.

    Raises:
        UserError: naming every field that differs.
    """
    stored, wanted = _flat(stored), _flat(wanted)
    differing = [
        f"{name} is {_short(stored.get(name))}, not {_short(wanted.get(name))}"
        for name in sorted(stored.keys() | wanted.keys())
        if stored.get(name) != wanted.get(name)
    ]
    if differing:
        raise UserError(f"holds something else: {'; '.join(differing)}", where, "Use another folder for these")


def read_identity(index: Index) -> dict[str, Any]:
    """What an index says that it holds.

    Raises:
        UserError: if it says nothing that can be read, or is not made of our tables and nothing else.
    """
    with index.reading() as db:
        _ensure_ours(_tables(db), index.path)
        rows = db.execute("SELECT name, value FROM meta").fetchall()
    try:
        return {str(name): json.loads(value) for name, value in rows}
    except (TypeError, ValueError, RecursionError):
        raise UserError("the index is damaged (its identity is not JSON)", index.path, IF_A_CACHE) from None


def _tables(db: sqlite3.Connection) -> list[str]:
    return sorted(sql for (sql,) in db.execute(_MADE_OF))


def _ensure_ours(tables: list[str], path: Path) -> None:
    if tables != sorted(sql for sql in _SCHEMA if sql.startswith("CREATE")):
        fix = "Give another folder; if it is a cache of another version, delete it"
        raise UserError("not the index of a cache of this version", path, fix)


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in identity.items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:16]}…{text[-6:]}"
