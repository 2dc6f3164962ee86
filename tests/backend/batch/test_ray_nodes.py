"""semsam batch on a Ray of two nodes: the work is spread over both."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from backend.batch.ray_cluster import on_ray
from backend.batch.run import read_config, run
from backend.batch.sources import Item
from benchmarks.batch import models_by_node
from tests.backend.photo_studio import CONFIG, photo, png
from tests.backend.preannotating import settings
from tests.paths import ROOT


@pytest.fixture
def two_nodes() -> Iterator[str]:
    """The address of a Ray of two nodes, each with room for both workers."""
    assert not ray.is_initialized()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_worker_niceness", "0")
        node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        try:
            cluster.add_node(**node)
            yield cluster.address
        finally:
            cluster.shutdown()


class BothThere(Exception):
    """Two workers were seen."""


@pytest.mark.slow
def test_two_workers_are_on_two_nodes(two_nodes: str, region_weights: Path, tmp_path: Path) -> None:
    chosen = settings("http://localhost:1", region_weights, tmp_path)
    picture, seen = png(photo(0)), list[list[int]]()

    def look(prediction: dict[str, Any]) -> None:
        seen.append(models_by_node())
        if sum(seen[-1]) == 2:
            raise BothThere

    # the second begins when photos wait for the first
    items = (Item(f"{number}.png", lambda: picture, look) for number in range(1000))
    with (
        on_ray(two_nodes, chosen, region_weights, read_config(CONFIG), 2, first=1000) as annotate,
        pytest.raises(BothThere),
    ):
        run(items, annotate)
    assert seen[-1] == [1, 1]
