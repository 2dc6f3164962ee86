"""Which server each project said that it lives on, for every backend on this store."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

Key = sa.String().with_variant(sa.String(collation="C"), "postgresql")
Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "introductions",
        sa.Column("project_name", Key, primary_key=True, nullable=False, autoincrement=False),
        sa.Column("hostname", sa.Text, nullable=False),
        sa.Column("changes", Id, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("introductions")
