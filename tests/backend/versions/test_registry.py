"""Versions are kept whole and unchanged; activating puts one on top of a stack, rolling back takes it off."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete
from typer.testing import CliRunner

from backend.cli.main import app
from backend.errors import VersionError
from backend.finetuning import jobs
from backend.finetuning.jobs import job_folder
from backend.records import ProjectKey
from backend.settings import Settings
from backend.store.database import Store
from backend.store.tables import activations
from backend.versions import files as version_files
from backend.versions.registry import RECENT, Registry, open_registry
from backend.versions.version import ModelVersion
from semsam_model.checkpoints.checkpoint import load, save
from semsam_model.config import read_model_config
from semsam_model.errors import CheckpointError
from semsam_model.network.model import build_model

LATER = datetime.now(UTC) + 2 * RECENT


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six tiny models of different weights."""
    config, folder = read_model_config("tiny"), tmp_path_factory.mktemp("trained")
    model = build_model(config)
    paths = []
    for i in range(6):
        with torch.no_grad():
            next(model.parameters()).add_(1)
        paths.append(folder / f"{i}.safetensors")
        save(paths[-1], model, config, card={"run": i})
    return paths


def opened(data_dir: Path, weights: Path, store: Store) -> Registry:
    return open_registry(Settings(model="tiny", weights=weights, data_dir=data_dir), store)


on_both = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    store = Store.open(database)
    yield store
    store.close()


@pytest.fixture
def registry(tmp_path: Path, weights: Path, store: Store) -> Registry:
    return opened(tmp_path, weights, store)


def add(registry: Registry, weights: Path, **more: Any) -> ModelVersion:
    return registry.register(weights, **{"parent": registry.live().version.version, **more})


def test_version_0_is_the_model_of_the_settings_and_is_live_until_another_one_is(
    registry: Registry, weights: Path
) -> None:
    (base,) = registry.all()
    assert (base.number, base.weights) == (0, weights)
    assert registry.live().version == registry.find("0") == registry.find("base") == base
    with pytest.raises(VersionError, match="nothing was live before"):
        registry.rollback()


@on_both
def test_what_is_registered_is_what_is_found(registry: Registry, trained: list[Path], tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text("<p>better</p>")
    figures = {"oracle": {"before": 0.61, "after": 0.7}, "levels": [1, 2]}
    made = add(registry, trained[0], data_digest="d" * 64, figures=figures, attachments=[report])
    for which in ("1", made.version, made.version[:9], made.digest[:7]):
        assert registry.find(which) == made
    assert (made.parent, made.data_digest, made.figures) == (registry.base.version, "d" * 64, figures)
    assert registry.problems(made) == []
    _, of_the_file = load(made.weights)
    assert of_the_file.digest == made.digest
    assert (made.folder / "report.html").read_text() == "<p>better</p>"
    manifest, digest = version_files.read(made.folder)
    assert digest == made.files_digest
    assert (manifest.version, manifest.parent, manifest.figures) == (made.version, made.parent, figures)
    assert registry.live().version.number == 0, "registering makes nothing live"


def test_registering_the_same_weights_again_changes_nothing(registry: Registry, trained: list[Path]) -> None:
    first = add(registry, trained[0], figures={"n": 1})
    assert add(registry, trained[0], figures={"n": 2}) == first
    assert registry.register(registry.base.weights, parent=None) == registry.base
    assert registry.all() == [registry.base, first]
    assert [p.name for p in first.folder.parent.iterdir()] == [first.version]


@pytest.mark.parametrize("figures", [{"x": float("nan")}, {"x": {1}}])
def test_what_cannot_be_kept_is_refused_and_leaves_nothing(
    registry: Registry, trained: list[Path], tmp_path: Path, figures: dict[str, Any]
) -> None:
    with pytest.raises(VersionError, match="plain JSON"):
        add(registry, trained[0], figures=figures)
    (tmp_path / "odd.safetensors").write_bytes(b"odd")
    with pytest.raises(CheckpointError):
        add(registry, tmp_path / "odd.safetensors")
    with pytest.raises(VersionError, match="another name"):
        add(registry, trained[0], attachments=[tmp_path / version_files.MANIFEST])
    assert registry.all() == [registry.base]
    assert not any((tmp_path / "versions").iterdir())


def _cut(folder: Path) -> None:
    (folder / version_files.WEIGHTS).chmod(0o644)
    with (folder / version_files.WEIGHTS).open("r+b") as file:
        file.truncate(1000)


def _flip(folder: Path) -> None:
    path = folder / version_files.WEIGHTS
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def _boast(folder: Path) -> None:
    path = folder / version_files.MANIFEST
    path.chmod(0o644)
    path.write_text(path.read_text().replace('"oracle": 1', '"oracle": 9'))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_cut, "altered"),
        (_flip, "altered"),
        (_boast, "sha256"),
        (lambda folder: (folder / version_files.WEIGHTS).unlink(), "is missing"),
        (lambda folder: folder.rename(folder.with_name("elsewhere")), "is missing"),
        (lambda folder: (folder / version_files.MANIFEST).write_text("{"), "cannot be read"),
    ],
)
def test_a_version_whose_files_are_not_what_was_registered_is_reported_and_not_activated(
    registry: Registry, trained: list[Path], damage: Any, says: str
) -> None:
    made = add(registry, trained[0], figures={"oracle": 1})
    (made.folder / version_files.MANIFEST).chmod(0o644)
    damage(made.folder)
    assert says in " ".join(registry.problems(made))
    with pytest.raises(VersionError, match=says):
        registry.activate(made.version)
    assert registry.live().version.number == 0
    healed = add(registry, trained[0], figures={"oracle": 1})
    assert (healed.number, registry.problems(healed)) == (made.number, [])


