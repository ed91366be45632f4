"""How Alembic reaches the database: over the connection it is given."""

from __future__ import annotations

from alembic import context

from nrms.server.store.schema import metadata

connection = context.config.attributes["connection"]
# The caller has begun the transaction and commits it: tables and version change together, in SQLite too.
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
