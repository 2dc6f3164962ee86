"""Running totals of each project; indices for what is asked all the time, instead of those that counting needed."""

import logging
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

log = logging.getLogger("backend.store.migrations")

Key = sa.String().with_variant(sa.String(collation="C"), "postgresql")
Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

_COUNTED: tuple[str, ...] = ("accepted", "corrected", "relabelled", "drawn", "malformed", "deleted", "images")
_COUNTED += ("rejected", "preannotated_accepted", "preannotated_corrected", "preannotated_relabelled")
_COUNTED += ("begun", "suggested", "kept", "unread")

_USABLE = "deleted_at IS NULL AND problem IS NULL"
#: (name, table, columns, condition); conditions as queries say them, see `not_` below
_NEW = (
    ("regions_taught", "regions", ("origin", "project", "updated_at", "task", "annotation", "region"), _USABLE),
    (
        "regions_of_clicks",
        "regions",
        ("updated_at", "outcome", "rank", "seconds"),
        f"{_USABLE} AND rank IS NOT NULL AND {{no}}",
    ),
    (
        "regions_unjudged",
        "regions",
        ("origin", "project", "annotation"),
        f"{_USABLE} AND {{yes}} AND iou_with_offer IS NULL",
    ),
    ("regions_without_photo", "regions", ("origin", "project", "task"), "deleted_at IS NULL AND image_sha256 IS NULL"),
    ("regions_of_image", "regions", ("origin", "project", "image_sha256"), _USABLE),
    ("tasks_without_photo", "tasks", ("origin", "project", "task"), "image_sha256 IS NULL AND image_url IS NOT NULL"),
    ("annotations_received", "annotations", ("origin", "project", "received_at"), None),
    ("annotations_begun", "annotations", ("origin", "project", "prediction"), "prediction IS NOT NULL"),
)
_OLD = ("regions_of_prompt", "regions_of_image", "regions_counted", "regions_newest", "regions_preannotated")


def upgrade() -> None:
    op.create_table(
        "totals",
        sa.Column("origin", Key, primary_key=True, nullable=False, autoincrement=False),
        sa.Column("project", Id, primary_key=True, nullable=False, autoincrement=False),
        sa.Column("changes", Id, nullable=False),
        sa.Column("counted", sa.Boolean, nullable=False),
        *(sa.Column(name, Id, nullable=False) for name in _COUNTED),
    )
    for name in _OLD:
        op.drop_index(name, "regions")
    sqlite = op.get_bind().dialect.name == "sqlite"
    said = {"yes": "preannotated = 1", "no": "preannotated = 0"}
    said = said if sqlite else {"yes": "preannotated", "no": "NOT preannotated"}
    for number, (name, table, columns, condition) in enumerate(_NEW, start=1):
        log.info("database: making index %s, %d of %d", name, number, len(_NEW))
        where = None if condition is None else sa.text(condition.format(**said))
        op.create_index(name, table, list(columns), sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    for name, table, *_ in reversed(_NEW):
        op.drop_index(name, table)
    op.create_index("regions_of_prompt", "regions", ["prompt_id", "deleted_at"])
    op.create_index("regions_of_image", "regions", ["image_sha256"])
    counted = ["origin", "project", "deleted_at", "image_sha256", "outcome", "updated_at"]
    op.create_index("regions_counted", "regions", counted)
    op.create_index("regions_newest", "regions", ["updated_at"])
    where: dict[str, Any] = {"sqlite_where": sa.text("preannotated = 1"), "postgresql_where": sa.text("preannotated")}
    columns = ["origin", "project", "annotation", "outcome", "deleted_at", "preannotated"]
    op.create_index("regions_preannotated", "regions", columns, **where)
    op.drop_table("totals")
