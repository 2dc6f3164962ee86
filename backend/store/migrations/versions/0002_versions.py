"""Model versions, and which of them have been live."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

Key = sa.String().with_variant(sa.String(collation="C"), "postgresql")
Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Time = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "versions",
        sa.Column("number", Id, primary_key=True, autoincrement=False),
        sa.Column("version", Key, nullable=False, unique=True),
        sa.Column("model", Key, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("parent", sa.Text),
        sa.Column("data_digest", sa.Text),
        sa.Column("figures", sa.JSON, nullable=False),
        sa.Column("files_digest", sa.String(64), nullable=False),
        sa.Column("created_at", Time, nullable=False),
        sa.Column("pinned", sa.Boolean, nullable=False),
        sa.Column("pruned_at", Time),
    )
    op.create_table(
        "activations",
        sa.Column("model", Key, primary_key=True),
        sa.Column("number", Id, primary_key=True, autoincrement=False),
        sa.Column("version", Key, sa.ForeignKey("versions.version")),
        sa.Column("over", Id),
        sa.Column("at", Time, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )
