"""The models of a store, one of which answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from latentlab_shared.errors import UserError, shell_word
from nrms.server.store.articles import insert, live
from nrms.server.store.database import Database, now_ms
from nrms.server.store.schema import ACTIVE, BUILDING, RETIRED, articles, embeddings, models


@dataclass(frozen=True)
class StoredModel:
    """A model that has, or may get, embeddings.

    Attributes:
        number: its row.
        id: hash of weights, configuration and vocabulary.
        dim: D.
        folder: where its files are; every process that serves it must find them there.
        state: "building", "active" or "retired".
    """

    number: int
    id: str
    dim: int
    folder: str
    state: str


@dataclass(frozen=True)
class Coverage:
    """How much of the catalogue a model has embedded.

    Attributes:
        live: articles that have not expired.
        embedded: those of them with a vector of their present text.
    """

    live: int
    embedded: int

    @property
    def share(self) -> float:
        """In [0, 1]; 1 for an empty catalogue."""
        return self.embedded / self.live if self.live else 1.0


class Models:
    """The models of a store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def register(self, id: str, dim: int, folder: str) -> StoredModel:
        """Make a model known, in the state "building"; a known one keeps its state and gets the new folder."""
        made = insert(self._database, models).values(id=id, dim=dim, folder=folder, state=BUILDING, created_at=now_ms())
        made = made.on_conflict_do_update(index_elements=[models.c.id], set_={"folder": folder})
        with self._database.write() as connection:
            connection.execute(made)
            return _find(connection, id)

    def get(self, id: str) -> StoredModel:
        """The model of an id, or of the only id that begins so.

        Raises:
            UserError: if there is none, or several.
        """
        with self._database.read() as connection:
            return _find(connection, id)

    def active(self) -> StoredModel | None:
        """The model that answers."""
        with self._database.read() as connection:
            row = connection.execute(_columns().where(models.c.state == ACTIVE)).one_or_none()
        return None if row is None else StoredModel(*row)

    def all(self) -> list[StoredModel]:
        """Every model, oldest first."""
        with self._database.read() as connection:
            return [StoredModel(*row) for row in connection.execute(_columns().order_by(models.c.number))]

    def coverage(self, model: StoredModel) -> Coverage:
        """How much of the catalogue the model has embedded."""
        with self._database.read() as connection:
            return _coverage(connection, model)

    def activate(self, id: str, min_coverage: float = 1.0) -> StoredModel:
        """Make a model the one that answers; the one before it is retired. One transaction.

        Raises:
            UserError: if it is not known or has embedded less than ``min_coverage`` of the live articles.
        """
        with self._database.write() as connection:
            # Locked in one order, so that of two activations one waits for the other.
            connection.execute(sa.select(models.c.number).order_by(models.c.number).with_for_update())
            model = _find(connection, id)
            if model.state == ACTIVE:
                return model
            coverage = _coverage(connection, model)
            if coverage.share < min_coverage:
                raise UserError(
                    f"the model covers {coverage.embedded} of {coverage.live} live articles",
                    model.id[:12],
                    f"Embed the rest: nrms embed --model {shell_word(model.folder)}, or lower --min-coverage",
                )
            retire = sa.update(models).where(models.c.state == ACTIVE)
            connection.execute(retire.values(state=RETIRED))
            chosen = sa.update(models).where(models.c.number == model.number)
            connection.execute(chosen.values(state=ACTIVE, activated_at=now_ms()))
            return _find(connection, model.id)

    def drop(self, id: str) -> None:
        """Forget a model and its vectors.

        Raises:
            UserError: if it is the active one.
        """
        with self._database.write() as connection:
            model = _find(connection, id)
            if model.state == ACTIVE:
                raise UserError("the model is active", model.id[:12], "Activate another one first")
            connection.execute(sa.delete(models).where(models.c.number == model.number))
            if self._database.is_postgres:
                connection.execute(sa.text(f"DROP INDEX IF EXISTS ix_embeddings_hnsw_{model.number}"))


def _columns() -> sa.Select[Any]:
    return sa.select(models.c.number, models.c.id, models.c.dim, models.c.folder, models.c.state)


def _find(connection: Connection, id: str) -> StoredModel:
    wanted = _columns().where(models.c.id.startswith(id, autoescape=True)).limit(2)
    found = connection.execute(wanted).all()
    if len(found) != 1 or not id:
        what = "several models begin so" if found else "there is no such model"
        raise UserError(what, id or "model id", "See: nrms models")
    return StoredModel(*found[0])


def _coverage(connection: Connection, model: StoredModel) -> Coverage:
    now = now_ms()
    total = connection.execute(sa.select(sa.func.count()).select_from(articles).where(live(now))).scalar_one()
    current = sa.and_(embeddings.c.article == articles.c.number, embeddings.c.version == articles.c.version)
    joined = sa.select(sa.func.count()).select_from(articles.join(embeddings, current))
    embedded = connection.execute(joined.where(embeddings.c.model == model.number, live(now))).scalar_one()
    return Coverage(int(total), int(embedded))
