"""Alembic's entry. `Store.open` hands it the connection and the transaction around all migrations."""

from alembic import context

from backend.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,  # SQLite can, too
    render_as_batch=True,  # SQLite cannot alter most things in place
)
context.run_migrations()
