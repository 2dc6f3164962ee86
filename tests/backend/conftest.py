from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from semsam_model.checkpoint import save
from semsam_model.config import read_model_config
from semsam_model.model import build_model
from tests.backend import postgres


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, untrained, as a weights file."""
    torch.manual_seed(0)
    config = read_model_config("tiny")
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save(path, build_model(config), config)
    return path


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """See `postgres.running`."""
    if postgres.program("initdb") is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres.running() as url:
        yield url


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database: SQLite, or PostgreSQL where a test is parametrised with it (`on_both`)."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return f"sqlite:///{tmp_path}/semsam.db"
    return postgres.new_database(request.getfixturevalue("postgres_server"))
