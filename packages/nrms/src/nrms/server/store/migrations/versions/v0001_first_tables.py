"""Articles, models, embeddings, interactions, jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from nrms.server.store.schema import HalfVector

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Make the tables."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    op.create_table(
        "articles",
        sa.Column("number", _Number, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("category", sa.Text, nullable=False, server_default=""),
        sa.Column("subcategory", sa.Text, nullable=False, server_default=""),
        sa.Column("abstract", sa.Text, nullable=False, server_default=""),
        sa.Column("published_at", sa.BigInteger),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("version", sa.Integer, nullable=False, server_default="1"),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_articles"),
        sa.UniqueConstraint("id", name="uq_articles_id"),
    )
    op.create_index("ix_articles_revision", "articles", ["revision"])
    op.create_table(
        "models",
        sa.Column("number", sa.Integer, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("dim", sa.Integer, nullable=False),
        sa.Column("folder", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("activated_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("number", name="pk_models"),
        sa.UniqueConstraint("id", name="uq_models_id"),
    )
    one_active = sa.text("state = 'active'")
    op.create_index(
        "ix_models_one_active",
        "models",
        ["state"],
        unique=True,
        sqlite_where=one_active,
        postgresql_where=one_active,
    )
    op.create_table(
        "embeddings",
        sa.Column("model", sa.Integer, nullable=False),
        sa.Column("article", sa.BigInteger, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("vector", HalfVector(), nullable=False),
        sa.PrimaryKeyConstraint("model", "article", name="pk_embeddings"),
        sa.ForeignKeyConstraint(["model"], ["models.number"], name="fk_embeddings_model", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["article"], ["articles.number"], name="fk_embeddings_article", ondelete="CASCADE"),
    )
    op.create_index("ix_embeddings_model_revision", "embeddings", ["model", "revision"])
    op.create_table(
        "interactions",
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("article_id", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("event_id", name="pk_interactions"),
    )
    op.create_index("ix_interactions_user_id_at", "interactions", ["user_id", "at"])
    op.create_index("ix_interactions_at", "interactions", ["at"])
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("model", sa.Integer, nullable=False),
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("done", sa.Integer, nullable=False, server_default="0"),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("finished_at", sa.BigInteger),
        sa.Column("error", sa.Text),
        sa.Column("low", sa.BigInteger),
        sa.Column("high", sa.BigInteger),
        sa.Column("lease_until", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.ForeignKeyConstraint(["model"], ["models.number"], name="fk_jobs_model", ondelete="CASCADE"),
    )
    op.create_index("ix_jobs_state", "jobs", ["state"])
    counters = op.create_table(
        "counters",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_counters"),
    )
    op.bulk_insert(counters, [{"name": "revision", "value": 0}])


def downgrade() -> None:
    """Drop the tables; the extension stays, others may use it."""
    for table in ("counters", "jobs", "interactions", "embeddings", "models", "articles"):
        op.drop_table(table)
