"""Digests of photos are bytes; the project and the model of a lesson are a number. Both stand in indices, too."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

log = logging.getLogger("backend.store.migrations")

_TOGETHER = 50_000  #: rows between two lines of the log
_SETS_TOGETHER = 10  #: projects, each with up to 2,000 lessons, between two lines

Key = sa.String().with_variant(sa.String(collation="C"), "postgresql")
Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Time = sa.DateTime(timezone=True)

_Columns = list[sa.Column[Any]]

_USABLE = "deleted_at IS NULL AND problem IS NULL"
#: By table: (name, columns, condition) of the indices that SQLite makes anew with it. Where it takes two for as good as
#: each other it uses the one that was made last: that of the fewest rows.
_INDICES: Mapping[str, tuple[tuple[str, tuple[str, ...], str | None], ...]] = {
    "tasks": (
        ("tasks_without_photo", ("origin", "project", "task"), "image_sha256 IS NULL AND image_url IS NOT NULL"),
    ),
    "regions": (
        ("regions_of_image", ("origin", "project", "image_sha256"), _USABLE),
        ("regions_taught", ("origin", "project", "updated_at", "task", "annotation", "region"), _USABLE),
        (
            "regions_of_clicks",
            ("updated_at", "outcome", "rank", "seconds"),
            f"{_USABLE} AND rank IS NOT NULL AND preannotated = 0",
        ),
        (
            "regions_unjudged",
            ("origin", "project", "annotation"),
            f"{_USABLE} AND preannotated = 1 AND iou_with_offer IS NULL",
        ),
        ("regions_without_photo", ("origin", "project", "task"), "deleted_at IS NULL AND image_sha256 IS NULL"),
    ),
    "offers": (
        ("offers_of_task", ("origin", "project", "task", "created_at", "prompt_id"), None),
        ("offers_unsettled", ("created_at",), "settled = 0"),
    ),
}


def upgrade() -> None:
    _change_digests(sa.String(64), sa.LargeBinary(), "decode(image_sha256, 'hex')", "semsam_unhex(image_sha256)")
    op.create_table(
        "lesson_sets",
        sa.Column("id", Id, primary_key=True),
        sa.Column("origin", Key, nullable=False),
        sa.Column("project", Id, nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.UniqueConstraint("origin", "project", "model"),
    )
    sets = "SELECT DISTINCT origin, project, model FROM lessons ORDER BY origin, project, model"
    op.execute(f"INSERT INTO lesson_sets (origin, project, model) {sets}")
    _remake_lessons(
        _primary_key(lesson_set=Id, task=Id, annotation=Id, region=Key),
        "lessons.origin = lesson_sets.origin AND lessons.project = lesson_sets.project"
        " AND lessons.model = lesson_sets.model",
    )


def downgrade() -> None:
    key = _primary_key(origin=Key, project=Id, task=Id, annotation=Id, region=Key, model=sa.String(64))
    _remake_lessons(key, "lessons.lesson_set = lesson_sets.id")
    op.drop_table("lesson_sets")
    _change_digests(
        sa.LargeBinary(), sa.String(64), "encode(image_sha256, 'hex')", "nullif(lower(hex(image_sha256)), '')"
    )


def _change_digests(before: Any, after: Any, on_postgresql: str, on_sqlite: str) -> None:
    """Of tasks, regions and offers. The last two: what makes a digest of the old one."""
    connection = op.get_bind()
    for name, columns in _WITH_DIGESTS.items():
        log.info("database: digests of photos in %s", name)
        if connection.dialect.name == "postgresql":  # makes the table and its indices anew, too
            op.alter_column(name, "image_sha256", existing_type=before, type_=after, postgresql_using=on_postgresql)
            op.execute(f"ANALYZE {name}")  # the service starts before the server would come to it
        else:
            driver: Any = connection.connection.driver_connection
            driver.create_function("semsam_unhex", 1, _unhex, deterministic=True)
            _remake_in_sqlite(name, columns(after), {"image_sha256": on_sqlite})


def _unhex(digest: str | None) -> bytes | None:
    return None if digest is None else bytes.fromhex(digest)


def _remake_in_sqlite(name: str, columns: _Columns, changed: Mapping[str, str]) -> None:
    """Make a table anew, row by row: one that shrinks where it stands would leave its page as large as before.

    changed: by the name of a column, what makes its new value.
    """
    connection = op.get_bind()
    for index, *_ in _INDICES[name]:
        op.drop_index(index, name)
    names = [column.name for column in columns]
    op.create_table(f"{name}_new", *columns)
    values = ", ".join(changed.get(each, each) for each in names)
    copied = f"INSERT INTO {name}_new ({', '.join(names)}) SELECT {values} FROM {name} WHERE rowid > ? AND rowid <= ?"
    last = connection.exec_driver_sql(f"SELECT coalesce(max(rowid), 0) FROM {name}").scalar_one()
    for first in range(0, last, _TOGETHER):
        connection.exec_driver_sql(copied, (first, first + _TOGETHER))
        if first:
            log.info("database: %s, %d of %d", name, first, last)
    op.drop_table(name)
    op.rename_table(f"{name}_new", name)
    for index, of_index, condition in _INDICES[name]:
        log.info("database: making index %s", index)
        op.create_index(index, name, list(of_index), sqlite_where=None if condition is None else sa.text(condition))


def _remake_lessons(key: _Columns, same: str) -> None:
    """key: the new one. same: which lessons are of a set."""
    connection = op.get_bind()
    rest: _Columns = [
        sa.Column("updated_at", Time, nullable=False),
        sa.Column("lesson", sa.LargeBinary, nullable=False),
    ]
    names = [column.name for column in (*key, *rest)]
    op.create_table("lessons_new", *key, *rest)
    of_set = {"lesson_set": "lesson_sets.id"} | {each: f"lesson_sets.{each}" for each in ("origin", "project", "model")}
    values = ", ".join(of_set.get(each, f"lessons.{each}") for each in names)
    copied = sa.text(
        f"INSERT INTO lessons_new ({', '.join(names)}) SELECT {values} FROM lesson_sets JOIN lessons ON {same}"
        " WHERE lesson_sets.id = :number"
    )
    numbers = connection.scalars(sa.text("SELECT id FROM lesson_sets ORDER BY id")).all()
    for done, number in enumerate(numbers):
        connection.execute(copied, {"number": number})
        if done and done % _SETS_TOGETHER == 0:
            log.info("database: lessons of project %d of %d", done, len(numbers))
    op.drop_table("lessons")
    op.rename_table("lessons_new", "lessons")
    if connection.dialect.name == "postgresql":
        op.execute("ANALYZE lessons")


def _tasks(digest: Any) -> _Columns:
    return [
        *_primary_key(origin=Key, project=Id, task=Id),
        sa.Column("image_url", sa.Text),
        sa.Column("image_sha256", digest),
        sa.Column("problem", sa.Text),
        sa.Column("tried_at", Time),
        sa.Column("seen", sa.Text),
        sa.Column("deleted_at", Time),
    ]


def _regions(digest: Any) -> _Columns:
    return [
        *_primary_key(origin=Key, project=Id, task=Id, annotation=Id, region=Key),
        sa.Column("image_sha256", digest),
        sa.Column("image_url", sa.Text),
        sa.Column("width", sa.Integer),
        sa.Column("height", sa.Integer),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("granularity", sa.String(8)),
        sa.Column("parent", sa.Text),
        sa.Column("mask", sa.LargeBinary),
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


def _offers(digest: Any) -> _Columns:
    return [
        *_primary_key(prompt_id=sa.String(64)),
        sa.Column("origin", Key, nullable=False),
        sa.Column("project", Id, nullable=False),
        sa.Column("task", Id, nullable=False),
        sa.Column("image_sha256", digest, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("prompt", sa.JSON, nullable=False),
        sa.Column("candidates", sa.LargeBinary, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("milliseconds", sa.Float, nullable=False),
        sa.Column("created_at", Time, nullable=False),
        sa.Column("settled", sa.Boolean, nullable=False),
    ]


_WITH_DIGESTS: Mapping[str, Callable[[Any], _Columns]] = {"tasks": _tasks, "regions": _regions, "offers": _offers}


def _primary_key(**columns: Any) -> _Columns:
    return [
        sa.Column(name, kind, primary_key=True, nullable=False, autoincrement=False) for name, kind in columns.items()
    ]
