from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import insert

from backend.corrections.queries import list_projects
from backend.errors import StoreError
from backend.store.database import Store
from backend.store.tables import metadata, projects


def test_the_migrations_make_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/semsam.db")
    with store.write() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    store.close()


def test_a_second_opening_finds_what_the_first_one_wrote(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/semsam.db"
    store = Store.open(url)
    with store.write() as connection:
        row = {
            "origin": "http://ls:8080",
            "project": 1,
            "title": "t",
            "label_config": "",
            "updated_at": datetime.now(UTC),
        }
        connection.execute(insert(projects), row | {"updated_at": datetime.now(UTC)})
    store.close()
    again = Store.open(url)
    assert [str(project.key) for project in list_projects(again)] == ["1 of http://ls:8080"]
    again.close()


def test_a_password_among_the_options_of_the_address_is_not_told() -> None:
    with pytest.raises(StoreError) as refused:
        Store.open("postgresql://127.0.0.1:1/semsam?user=semsam&password=geheim&connect_timeout=1")
    assert "127.0.0.1:1/semsam" in str(refused.value)
    assert "geheim" not in str(refused.value)
