"""Whether Label Studio has said that a project is deleted, or only did not show it to us."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("projects", sa.Column("missed_at", sa.DateTime(timezone=True)))
    # of those that are marked nobody knows any more which of the two it was: they are asked for again
    op.execute("UPDATE projects SET missed_at = deleted_at")


def downgrade() -> None:
    op.drop_column("projects", "missed_at")
