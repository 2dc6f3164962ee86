"""What was offered, what came back, and what is still to be worked in."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

Key = sa.String().with_variant(sa.String(collation="C"), "postgresql")
Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Time = sa.DateTime(timezone=True)


# long, and left as it is: a migration records one moment of the schema and is never changed
def upgrade() -> None:
    op.create_table(
        "projects",
        sa.Column("origin", Key, primary_key=True),
        sa.Column("project", Id, primary_key=True, autoincrement=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("label_config", sa.Text, nullable=False),
        sa.Column("updated_at", Time, nullable=False),
        sa.Column("synced_at", Time),
        sa.Column("deleted_at", Time),
    )
    op.create_table(
        "tasks",
        sa.Column("origin", Key, primary_key=True),
        sa.Column("project", Id, primary_key=True, autoincrement=False),
        sa.Column("task", Id, primary_key=True, autoincrement=False),
        sa.Column("image_url", sa.Text),
        sa.Column("image_sha256", sa.String(64)),
        sa.Column("problem", sa.Text),
        sa.Column("tried_at", Time),
        sa.Column("deleted_at", Time),
    )
    op.create_table(
        "annotations",
        sa.Column("origin", Key, primary_key=True),
        sa.Column("annotation", Id, primary_key=True, autoincrement=False),
        sa.Column("project", Id, nullable=False),
        sa.Column("task", Id),
        sa.Column("annotator", Id),
        sa.Column("cancelled", sa.Boolean, nullable=False),
        sa.Column("ground_truth", sa.Boolean, nullable=False),
        sa.Column("created_at", Time),
        sa.Column("updated_at", Time),
        sa.Column("received_at", Time, nullable=False),
        sa.Column("deleted_at", Time),
    )
    op.create_index("annotations_of_task", "annotations", ["origin", "project", "task"])
    op.create_table(
        "regions",
        sa.Column("origin", Key, primary_key=True),
        sa.Column("project", Id, primary_key=True, autoincrement=False),
        sa.Column("task", Id, primary_key=True, autoincrement=False),
        sa.Column("annotation", Id, primary_key=True, autoincrement=False),
        sa.Column("region", Key, primary_key=True),
        sa.Column("image_sha256", sa.String(64)),
        sa.Column("image_url", sa.Text),
        sa.Column("width", sa.Integer),
        sa.Column("height", sa.Integer),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("granularity", sa.String(8)),
        sa.Column("parent", sa.Text),
        sa.Column("mask", sa.Text),
        sa.Column("outcome", sa.String(16)),
        sa.Column("prompt_id", sa.String(64)),
        sa.Column("rank", sa.Integer),
        sa.Column("level", sa.Integer),
        sa.Column("score", sa.Float),
        sa.Column("model_version", sa.Text),
        sa.Column("iou_with_offer", sa.Float),
        sa.Column("click_x", sa.Float),
        sa.Column("click_y", sa.Float),
        sa.Column("seconds", sa.Float),
        sa.Column("annotator", Id),
        sa.Column("ground_truth", sa.Boolean, nullable=False),
        sa.Column("updated_at", Time, nullable=False),
        sa.Column("problem", sa.Text),
        sa.Column("raw", sa.JSON),
        sa.Column("deleted_at", Time),
    )
    op.create_index("regions_of_prompt", "regions", ["prompt_id"])
    op.create_index("regions_of_image", "regions", ["image_sha256"])
    op.create_table(
        "offers",
        sa.Column("prompt_id", sa.String(64), primary_key=True),
        sa.Column("origin", Key, nullable=False),
        sa.Column("project", Id, nullable=False),
        sa.Column("task", Id, nullable=False),
        sa.Column("image_sha256", sa.String(64), nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("prompt", sa.JSON, nullable=False),
        sa.Column("candidates", sa.JSON, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("milliseconds", sa.Float, nullable=False),
        sa.Column("created_at", Time, nullable=False),
    )
    op.create_index("offers_of_task", "offers", ["origin", "project", "task", "created_at"])
    op.create_table(
        "inbox",
        sa.Column("id", Id, primary_key=True),
        sa.Column("received_at", Time, nullable=False),
        sa.Column("delivery", sa.Text, nullable=False),
        sa.Column("problem", sa.Text),
    )


def downgrade() -> None:
    for name in ("inbox", "offers", "regions", "annotations", "tasks", "projects"):
        op.drop_table(name)
