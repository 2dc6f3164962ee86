"""Suggestions are compressed, without what nobody reads: names and boxes of the candidates."""

import json
import logging
import zlib
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

log = logging.getLogger("backend.store.migrations")

_TOGETHER = 500  #: rows in memory
_TOLD = 100  #: of these between two lines of the log

Key = sa.String().with_variant(sa.String(collation="C"), "postgresql")
Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Time = sa.DateTime(timezone=True)


def upgrade() -> None:
    _remake("offers", _offers, "candidates", lambda value: _packed([_read_parts(each) for each in value]), packed=True)
    _remake("predictions", _predictions, "offered", _packed, packed=True)
    condition: dict[str, Any] = {"sqlite_where": sa.text("settled = 0"), "postgresql_where": sa.text("NOT settled")}
    op.create_index("offers_unsettled", "offers", ["created_at"], **condition)


def downgrade() -> None:
    op.drop_index("offers_unsettled", "offers")
    unread = {"names": [], "bbox": [0, 0, 0, 0]}
    _remake("offers", _offers, "candidates", lambda value: [e | unread for e in _unpacked(value)], packed=False)
    _remake("predictions", _predictions, "offered", _unpacked, packed=False)


def _packed(value: Any) -> bytes:
    return zlib.compress(json.dumps(value, separators=(",", ":")).encode())


def _unpacked(value: bytes) -> Any:
    return json.loads(zlib.decompress(value))


def _read_parts(candidate: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in candidate.items() if name not in ("names", "bbox")}


def _offers(packed: bool) -> list[Any]:
    return [
        sa.Column("prompt_id", sa.String(64), primary_key=True),
        sa.Column("origin", Key, nullable=False),
        sa.Column("project", Id, nullable=False),
        sa.Column("task", Id, nullable=False),
        sa.Column("image_sha256", sa.String(64), nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("prompt", sa.JSON, nullable=False),
        sa.Column("candidates", sa.LargeBinary if packed else sa.JSON, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("milliseconds", sa.Float, nullable=False),
        sa.Column("created_at", Time, nullable=False),
        *([sa.Column("settled", sa.Boolean, nullable=False, default=False)] if packed else []),
    ]


def _predictions(packed: bool) -> list[Any]:
    return [
        sa.Column("origin", Key, primary_key=True, nullable=False, autoincrement=False),
        sa.Column("prediction", Id, primary_key=True, nullable=False, autoincrement=False),
        sa.Column("regions", sa.Integer, nullable=False),
        sa.Column("width", sa.Integer),
        sa.Column("height", sa.Integer),
        sa.Column("offered", sa.LargeBinary if packed else sa.JSON, nullable=False),
        sa.Column("problem", sa.Text),
        sa.Column("tried_at", Time),
    ]


def _remake(
    name: str, columns: Callable[[bool], list[Any]], changed: str, change: Callable[[Any], Any], *, packed: bool
) -> None:
    """Make a table anew, row by row; `change` makes the new value of one of its columns."""
    connection = op.get_bind()
    old = sa.Table(name, sa.MetaData(), *columns(not packed))
    if name == "offers":
        op.drop_index("offers_of_task", name)
    new = op.create_table(f"{name}_new", *columns(packed))
    total = connection.scalar(sa.select(sa.func.count()).select_from(old)) or 0
    same = [old.c[column.name] for column in new.columns if column.name in old.c]
    rows = connection.execute(sa.select(*same), execution_options={"yield_per": _TOGETHER})
    for number, some in enumerate(rows.mappings().partitions(), start=1):
        connection.execute(sa.insert(new), [{**row, changed: change(row[changed])} for row in some])
        if number % _TOLD == 0:
            log.info("database: %s compressed, %d of %d", name, number * _TOGETHER, total)
    op.drop_table(name)
    op.rename_table(f"{name}_new", name)
    if name == "offers":
        op.create_index("offers_of_task", name, ["origin", "project", "task", "created_at", "prompt_id"])
