"""The tables, the same in SQLite and PostgreSQL.

Times are milliseconds since 1970 in UTC. Every change of an article or an embedding takes the next number of one
counter, its ``revision``; the counter's row is locked until the change is committed, so revisions become visible in
their order and a reader can ask for "everything after revision r" without missing a slow writer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    BigInteger,
    Column,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

Halfs = NDArray[np.float16]

# SQLite numbers rows by itself only in a column of the type INTEGER.
_Number = BigInteger().with_variant(Integer, "sqlite")

BUILDING, ACTIVE, RETIRED = "building", "active", "retired"


class _PgHalfvec(UserDefinedType[Any]):
    """pgvector's half-precision vector, of any length."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "HALFVEC"


class HalfVector(TypeDecorator[Halfs]):
    """A vector of half-precision numbers: little-endian bytes in SQLite, ``halfvec`` in PostgreSQL."""

    impl = LargeBinary
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """``halfvec`` or a blob."""
        return _PgHalfvec() if dialect.name == "postgresql" else LargeBinary()

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """An array to what the driver takes."""
        if value is None:
            return None
        half = np.ascontiguousarray(value, dtype="<f2")
        if dialect.name == "postgresql":
            from pgvector import HalfVector as Half

            return Half(half)
        return half.tobytes()

    def process_result_value(self, value: Any, dialect: Dialect) -> Halfs | None:
        """What the driver gives to an array."""
        if value is None:
            return None
        if dialect.name == "postgresql":
            return np.asarray(value.to_numpy(), dtype=np.float16)
        return np.frombuffer(value, dtype="<f2")


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

articles = Table(
    "articles",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("title", Text, nullable=False),
    Column("category", Text, nullable=False, server_default=""),
    Column("subcategory", Text, nullable=False, server_default=""),
    Column("abstract", Text, nullable=False, server_default=""),
    Column("published_at", BigInteger),
    Column("expires_at", BigInteger),
    # Counts the texts the article has had; an embedding of an earlier one is stale.
    Column("version", Integer, nullable=False, server_default="1"),
    Column("revision", BigInteger, nullable=False, index=True),
)

models = Table(
    "models",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("dim", Integer, nullable=False),
    Column("folder", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("activated_at", BigInteger),
    # The database itself refuses a second active model.
    Index("ix_models_one_active", "state", unique=True, sqlite_where=text("state = 'active'"),
          postgresql_where=text("state = 'active'")),
)  # fmt: skip

embeddings = Table(
    "embeddings",
    metadata,
    Column("model", Integer, ForeignKey(models.c.number, ondelete="CASCADE"), primary_key=True),
    Column("article", BigInteger, ForeignKey(articles.c.number, ondelete="CASCADE"), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("vector", HalfVector, nullable=False),
    Index("ix_embeddings_model_revision", "model", "revision"),
)

interactions = Table(
    "interactions",
    metadata,
    Column("event_id", Text, primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("article_id", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Index("ix_interactions_user_id_at", "user_id", "at"),
    Index("ix_interactions_at", "at"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model", Integer, ForeignKey(models.c.number, ondelete="CASCADE"), nullable=False),
    Column("worker", Text, nullable=False),
    Column("state", Text, nullable=False),  # running, done, failed
    Column("done", Integer, nullable=False, server_default="0"),
    Column("started_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger),
    Column("error", Text),
    # The range of articles in hand, and until when nobody else takes it. PostgreSQL locks the rows instead.
    Column("low", BigInteger),
    Column("high", BigInteger),
    Column("lease_until", BigInteger),
    Index("ix_jobs_state", "state"),
)

counters = Table(
    "counters",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