def test_activating_is_refused_when_something_else_became_live_meanwhile(
    registry: Registry, trained: list[Path]
) -> None:
    one, two = (add(registry, path) for path in trained[:2])
    registry.activate(one.version)
    with pytest.raises(VersionError, match=f"compared with {registry.base.version}"):
        registry.activate(two.version, if_live=registry.base.version)
    assert not registry.has_been_live(two)
    done = registry.activate(two.version, if_live=one.version)
    assert done.version == two
    assert registry.activate(two.version, if_live=one.version) == done, "asked again by who was cut off"
    assert registry.has_been_live(one) and registry.has_been_live(two)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.one_of(st.integers(0, 3), st.just("back")), max_size=12))
def test_rolling_back_undoes_activations_one_by_one(
    registry: Registry, store: Store, trained: list[Path], steps: list[int | str]
) -> None:
    with store.write() as connection:
        connection.execute(delete(activations))
    made = [registry.base, *(add(registry, path) for path in trained[:3])]
    expected = [registry.base]
    for step in steps:
        if step == "back":
            if len(expected) == 1:
                with pytest.raises(VersionError):
                    registry.rollback()
            else:
                expected.pop()
                registry.rollback()
        else:
            registry.activate(str(step), reason="test")
            if expected[-1] != made[int(step)]:
                expected.append(made[int(step)])
        assert [activation.version for activation in registry.stack()] == expected[::-1]
        assert registry.live() == registry.stack()[0]


def test_each_model_has_its_own_live_version(
    registry: Registry, store: Store, trained: list[Path], tmp_path: Path
) -> None:
    registry.activate(add(registry, trained[0]).version)
    other = open_registry(Settings(data_dir=tmp_path), store)
    assert other.live().version.model == "mobile"
    with pytest.raises(VersionError, match="SEMSAM_MODEL"):
        other.activate("1")


@on_both
def test_many_processes_that_register_and_activate_at_once_lose_nothing(
    registry: Registry, trained: list[Path], tmp_path: Path, weights: Path, database: str
) -> None:
    def act(path: Path) -> str:
        with contextlib.closing(Store.open(database)) as mine:
            own = opened(tmp_path, weights, mine)
            return own.activate(own.register(path, parent=None).version).version.version

    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(act, trained))
    assert sorted(v.number for v in registry.all()) == list(range(7))
    assert {a.version.version for a in registry.stack()} == {registry.base.version, *made}


@on_both
def test_pruning_keeps_what_is_live_pinned_recent_or_on_the_way_back(registry: Registry, trained: list[Path]) -> None:
    made = [add(registry, path) for path in trained]
    for which in (0, 1, 2):
        registry.activate(made[which].version)
    registry.pin(made[3].version)
    assert registry.prune().versions == [], "younger than an hour"
    would = registry.prune(steps=1, dry_run=True, at=LATER)
    assert [v.number for v in would.versions] == [1, 5, 6]
    assert would.size == sum(version_files.size(v.folder) for v in would.versions) > 0
    assert all(not registry.problems(v) for v in made), "a dry run removes nothing"
    assert registry.prune(steps=1, at=LATER).versions == would.versions
    assert [v.number for v in registry.all()] == [0, 2, 3, 4]
    gone = registry.find("1")
    assert not gone.folder.exists() and gone.pruned_at is not None
    assert "were removed" in registry.problems(gone)[0]
    with pytest.raises(VersionError, match="were removed"):
        registry.activate("1")
    assert [a.version.number for a in registry.stack()] == [3, 2, 0], "the way back leads past what was pruned"
    assert add(registry, trained[0]).number == 1, "and it may be registered again"
    assert registry.problems(registry.find("1")) == []


