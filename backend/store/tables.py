"""The store's tables. The migrations beside this file make them; a test compares the two.

Label Studio's ids are the keys, so that a repeated event finds its own row. An event of Label Studio never removes a
row: `deleted_at` marks it.
"""

import json
import zlib
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    and_,
    not_,
    text,
)

metadata = MetaData()


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes in, aware UTC datetimes out, on databases with and without time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Packed(TypeDecorator[Any]):
    """JSON values in, JSON values out; compressed in between: masks are most of them."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> bytes:
        return zlib.compress(json.dumps(value, separators=(",", ":")).encode())

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(zlib.decompress(value))


class PackedText(TypeDecorator[str]):
    """Text in, text out; compressed in between: the text of a mask takes three fifths of its room then."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> bytes | None:
        return None if value is None else zlib.compress(value.encode())

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> str | None:
        return None if value is None else zlib.decompress(value).decode()


class Sha256(TypeDecorator[str]):
    """Digests of photos: 64 hexadecimal digits in and out, the bytes in between: half as long, in indices too."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> bytes | None:
        return None if value is None else bytes.fromhex(value)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> str | None:
        return None if value is None else value.hex()


#: Text that sorts by code point on every database, so that streams have one order everywhere.
Key = String().with_variant(String(collation="C"), "postgresql")
#: Label Studio's ids; a plain INTEGER is 64 bits wide in SQLite, and alone counts by itself there.
Id = BigInteger().with_variant(Integer(), "sqlite")


def _primary_key(**columns: Any) -> list[Column[Any]]:
    return [Column(name, kind, primary_key=True, nullable=False, autoincrement=False) for name, kind in columns.items()]


projects = Table(
    "projects",
    metadata,
    *_primary_key(origin=Key, project=Id),
    Column("title", Text, nullable=False),
    Column("label_config", Text, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("synced_at", UtcDateTime),
    Column("deleted_at", UtcDateTime),
    Column("missed_at", UtcDateTime),  # when it was last not found; None where Label Studio said that it was deleted
)

tasks = Table(
    "tasks",
    metadata,
    *_primary_key(origin=Key, project=Id, task=Id),
    Column("image_url", Text),
    Column("image_sha256", Sha256),
    Column("problem", Text),  # why its photo could not be kept
    Column("tried_at", UtcDateTime),  # last attempt to fetch it
    Column("seen", Text),  # its `updated_at` in Label Studio when its annotations were last compared
    Column("deleted_at", UtcDateTime),
)

# Addresses that bring a whole picture along; the columns `image_url` hold a short form of these.
data_addresses = Table(
    "data_addresses",
    metadata,
    *_primary_key(digest=String(64)),  # of the address
    Column("address", Text, nullable=False),
)

# An annotation may be deleted before we hear what task it was of: Label Studio's ids are unique within a server.
annotations = Table(
    "annotations",
    metadata,
    *_primary_key(origin=Key, annotation=Id),
    Column("project", Id, nullable=False),
    Column("task", Id),
    Column("annotator", Id),
    Column("cancelled", Boolean, nullable=False, default=False),
    Column("ground_truth", Boolean, nullable=False, default=False),
    Column("created_at", UtcDateTime),
    Column("updated_at", UtcDateTime),  # None: only its deletion is known
    Column("received_at", UtcDateTime, nullable=False),  # by our clock
    Column("deleted_at", UtcDateTime),  # by our clock
    Column("prediction", Id),  # Label Studio's id of the one that it was begun from
    Index("annotations_of_task", "origin", "project", "task"),
)

regions = Table(
    "regions",
    metadata,
    *_primary_key(origin=Key, project=Id, task=Id, annotation=Id, region=Key),
    Column("image_sha256", Sha256),
    Column("image_url", Text),
    Column("width", Integer),
    Column("height", Integer),
    Column("labels", JSON, nullable=False),
    Column("granularity", String(8)),
    Column("parent", Text),
    Column("mask", PackedText),  # COCO RLE counts; None where `problem` is not
    Column("outcome", String(16)),
    Column("prompt_id", String(64)),
    Column("rank", Integer),
    Column("level", Integer),
    Column("score", Float),
    Column("model_version", Text),
    Column("iou_with_offer", Float),
    Column("click_x", Float),
    Column("click_y", Float),
    Column("seconds", Float),
    Column("annotator", Id),
    Column("ground_truth", Boolean, nullable=False, default=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("problem", Text),  # why the region cannot be used
    Column("raw", JSON(none_as_null=True)),  # the rows as they came, where there is a problem
    Column("deleted_at", UtcDateTime),
    Column("preannotated", Boolean, nullable=False, default=False),  # suggested without a click
)
_LIVE = regions.c.deleted_at.is_(None)
_USABLE = and_(_LIVE, regions.c.problem.is_(None))


def _partial(name: str, where: ColumnElement[bool], *columns: Column[Any]) -> Index:
    """An index of the rows that queries with these very conditions ask for."""
    return Index(name, *columns, sqlite_where=where, postgresql_where=where)


_partial(
    "regions_taught",
    _USABLE,
    *(regions.c[name] for name in ("origin", "project", "updated_at", "task", "annotation", "region")),
)
_partial(
    "regions_of_clicks",
    and_(_USABLE, regions.c.rank.is_not(None), not_(regions.c.preannotated)),
    *(regions.c[name] for name in ("updated_at", "outcome", "rank", "seconds")),
)
_partial(
    "regions_unjudged",
    and_(_USABLE, regions.c.preannotated, regions.c.iou_with_offer.is_(None)),
    *(regions.c[name] for name in ("origin", "project", "annotation")),
)
_partial(
    "regions_without_photo",
    and_(_LIVE, regions.c.image_sha256.is_(None)),
    *(regions.c[name] for name in ("origin", "project", "task")),
)
_partial("regions_of_image", _USABLE, *(regions.c[name] for name in ("origin", "project", "image_sha256")))
_partial(
    "tasks_without_photo",
    and_(tasks.c.image_sha256.is_(None), tasks.c.image_url.is_not(None)),
    *(tasks.c[name] for name in ("origin", "project", "task")),
)
Index("annotations_received", *(annotations.c[name] for name in ("origin", "project", "received_at")))
_partial(
    "annotations_begun",
    annotations.c.prediction.is_not(None),
    *(annotations.c[name] for name in ("origin", "project", "prediction")),
)

#: What each project holds, see `backend.store.totals`. Numbers of regions where nothing else is said.
totals = Table(
    "totals",
    metadata,
    *_primary_key(origin=Key, project=Id),
    Column("changes", Id, nullable=False),  # transactions that changed regions, so far
    Column("counted", Boolean, nullable=False),  # whether the rest is right
    *(
        Column(name, Id, nullable=False, default=0)
        for name in (
            "accepted",
            "corrected",
            "relabelled",
            "drawn",
            "malformed",
            "deleted",
            "images",  # photos
            "rejected",  # prompts
            "preannotated_accepted",
            "preannotated_corrected",
            "preannotated_relabelled",
            "begun",  # annotations, from a prediction that has been read
            "suggested",  # by those predictions
            "kept",  # of what they suggested
            "unread",  # annotations that were begun from another prediction
        )
    ),
)

offers = Table(
    "offers",
    metadata,
    Column("prompt_id", String(64), primary_key=True),
    Column("origin", Key, nullable=False),
    Column("project", Id, nullable=False),
    Column("task", Id, nullable=False),
    Column("image_sha256", Sha256, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("prompt", JSON, nullable=False),  # clicks, boxes, text
    Column("candidates", Packed, nullable=False),  # once settled, those that became regions
    Column("model_version", Text, nullable=False),
    Column("milliseconds", Float, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("settled", Boolean, nullable=False, default=False),  # see `corrections.settling`
    Index("offers_of_task", "origin", "project", "task", "created_at", "prompt_id"),
    Index("offers_unsettled", "created_at", sqlite_where=text("settled = 0"), postgresql_where=text("NOT settled")),
)

# Predictions that annotations were begun from, as Label Studio holds them: what was suggested without a click.
predictions = Table(
    "predictions",
    metadata,
    *_primary_key(origin=Key, prediction=Id),
    Column("regions", Integer, nullable=False),  # of a model of ours
    Column("width", Integer),
    Column("height", Integer),
    # of each region: id, label, mask as COCO RLE counts, model version, score of a concept model
    Column("offered", Packed, nullable=False),
    Column("problem", Text),  # why it could not be read
    Column("tried_at", UtcDateTime),  # last attempt; None: there is no more to try
)

# Webhook events that were acknowledged and not yet processed into the tables above.
inbox = Table(
    "inbox",
    metadata,
    Column("id", Id, primary_key=True),
    Column("received_at", UtcDateTime, nullable=False),
    Column("delivery", Text, nullable=False),  # JSON
    Column("problem", Text),  # set where it can never be processed: it is kept to be looked at
)

# What Label Studio calls itself, by the name that it gives a project: /setup says it, to one backend of several.
introductions = Table(
    "introductions",
    metadata,
    *_primary_key(project_name=Key),
    Column("hostname", Text, nullable=False),
    Column("changes", Id, nullable=False),  # of this row: their sum tells whether anything is new
)

# Version 0, the model of the settings, has no row.
versions = Table(
    "versions",
    metadata,
    *_primary_key(number=Id),
    Column("version", Key, nullable=False, unique=True),
    Column("model", Key, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("parent", Text),
    Column("data_digest", Text),
    Column("figures", JSON, nullable=False),
    Column("files_digest", String(64), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("pinned", Boolean, nullable=False, default=False),
    Column("pruned_at", UtcDateTime),
)

# Only grows; the row with the largest number says what is live.
activations = Table(
    "activations",
    metadata,
    *_primary_key(model=Key, number=Id),
    Column("version", Key, ForeignKey("versions.version")),  # None: version 0
    Column("over", Id),  # the activation that a rollback goes back to
    Column("at", UtcDateTime, nullable=False),
    Column("reason", Text, nullable=False),
)

# A project that taught a model, as a number: what is the same in all of its lessons is in no key of theirs.
lesson_sets = Table(
    "lesson_sets",
    metadata,
    Column("id", Id, primary_key=True),
    Column("origin", Key, nullable=False),
    Column("project", Id, nullable=False),
    Column("model", String(64), nullable=False),  # digest of the one that was taught
    UniqueConstraint("origin", "project", "model"),
)

# What accepted regions teach a model at once; can be made anew from regions and photos.
lessons = Table(
    "lessons",
    metadata,
    *_primary_key(lesson_set=Id, task=Id, annotation=Id, region=Key),
    Column("updated_at", UtcDateTime, nullable=False),  # of the region when it taught
    Column("lesson", LargeBinary, nullable=False),
)

# Projects whose learning was switched or reset; the others learn.
learning = Table(
    "learning",
    metadata,
    *_primary_key(origin=Key, project=Id),
    Column("enabled", Boolean, nullable=False),
    Column("forgotten_at", UtcDateTime),  # regions as old as this teach nothing, by Label Studio's clock
    Column("changed_at", UtcDateTime, nullable=False),
)
# Fine-tuning. A project has at most one job that is queued or running.
jobs = Table(
    "jobs",
    metadata,
    Column("id", Id, primary_key=True),
    Column("origin", Key, nullable=False),
    Column("project", Id, nullable=False),
    Column("state", String(16), nullable=False),
    Column("trigger", String(16), nullable=False),
    Column("requested_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("attempts", Integer, nullable=False),
    Column("worker", Text),
    Column("lease_until", UtcDateTime),
    Column("stage", Text, nullable=False),
    Column("step", Integer, nullable=False),
    Column("steps", Integer, nullable=False),
    Column("regions", Integer, nullable=False),
    Column("data_digest", String(64)),
    Column("parent", Text),
    Column("version", Text),
    Column("message", Text, nullable=False),
    Column("report", Text),
    Column("verdict", JSON, nullable=False),
)
_OPEN = jobs.c.state.in_(["queued", "running"])
Index("open_jobs", jobs.c.origin, jobs.c.project, unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN)
