"""Vectors of articles: which are missing, who computes them, and all of them as one matrix."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from latentlab_shared.errors import RunFailed
from nrms.data.types import Floats, News
from nrms.inference.catalogue import Filter
from nrms.server.store.articles import as_news, live, next_revision
from nrms.server.store.database import Database, Unavailable, now_ms
from nrms.server.store.models import StoredModel
from nrms.server.store.schema import Halfs, articles, embeddings, jobs

LEASE_MS = 120_000
_PROCESS = uuid.uuid4().hex  # tells this process from an earlier one of the same number
_COPY_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)

Encode = Callable[[list[News]], Floats]


@dataclass
class Job:
    """One worker's run over what a model has not embedded.

    Attributes:
        id: its row.
        model: whose vectors are computed.
        done: articles embedded and committed so far.
        cursor: articles up to this number have been looked at in this pass.
    """

    id: str
    model: StoredModel
    done: int = 0
    cursor: int = 0


@dataclass(frozen=True)
class Changes:
    """Articles with current vectors, in the order of their numbers.

    Attributes:
        rows: number, id, title, category, published_at and expires_at of each.
        vectors: (N, D), half precision.
        revision: of the newest change among them.
    """

    rows: Sequence[Any]
    vectors: Halfs
    revision: int


@dataclass(frozen=True)
class Hits:
    """What the database found nearest to a vector.

    Attributes:
        rows: as in `Changes`, best first.
        vectors: (k, D), half precision.
        scores: dot products, (k,).
    """

    rows: Sequence[Any]
    vectors: Halfs
    scores: Floats


class Embeddings:
    """The vectors of a store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- computing -----------------------------------------------------------------------------------------------

    def start(self, model: StoredModel) -> Job:
        """Begin a job, and note as failed the jobs whose process has died."""
        job = Job(uuid.uuid4().hex, model)

        def work() -> None:
            with self._database.write() as connection:
                for id in _dead_jobs(connection):
                    _end(connection, id, "failed", "its process died")
                values = {"id": job.id, "model": model.number, "worker": _worker(), "state": "running"}
                lease = {"started_at": now_ms(), "lease_until": now_ms() + LEASE_MS}
                connection.execute(sa.insert(jobs).values(**values, **lease))

        self._database.retry(work)
        return job

    def finish(self, job: Job, error: str | None = None) -> None:
        """End a job."""

        def work() -> None:
            with self._database.write() as connection:
                _end(connection, job.id, "failed" if error else "done", error)

        self._database.retry(work)

    def embed_batch(self, job: Job, size: int, encode: Encode) -> int:
        """Embed up to ``size`` articles that no other worker has in hand; one transaction keeps them.

        Args:
            job: from `start`.
            size: articles, at most.
            encode: articles → vectors (N, D).

        Returns:
            How many were embedded; 0 when nothing is left for this worker.
        """
        batch = self._embed_locked if self._database.is_postgres else self._embed_leased
        return self._database.retry(lambda: batch(job, size, encode))

    def _embed_locked(self, job: Job, size: int, encode: Encode) -> int:
        """PostgreSQL: the rows stay locked until their vectors are committed, or this process dies."""
        while True:
            with self._database.write() as connection:
                wanted = _pending(job, size).with_for_update(of=articles, skip_locked=True, key_share=True)
                rows = list(connection.execute(wanted).mappings())
                if not rows:
                    if job.cursor == 0:
                        return 0
                    job.cursor = 0
                    continue
                # A worker may have committed a row between our snapshot and our lock: look again, now it is ours.
                current = _current(connection, job, rows)
                rows = [row for row in rows if (row["number"], row["version"]) not in current]
                if rows:
                    self._save(connection, job, rows, encode([as_news(row) for row in rows]))
            if rows:
                job.done, job.cursor = job.done + len(rows), rows[-1]["number"]
                return len(rows)

    def _embed_leased(self, job: Job, size: int, encode: Encode) -> int:
        """SQLite: one writer at a time, so the rows are noted as taken, and the encoding holds no lock."""
        while True:
            with self._database.write() as connection:
                for id in _dead_jobs(connection):
                    _end(connection, id, "failed", "its process died")
                taken = _ranges_in_hand(connection, job)
                rows = list(connection.execute(_pending(job, size, taken)).mappings())
                low, high = (rows[0]["number"], rows[-1]["number"]) if rows else (None, None)
                own = sa.update(jobs).where(jobs.c.id == job.id)
                connection.execute(own.values(low=low, high=high, lease_until=now_ms() + LEASE_MS))
            if rows or job.cursor == 0:
                break
            job.cursor = 0
        if not rows:
            return 0
        try:
            vectors = encode([as_news(row) for row in rows])
            with self._database.write() as connection:
                self._save(connection, job, rows, vectors)
        except BaseException:
            self._let_go(job)
            raise
        job.done, job.cursor = job.done + len(rows), rows[-1]["number"]
        return len(rows)

    def _let_go(self, job: Job) -> None:
        """Give the rows in hand back; where that fails, too, the lease ends by itself."""
        with suppress(Unavailable), self._database.write() as connection:
            connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(low=None, high=None))

    def _save(self, connection: Connection, job: Job, rows: Sequence[Any], vectors: Floats) -> None:
        if vectors.shape != (len(rows), job.model.dim):
            raise ValueError(f"expected vectors of shape {(len(rows), job.model.dim)}, not {vectors.shape}")
        if not np.isfinite(vectors).all() or np.abs(vectors).max(initial=0) > np.finfo(np.float16).max:
            raise RunFailed("the model gave numbers that are not finite in half precision", job.model.id[:12])
        numbers = np.array([row["number"] for row in rows])
        versions = np.array([row["version"] for row in rows])
        self._upsert(connection, job.model, numbers, versions, vectors.astype(np.float16))
        counted = sa.update(jobs).where(jobs.c.id == job.id)
        lease = {"low": None, "high": None, "lease_until": now_ms() + LEASE_MS}
        connection.execute(counted.values(done=jobs.c.done + len(rows), **lease))

    def _upsert(
        self,
        connection: Connection,
        model: StoredModel,
        numbers: NDArray[Any],
        versions: NDArray[Any],
        vectors: Halfs,
    ) -> None:
        """Write vectors; an older version never replaces a newer one. The revision is taken last: it is a lock."""
        if self._database.is_postgres:
            cursor = connection.connection.cursor()
            cursor.execute("CREATE TEMP TABLE fresh (article bigint, version int, vector halfvec) ON COMMIT DROP")
            with cursor.copy("COPY fresh FROM STDIN (FORMAT BINARY)") as copy:
                copy.write(_copy_rows(numbers, versions, vectors))
            revision = next_revision(connection)
            cursor.execute(
                "INSERT INTO embeddings (model, article, version, revision, vector)"
                " SELECT %s, article, version, %s, vector FROM fresh"
                " ON CONFLICT (model, article) DO UPDATE SET version = excluded.version,"
                " revision = excluded.revision, vector = excluded.vector"
                " WHERE embeddings.version <= excluded.version",
                (model.number, revision),
            )
            cursor.execute("DROP TABLE fresh")
            return
        revision = next_revision(connection)
        connection.exec_driver_sql(
            "INSERT INTO embeddings (model, article, version, revision, vector) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (model, article) DO UPDATE SET version = excluded.version,"
            " revision = excluded.revision, vector = excluded.vector WHERE embeddings.version <= excluded.version",
            [
                (model.number, number, version, revision, vector.tobytes())
                for number, version, vector in zip(numbers.tolist(), versions.tolist(), vectors, strict=True)
            ],
        )

    def missing(self, model: StoredModel, after: int, limit: int) -> list[tuple[int, str, str]]:
        """Number, id and title of live articles without a vector of their present text, numbered above ``after``."""
        with self._database.read() as connection:
            rows = connection.execute(_pending(Job("", model, cursor=after), limit)).mappings()
            return [(row["number"], row["id"], row["title"]) for row in rows]

    def put(self, model: StoredModel, ids: Sequence[str], vectors: Floats) -> int:
        """Write vectors that were computed elsewhere for the present texts of these articles; unknown ids are left out.

        Returns:
            How many were written.
        """
        place = {id: index for index, id in enumerate(ids)}
        with self._database.write() as connection:
            wanted = sa.select(articles.c.number, articles.c.version, articles.c.id).where(articles.c.id.in_(place))
            rows = connection.execute(wanted.order_by(articles.c.number)).all()
            if rows:
                chosen = vectors[[place[row.id] for row in rows]].astype(np.float16)
                numbers, versions = (np.array([row[i] for row in rows]) for i in (0, 1))
                self._upsert(connection, model, numbers, versions, chosen)
        return len(rows)

    # -- reading -------------------------------------------------------------------------------------------------

    def changes(self, model: StoredModel, since: int = -1) -> Changes:
        """Articles whose data or vector changed after revision ``since``; -1 for all."""
        where = f"e.model = {model.number:d} AND e.version = a.version"
        if since >= 0:
            where += f" AND (a.revision > {since:d} OR e.revision > {since:d})"
        source = f"FROM embeddings e JOIN articles a ON a.number = e.article WHERE {where} ORDER BY a.number"
        columns = "a.number, a.id, a.title, a.category, a.published_at, a.expires_at, a.revision, e.revision"
        with self._database.read() as connection:
            rows = connection.exec_driver_sql(f"SELECT {columns} {source}").all()
            if self._database.is_postgres:
                vectors = _copy_vectors(connection, f"SELECT e.vector {source}", model.dim)
            else:
                blobs = connection.exec_driver_sql(f"SELECT e.vector {source}").scalars()
                vectors = np.frombuffer(bytearray().join(blobs), dtype="<f2").reshape(-1, model.dim)
        newest = max((max(row[6], row[7]) for row in rows), default=since)
        return Changes([row[:6] for row in rows], vectors, newest)

    def revision(self) -> int:
        """The newest committed revision: equal means that nothing has changed."""
        with self._database.read() as connection:
            return int(connection.exec_driver_sql("SELECT value FROM counters WHERE name = 'revision'").scalar_one())

    def get(self, model: StoredModel, ids: Sequence[str]) -> dict[str, tuple[Any, Halfs]]:
        """Rows (as in `Changes`) and vectors of these articles, as far as they are known and embedded."""
        found = {}
        columns = [articles.c[name] for name in ("number", "id", "title", "category", "published_at", "expires_at")]
        current = sa.and_(embeddings.c.article == articles.c.number, embeddings.c.version == articles.c.version)
        wanted = sa.select(*columns, embeddings.c.vector).select_from(articles.join(embeddings, current))
        wanted = wanted.where(embeddings.c.model == model.number)
        unique = list(dict.fromkeys(ids))
        with self._database.read() as connection:
            for start in range(0, len(unique), 500):
                chunk = wanted.where(articles.c.id.in_(unique[start : start + 500]))
                found.update({row[1]: (row[:6], row[6]) for row in connection.execute(chunk)})
        return found

    # -- search in PostgreSQL ------------------------------------------------------------------------------------

    def build_index(self, model: StoredModel) -> None:
        """Make the model's HNSW index, if it is not there; PostgreSQL only."""
        with self._database.write() as connection:
            connection.exec_driver_sql("SET LOCAL maintenance_work_mem = '1GB'")
            connection.exec_driver_sql("SET LOCAL max_parallel_maintenance_workers = 0")
            connection.exec_driver_sql(
                f"CREATE INDEX IF NOT EXISTS ix_embeddings_hnsw_{model.number:d} ON embeddings"
                f" USING hnsw ((vector::halfvec({model.dim:d})) halfvec_ip_ops) WITH (m = 32, ef_construction = 160)"
                f" WHERE model = {model.number:d}"
            )
        with self._database.write() as connection:
            connection.exec_driver_sql("ANALYZE embeddings")

    def nearest(self, model: StoredModel, vector: Floats, k: int, wanted: Filter, exact: bool = False) -> Hits:
        """The k live articles with the largest dot product with ``vector`` (D,).

        Args:
            model: whose vectors are searched; from `build_index` the search is approximate and fast.
            vector: the user's.
            k: at most so many.
            wanted: which articles may be found.
            exact: read all vectors.
        """
        distance = f"e.vector::halfvec({model.dim:d}) <#> %(query)s"
        conditions, given = _conditions(model, wanted)
        given |= {"query": _half(vector), "k": k}
        query = (
            f"SELECT a.number, a.id, a.title, a.category, a.published_at, a.expires_at, e.vector, -({distance})"
            f" FROM embeddings e JOIN articles a ON a.number = e.article WHERE {conditions}"
            f" ORDER BY {distance} LIMIT %(k)s"
        )
        with self._database.read() as connection:
            if exact:
                connection.exec_driver_sql("SET LOCAL enable_indexscan = off")
            else:
                connection.exec_driver_sql("SET LOCAL hnsw.ef_search = 1000")
                # Filters are applied behind the graph: it is walked on until k articles have passed them.
                connection.exec_driver_sql("SET LOCAL hnsw.iterative_scan = strict_order")
            rows = connection.exec_driver_sql(query, given).all()
        vectors = np.stack([row[6].to_numpy() for row in rows]) if rows else np.zeros((0, model.dim), np.float16)
        return Hits([row[:6] for row in rows], vectors, np.array([row[7] for row in rows], np.float32))

    def newest(self, model: StoredModel, k: int, wanted: Filter) -> Sequence[Any]:
        """Rows (as in `Changes`) of the k live articles published last; PostgreSQL only."""
        conditions, given = _conditions(model, wanted)
        query = (
            "SELECT a.number, a.id, a.title, a.category, a.published_at, a.expires_at"
            f" FROM embeddings e JOIN articles a ON a.number = e.article WHERE {conditions}"
            " ORDER BY a.published_at DESC NULLS LAST, a.number DESC LIMIT %(k)s"
        )
        with self._database.read() as connection:
            return connection.exec_driver_sql(query, given | {"k": k}).all()


