from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backend.store.database import Store
from semsam_model.checkpoints.checkpoint import save
from semsam_model.config import read_model_config
from semsam_model.network.model import build_model
from tests.backend import postgres
from tests.semsam_model.networks import structured


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, untrained, as a weights file."""
    torch.manual_seed(0)
    config = read_model_config("tiny")
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save(path, build_model(config), config)
    return path


@pytest.fixture(scope="session")
def region_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with names and object queries, untrained, whose masks have structure."""
    tiny = read_model_config("tiny")
    config = replace(tiny, generic_queries=12, generic_layers=1, name_features=True, text_dim=384)
    path = tmp_path_factory.mktemp("regions") / "tiny.safetensors"
    save(path, structured(config, seed=4), config)
    return path


@pytest.fixture(scope="session")
def postgres_process() -> Iterator[postgres.Server]:
    """A running PostgreSQL; where there is none, tests that need it fail, not skip."""
    if postgres.program("initdb") is None:
        pytest.fail("PostgreSQL is not installed: `make test` installs it where it can")
    server = postgres.Server()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def postgres_server(postgres_process: postgres.Server) -> str:
    """URL of a running PostgreSQL."""
    return postgres_process.url


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database: SQLite, or PostgreSQL where a test is parametrised with it (`on_both`)."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return f"sqlite:///{tmp_path}/semsam.db"
    return postgres.new_database(request.getfixturevalue("postgres_server"))


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store, on each kind of database."""
    url = f"sqlite:///{tmp_path}/semsam.db"
    if request.param == "postgresql":
        url = postgres.new_database(request.getfixturevalue("postgres_server"))
    opened = Store.open(url)
    yield opened
    opened.close()
