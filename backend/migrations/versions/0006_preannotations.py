"""What was offered without a click, and what became of it."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

Key = sa.String().with_variant(sa.String(collation="C"), "postgresql")
Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("annotations", sa.Column("prediction", Id))
    op.add_column("regions", sa.Column("preannotated", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_table(
        "predictions",
        sa.Column("origin", Key, primary_key=True, nullable=False, autoincrement=False),
        sa.Column("prediction", Id, primary_key=True, nullable=False, autoincrement=False),
        sa.Column("regions", sa.Integer, nullable=False),
        sa.Column("width", sa.Integer),
        sa.Column("height", sa.Integer),
        sa.Column("offered", sa.JSON, nullable=False),
        sa.Column("problem", sa.Text),
        sa.Column("tried_at", sa.DateTime(timezone=True)),
    )


def downgrade() -> None:
    op.drop_table("predictions")
    op.drop_column("regions", "preannotated")
    op.drop_column("annotations", "prediction")
