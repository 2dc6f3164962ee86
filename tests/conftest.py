"""Marks that follow from what a test asks for, and which tests share a process where several run at once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

# speed is measured in benchmarks: a busy machine must fail no test
settings.register_profile("semsam", deadline=None)
settings.load_profile("semsam")

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # before torch is imported: no core is asked for twice
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

#: Folders whose tests share what takes long to start, Label Studio or Ray: each is run by one process.
TOGETHER = ("tests/journeys", "tests/endurance", "tests/backend/batch")
#: Begun in this order, before all others: whatever long begins last keeps one core busy alone.
LONG = (*TOGETHER, "tests/backend/cli", "tests/backend/finetuning", "tests/backend/corrections")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`postgres` on every test that needs the server, directly or as one of its parameters; long ones first."""
    for item in items:
        assert isinstance(item, pytest.Function)
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if "postgres_server" in item.fixturenames or any(
            value == "postgresql" for value in parameters if isinstance(value, str)
        ):
            item.add_marker("postgres")
    if workers:
        items.sort(key=lambda item: next((n for n, path in enumerate(LONG) if item.nodeid.startswith(path)), len(LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Tests of a module in one process, and those of the folders TOGETHER."""
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return next((folder for folder in TOGETHER if module.startswith(folder)), module)

    config.option.loadscopereorder = False  # the order above
    return ByModule(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak-minutes", type=float, default=0, help="how long tests/endurance takes; 0: seconds")