def _conditions(model: StoredModel, wanted: Filter) -> tuple[str, dict[str, Any]]:
    """What a filter lets through, in PostgreSQL's words, over articles ``a`` and embeddings ``e``."""
    conditions = [f"e.model = {model.number:d}", "e.version = a.version"]
    conditions.append("(a.expires_at IS NULL OR a.expires_at > %(now)s)")
    given: dict[str, Any] = {"now": now_ms()}
    if wanted.categories:
        conditions.append("a.category = ANY(%(categories)s)")
        given["categories"] = list(wanted.categories)
    if wanted.since is not None:
        conditions.append("a.published_at >= %(since)s")
        given["since"] = wanted.since
    if wanted.exclude:
        conditions.append("a.id <> ALL(%(exclude)s)")
        given["exclude"] = sorted(wanted.exclude)
    return " AND ".join(conditions), given


def _pending(job: Job, size: int, taken: Sequence[tuple[int, int]] = ()) -> sa.Select[Any]:
    """Articles behind the cursor, without a vector of their present text, outside the ranges ``taken``."""
    joined = sa.and_(embeddings.c.article == articles.c.number, embeddings.c.model == job.model.number)
    missing = sa.or_(embeddings.c.article.is_(None), embeddings.c.version != articles.c.version)
    wanted = sa.select(articles).select_from(articles.outerjoin(embeddings, joined))
    wanted = wanted.where(articles.c.number > job.cursor, missing, live(now_ms()))
    for low, high in taken:
        wanted = wanted.where(sa.not_(articles.c.number.between(low, high)))
    return wanted.order_by(articles.c.number).limit(size)


