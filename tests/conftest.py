"""Marks that follow from what a test asks for; examples of hypothesis may take as long as they take."""

import pytest
from hypothesis import settings

# speed is measured in benchmarks: a busy machine must fail no test
settings.register_profile("semsam", deadline=None)
settings.load_profile("semsam")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`postgres` on every test that needs the server, directly or as one of its parameters."""
    for item in items:
        assert isinstance(item, pytest.Function)
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if "postgres_server" in item.fixturenames or any(
            value == "postgresql" for value in parameters if isinstance(value, str)
        ):
            item.add_marker("postgres")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak-minutes", type=float, default=0, help="how long tests/endurance takes; 0: seconds")
