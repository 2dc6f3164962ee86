"""What was offered without a click, and what became of it; indices that counting needs no masks for."""

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
    op.drop_index("offers_of_task", "offers")
    op.create_index("offers_of_task", "offers", ["origin", "project", "task", "created_at", "prompt_id"])
    op.drop_index("regions_of_prompt", "regions")
    op.create_index("regions_of_prompt", "regions", ["prompt_id", "deleted_at"])
    counted = ["origin", "project", "deleted_at", "image_sha256", "outcome", "updated_at"]
    op.create_index("regions_counted", "regions", counted)
    op.create_index("regions_newest", "regions", ["updated_at"])
    sqlite, postgresql = sa.text("preannotated = 1"), sa.text("preannotated")
    columns = ["origin", "project", "annotation", "outcome", "deleted_at", "preannotated"]
    op.create_index("regions_preannotated", "regions", columns, sqlite_where=sqlite, postgresql_where=postgresql)


def downgrade() -> None:
    for name in ("regions_preannotated", "regions_newest", "regions_counted"):
        op.drop_index(name, "regions")
    op.drop_index("regions_of_prompt", "regions")
    op.create_index("regions_of_prompt", "regions", ["prompt_id"])
    op.drop_index("offers_of_task", "offers")
    op.create_index("offers_of_task", "offers", ["origin", "project", "task", "created_at"])
    op.drop_table("predictions")
    op.drop_column("regions", "preannotated")
    op.drop_column("annotations", "prediction")
