"""When a task's annotations were last compared with Label Studio."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("tasks", sa.Column("seen", sa.Text))


def downgrade() -> None:
    op.drop_column("tasks", "seen")
