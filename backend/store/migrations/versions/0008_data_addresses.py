"""Addresses that bring a whole picture along are kept once, not in every task and region."""

import hashlib

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_DATA = "data:%"


def upgrade() -> None:
    kept = op.create_table(
        "data_addresses",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("address", sa.Text, nullable=False),
    )
    connection = op.get_bind()
    for name in ("tasks", "regions"):
        table = sa.table(name, sa.column("image_url", sa.Text))
        whole = sa.select(table.c.image_url).where(table.c.image_url.like(_DATA), ~table.c.image_url.like("%;sha256,%"))
        while (address := connection.scalar(whole.limit(1))) is not None:  # one at a time: each may be large
            digest = hashlib.sha256(address.encode()).hexdigest()
            if connection.scalar(sa.select(kept.c.digest).where(kept.c.digest == digest)) is None:
                connection.execute(kept.insert(), {"digest": digest, "address": address})
            kind = address[5:100].partition(",")[0].partition(";")[0]
            short = f"data:{kind};sha256,{digest}"
            connection.execute(table.update().where(table.c.image_url == address).values(image_url=short))


def downgrade() -> None:
    op.drop_table("data_addresses")
