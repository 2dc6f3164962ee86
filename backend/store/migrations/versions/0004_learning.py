"""What accepted regions teach at once."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

Key = sa.String().with_variant(sa.String(collation="C"), "postgresql")
Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Time = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "lessons",
        sa.Column("origin", Key, primary_key=True),
        sa.Column("project", Id, primary_key=True, autoincrement=False),
        sa.Column("task", Id, primary_key=True, autoincrement=False),
        sa.Column("annotation", Id, primary_key=True, autoincrement=False),
        sa.Column("region", Key, primary_key=True),
        sa.Column("model", sa.String(64), primary_key=True),
        sa.Column("updated_at", Time, nullable=False),
        sa.Column("lesson", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "learning",
        sa.Column("origin", Key, primary_key=True),
        sa.Column("project", Id, primary_key=True, autoincrement=False),
        sa.Column("enabled", sa.Boolean, nullable=False),
        sa.Column("forgotten_at", Time),
        sa.Column("changed_at", Time, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("learning")
    op.drop_table("lessons")