def test_pruning_clears_away_what_a_killed_process_left_after_an_hour(registry: Registry, trained: list[Path]) -> None:
    made = add(registry, trained[0])
    registry.pin(made.version)
    left = made.folder.parent / ".tmp-tiny-0123"
    left.mkdir()
    (left / version_files.WEIGHTS).write_bytes(b"half")
    assert registry.prune().strays == []
    assert registry.prune(at=LATER).strays == [left]
    assert [path.name for path in made.folder.parent.iterdir()] == [made.version]


def test_the_command_line_lists_activates_and_rolls_back(
    registry: Registry, store: Store, trained: list[Path], tmp_path: Path, weights: Path
) -> None:
    environment = {"SEMSAM_DATA_DIR": str(tmp_path), "SEMSAM_MODEL": "tiny", "SEMSAM_WEIGHTS": str(weights)}

    def semsam(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["versions", *arguments], env=environment)

    made = add(registry, trained[0], figures={"oracle": 0.7})
    done = semsam("activate", "1")
    assert done.exit_code == 0 and made.version in done.output
    listed = json.loads(semsam("list", "--json").stdout)
    assert [(v["number"], v["version"], v["live"], v["problems"]) for v in listed] == [
        (0, registry.base.version, False, []),
        (1, made.version, True, []),
    ]
    assert json.loads(semsam("show", "live", "--json").stdout) == listed[1]
    assert "0.7" in semsam("show", "1").stdout
    assert semsam("rollback").exit_code == 0
    assert registry.live().version == registry.base
    assert "nothing to remove" in semsam("prune", "--dry-run").stdout
    jobs.request(store, ProjectKey("http://ls:8080", 1), "button")
    job = jobs.claim(store, "w", RECENT)
    assert job is not None
    jobs.finish(store, job, "w", "failed", at=datetime.now(UTC) - 2 * RECENT)
    job_folder(tmp_path, job).mkdir(parents=True)
    (job_folder(tmp_path, job) / "finetune.pt").write_bytes(b"half")
    assert "would remove what job 1 has left" in semsam("prune", "--dry-run").stdout
    assert "removed what job 1 has left" in semsam("prune").stdout
    assert not job_folder(tmp_path, job).exists()
    _flip(made.folder)
    refused = semsam("activate", made.version)
    assert refused.exit_code == 1 and "altered" in str(refused.exception)
    table = semsam("list").stdout
    assert "damaged" in table and "cannot be served" in table


ENDLESS = """
import itertools, pathlib, random, sys
from datetime import UTC, datetime, timedelta
from backend.versions.registry import open_registry
from backend.settings import Settings
from backend.store.database import open_store

data, base, *weights = map(pathlib.Path, sys.argv[1:])
settings = Settings(model="tiny", weights=base, data_dir=data)
registry = open_registry(settings, open_store(settings))
print("go", flush=True)
while True:
    made = registry.register(random.choice(weights), parent=None)
    if random.random() < 0.5:
        registry.activate(made.version)
    if random.random() < 0.5:
        registry.prune(steps=1, at=datetime.now(UTC) + timedelta(hours=2))
"""


@pytest.mark.slow
def test_killed_at_any_point_every_version_that_is_there_is_whole_and_the_way_back_is_open(
    registry: Registry, store: Store, trained: list[Path], tmp_path: Path, weights: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-c", ENDLESS, *map(str, [tmp_path, weights, *trained])]
    for seconds in (0.3, 0.11, 0.53):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None and running.stdout.readline() == "go\n"
            time.sleep(seconds)
            assert running.poll() is None
            running.kill()
        assert [problem for version in registry.all() for problem in registry.problems(version)] == []
        assert all(not registry.problems(activation.version) for activation in registry.stack()[1:])
    assert registry.live().number > 0, "it got somewhere"
    registry.prune(at=LATER)
    for path in trained:
        assert registry.problems(registry.register(path, parent=None)) == []