def _current(connection: Connection, job: Job, rows: Sequence[Any]) -> set[tuple[int, int]]:
    """Number and version of those articles among ``rows`` that have a vector."""
    wanted = sa.select(embeddings.c.article, embeddings.c.version).where(
        embeddings.c.model == job.model.number,
        embeddings.c.article.between(rows[0]["number"], rows[-1]["number"]),
    )
    return {(row[0], row[1]) for row in connection.execute(wanted)}


def _worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{_PROCESS}"


def _dead_jobs(connection: Connection) -> list[str]:
    """Running jobs whose process is gone, or whose lease nobody has renewed."""
    running = sa.select(jobs.c.id, jobs.c.worker, jobs.c.lease_until).where(jobs.c.state == "running")
    now = now_ms()
    return [row.id for row in connection.execute(running) if row.lease_until < now or _is_gone(row.worker)]


def _is_gone(worker: str) -> bool:
    """Whether the process is known to be dead: only a process of this machine can be looked at."""
    host, number, process = worker.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    if int(number) == os.getpid():
        return process != _PROCESS
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _ranges_in_hand(connection: Connection, job: Job) -> list[tuple[int, int]]:
    wanted = sa.select(jobs.c.low, jobs.c.high).where(
        jobs.c.model == job.model.number, jobs.c.state == "running", jobs.c.id != job.id, jobs.c.low.is_not(None)
    )
    return [(row[0], row[1]) for row in connection.execute(wanted)]


def _end(connection: Connection, id: str, state: str, error: str | None) -> None:
    ended = sa.update(jobs).where(jobs.c.id == id)
    connection.execute(ended.values(state=state, error=error, finished_at=now_ms(), low=None, high=None))


def _half(vector: Floats) -> Any:
    from pgvector import HalfVector

    return HalfVector(np.asarray(vector, np.float16))


def _copy_rows(numbers: NDArray[Any], versions: NDArray[Any], vectors: Halfs) -> bytes:
    """PostgreSQL's binary COPY form of (article, version, vector) rows, which are all of one length."""
    dim = vectors.shape[1]
    form = np.dtype(
        [("fields", ">i2"), ("n1", ">i4"), ("article", ">i8"), ("n2", ">i4"), ("version", ">i4"), ("n3", ">i4"),
         ("dim", ">i2"), ("unused", ">i2"), ("vector", ">f2", (dim,))]
    )  # fmt: skip
    rows = np.zeros(len(numbers), form)
    rows["fields"], rows["n1"], rows["n2"], rows["n3"] = 3, 8, 4, 4 + 2 * dim
    rows["article"], rows["version"], rows["dim"], rows["vector"] = numbers, versions, dim, vectors
    return _COPY_HEAD + rows.tobytes() + b"\xff\xff"


def _copy_vectors(connection: Connection, query: str, dim: int) -> Halfs:
    """Vectors (N, D) of a query over one ``halfvec`` column, without making a Python object of each."""
    form = np.dtype([("fields", ">i2"), ("n1", ">i4"), ("dim", ">i2"), ("unused", ">i2"), ("vector", ">f2", (dim,))])
    cursor = connection.connection.cursor()
    with cursor.copy(f"COPY ({query}) TO STDOUT (FORMAT BINARY)") as copy:
        data = b"".join(copy)
    rows = np.frombuffer(data, form, offset=len(_COPY_HEAD), count=(len(data) - len(_COPY_HEAD) - 2) // form.itemsize)
    if len(rows) and not (rows["dim"] == dim).all():
        raise RunFailed(f"vectors in the database do not all have {dim} numbers")
    return rows["vector"].astype(np.float16)
