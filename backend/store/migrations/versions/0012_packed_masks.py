"""Masks of regions are compressed."""

import logging
import zlib
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

log = logging.getLogger("backend.store.migrations")

_TOGETHER = 500  #: rows in memory
_TOLD = 100  #: of these between two lines of the log

Key = sa.String().with_variant(sa.String(collation="C"), "postgresql")
Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Time = sa.DateTime(timezone=True)

_USABLE = "deleted_at IS NULL AND problem IS NULL"
#: (name, columns, condition): the indices that go with the table
_INDICES = (
    ("regions_taught", ("origin", "project", "updated_at", "task", "annotation", "region"), _USABLE),
    (
        "regions_of_clicks",
        ("updated_at", "outcome", "rank", "seconds"),
        f"{_USABLE} AND rank IS NOT NULL AND {{no}}",
    ),
    ("regions_unjudged", ("origin", "project", "annotation"), f"{_USABLE} AND {{yes}} AND iou_with_offer IS NULL"),
    ("regions_without_photo", ("origin", "project", "task"), "deleted_at IS NULL AND image_sha256 IS NULL"),
    ("regions_of_image", ("origin", "project", "image_sha256"), _USABLE),
)


def upgrade() -> None:
    _remake(sa.Text(), sa.LargeBinary(), lambda mask: zlib.compress(mask.encode()), "compressed")


def downgrade() -> None:
    _remake(sa.LargeBinary(), sa.Text(), lambda mask: zlib.decompress(mask).decode(), "unpacked")


def _columns(mask: Any) -> list[sa.Column[Any]]:
    key: list[sa.Column[Any]] = [sa.Column("origin", Key, primary_key=True, nullable=False)]
    for name in ("project", "task", "annotation"):
        key.append(sa.Column(name, Id, primary_key=True, nullable=False, autoincrement=False))
    return [
        *key,
        sa.Column("region", Key, primary_key=True, nullable=False),
        sa.Column("image_sha256", sa.String(64)),
        sa.Column("image_url", sa.Text),
        sa.Column("width", sa.Integer),
        sa.Column("height", sa.Integer),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("granularity", sa.String(8)),
        sa.Column("parent", sa.Text),
        sa.Column("mask", mask),
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
        sa.Column("raw", sa.JSON(none_as_null=True)),
        sa.Column("deleted_at", Time),
        sa.Column("preannotated", sa.Boolean, nullable=False),
    ]


def _remake(before: Any, after: Any, change: Callable[[Any], Any], done: str) -> None:
    """Make the table anew, row by row: one that shrinks where it stands would leave its page as large as before."""
    connection = op.get_bind()
    sqlite = connection.dialect.name == "sqlite"
    for name, *_ in _INDICES:
        op.drop_index(name, "regions")
    op.create_table("regions_new", *_columns(after))
    old, new = (_as_it_stands(*each, sqlite) for each in (("regions", before), ("regions_new", after)))
    total = connection.scalar(sa.select(sa.func.count()).select_from(old)) or 0
    rows = connection.execute(sa.select(old), execution_options={"yield_per": _TOGETHER})
    for number, some in enumerate(rows.mappings().partitions(), start=1):
        packed = [{**row, "mask": None if row["mask"] is None else change(row["mask"])} for row in some]
        connection.execute(sa.insert(new), packed)
        if number % _TOLD == 0:
            log.info("database: masks of regions %s, %d of %d", done, number * _TOGETHER, total)
    op.drop_table("regions")
    op.rename_table("regions_new", "regions")
    said = {"yes": "preannotated = 1", "no": "preannotated = 0"}
    said = said if sqlite else {"yes": "preannotated", "no": "NOT preannotated"}
    for name, columns, condition in _INDICES:
        log.info("database: making index %s", name)
        where = sa.text(condition.format(**said))
        op.create_index(name, "regions", list(columns), sqlite_where=where, postgresql_where=where)


def _as_it_stands(name: str, mask: Any, sqlite: bool) -> sa.Table:
    """The table; on SQLite its times and JSON as the text that they are there, which nobody has to read and write."""
    table = sa.Table(name, sa.MetaData(), *_columns(mask))
    if sqlite:
        for column in table.columns:
            if isinstance(column.type, sa.DateTime | sa.JSON):
                column.type = sa.Text()
    return table
