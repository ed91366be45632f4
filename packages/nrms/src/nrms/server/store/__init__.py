"""Articles, models, embeddings and reads, in SQLite or in PostgreSQL with pgvector."""

from nrms.server.store.articles import Added, Articles, Events, Read
from nrms.server.store.database import Database, NoDatabase, Unavailable, now_ms
from nrms.server.store.embeddings import Changes, Embeddings, Hits, Job
from nrms.server.store.models import Coverage, Models, StoredModel

__all__ = [
    "Added",
    "Changes",
    "Coverage",
    "Hits",
    "Job",
    "NoDatabase",
    "Read",
    "Store",
    "StoredModel",
    "Unavailable",
    "now_ms",
]


class Store:
    """A database and what is in it: ``articles``, ``events``, ``models``, ``embeddings``.

    Args:
        url: ``sqlite:///FILE`` (or just a file), ``postgresql://USER@HOST/NAME``, or ``pgserver:FOLDER``.
        migrate: bring the tables to this version of the package.
        create: make a database where there is none; only reading does not.
        patience: seconds for which a transaction that finds no database is tried again.

    Raises:
        UserError: for an address that is none, a database of others or another version, or missing pgvector.
        NoDatabase: if there is none, and none is to be made.
        Unavailable: if the database cannot be reached.
    """

    def __init__(self, url: str, *, migrate: bool = True, create: bool = True, patience: float = 10.0) -> None:
        self.database = Database(url, create=create, patience=patience)
        if migrate:
            self.database.retry(self.database.migrate)
        self.articles = Articles(self.database)
        self.events = Events(self.database)
        self.models = Models(self.database)
        self.embeddings = Embeddings(self.database)

    def close(self) -> None:
        """Close the connections."""
        self.database.close()
