"""Fine-tuning jobs, at most one open one a project."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

Key = sa.String().with_variant(sa.String(collation="C"), "postgresql")
Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Time = sa.DateTime(timezone=True)
OPEN = sa.text("state IN ('queued', 'running')")


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", Id, primary_key=True),
        sa.Column("origin", Key, nullable=False),
        sa.Column("project", Id, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("trigger", sa.String(16), nullable=False),
        sa.Column("requested_at", Time, nullable=False),
        sa.Column("started_at", Time),
        sa.Column("finished_at", Time),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("worker", sa.Text),
        sa.Column("lease_until", Time),
        sa.Column("stage", sa.Text, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("steps", sa.Integer, nullable=False),
        sa.Column("regions", sa.Integer, nullable=False),
        sa.Column("data_digest", sa.String(64)),
        sa.Column("parent", sa.Text),
        sa.Column("version", sa.Text),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("report", sa.Text),
        sa.Column("verdict", sa.JSON, nullable=False),
    )
    op.create_index("open_jobs", "jobs", ["origin", "project"], unique=True, sqlite_where=OPEN, postgresql_where=OPEN)
