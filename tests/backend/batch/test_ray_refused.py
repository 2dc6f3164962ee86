"""`semsam batch --ray` where there is no cluster, or no Ray."""

import sys
from pathlib import Path

import pytest

from backend.batch.ray_cluster import on_ray
from backend.batch.run import read_config
from backend.errors import BackendError
from tests.backend.photo_studio import CONFIG
from tests.backend.preannotating import settings

CONFIGURED = read_config(CONFIG)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "localhost:99999", "nonsense"])
def test_an_address_where_no_cluster_is_is_named_at_once(address: str, region_weights: Path, tmp_path: Path) -> None:
    executor = on_ray(address, settings("http://x", region_weights, tmp_path), region_weights, CONFIGURED, 1)
    with pytest.raises(BackendError, match=f"--ray {address}.*expected local, auto or HOST:PORT"), executor:
        pass


def test_without_ray_it_says_what_to_install(
    region_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    executor = on_ray("local", settings("http://x", region_weights, tmp_path), region_weights, CONFIGURED, 1)
    with pytest.raises(BackendError, match=r"pip install 'ray\[data\]"), executor:
        pass
