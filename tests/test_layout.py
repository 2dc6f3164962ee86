"""docs/develop/architecture.md, section "who may know whom", as a test: the arrows point down."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

#: module -> what it may not import, directly
FORBIDDEN = {
    "semsam_model": {"backend", "flask", "sqlalchemy", "label_studio_sdk"},
    "semsam_model.config": {"torch"},
    "semsam_model.types": {"torch"},
    "semsam_model.checkpoints.header": {"torch"},
    "semsam_model.masks.codecs": {"torch"},
    "semsam_model.masks.label_studio": {"torch"},
    "semsam_model.data.samples": {"torch"},
    "semsam_model.data.readers.coco": {"torch"},
    "semsam_model.data.readers.sa1b": {"torch"},
    "semsam_model.data.readers.label_studio": {"torch"},
    "semsam_model.data.folder": {"torch"},
    "semsam_model.data.synthetic": {"torch"},
    "semsam_model.data.mixture": {"torch"},
    "semsam_model.data.check": {"torch"},
    "semsam_model.data.shards": {"torch"},
    "semsam_model.inference.candidates": {"torch", "semsam_model.network.model"},
    "semsam_model.inference.naming": {"torch", "semsam_model.network.model"},
    "semsam_model.adaptation.kernel_ridge": {"torch", "semsam_model.network.model"},
    "semsam_model.inference.postprocess": {"torch", "semsam_model.network.model"},
    "backend.label_studio.predictions": {"torch", "flask", "requests", "semsam_model.network.model"},
    "backend.label_studio.label_config": {"torch", "flask", "requests"},
    "backend.images": {"torch", "flask", "requests"},
    "backend.label_studio.client": {"torch", "flask", "semsam_model.network.model", "backend.inference.predictor"},
    "backend.label_studio.connection": {"torch", "flask", "semsam_model.network.model", "backend.inference.predictor"},
    "backend.versions.files": {"torch", "flask", "requests", "sqlalchemy", "backend.store.database"},
    "backend.versions.registry": {
        "torch",
        "flask",
        "requests",
        "semsam_model.network.model",
        "backend.inference.predictor",
    },
    "backend.inference.follow_version": {"torch", "flask", "requests"},
    "backend.inference.predictor": {
        "flask",
        "sqlalchemy",
        "requests",
        "backend.label_studio.client",
        "backend.label_studio.predictions",
    },
    "backend.service.status": {"torch", "flask", "requests", "numpy"},
    "backend.web.pages": {"torch", "flask", "requests", "numpy", "sqlalchemy", "backend.store.database"},
    "backend.web.gate_page": {"torch", "flask", "requests", "numpy", "sqlalchemy", "backend.store.database"},
    "backend.corrections.split": {"torch", "flask", "requests", "sqlalchemy", "numpy"},
    "backend.export.run": {"torch", "flask", "requests", "sqlalchemy", "backend.store.database"},
    "backend.export.writers": {"torch", "flask", "requests", "sqlalchemy", "backend.store.database"},
    "backend.export.formats": {"torch", "flask", "requests", "sqlalchemy", "backend.store.database"},
    "backend.export.staging": {"torch", "flask", "requests", "sqlalchemy", "numpy", "backend.records"},
    "backend.inference.label_embeddings": {"flask", "torch", "requests", "backend.inference.predictor"},
    "backend.inference.preannotation": {"flask", "torch", "requests", "backend.inference.predictor"},
    "backend.inference.click_priority": {"torch", "flask", "requests", "numpy", "backend.inference.predictor"},
    "backend.batch.annotator": {
        "torch",
        "flask",
        "requests",
        "sqlalchemy",
        "backend.label_studio.client",
        "backend.batch.run",
    },
    "backend.batch.local": {"torch", "flask", "requests", "sqlalchemy", "backend.label_studio.client"},
    "backend.batch.ray_cluster": {"torch", "flask", "requests", "sqlalchemy", "backend.label_studio.client"},
    "backend.batch.sources": {"torch", "flask", "requests", "sqlalchemy", "backend.batch.run"},
    "backend.batch.task_lines": {"torch", "flask", "requests", "backend.batch.run", "backend.batch.sources"},
    "backend.batch.object_store": {"torch", "flask", "requests", "sqlalchemy", "backend.label_studio.client"},
    "backend.inference.text_prompt": {"flask", "torch", "requests", "backend.inference.predictor"},
    "backend.service.service": {"flask", "torch", "requests"},
    "backend.web.app": {"torch", "numpy", "cv2", "PIL"},
    "backend.records": {"torch", "flask", "requests", "sqlalchemy"},
    "backend.store.tables": {"torch", "flask", "requests"},
    "backend.store.database": {"torch", "flask", "requests"},
    "backend.corrections.queries": {"torch", "flask", "requests"},
    "backend.label_studio.events": {"torch", "flask", "requests", "sqlalchemy"},
    "backend.label_studio.annotations": {"torch", "flask", "requests", "sqlalchemy"},
    "backend.corrections.outcomes": {"torch", "flask", "requests", "sqlalchemy"},
    "backend.corrections.ingest": {
        "torch",
        "flask",
        "requests",
        "backend.label_studio.client",
        "backend.service.service",
    },
    "backend.corrections.suggestions": {"torch", "flask", "requests", "backend.service.service"},
    "backend.corrections.writer": {
        "torch",
        "flask",
        "requests",
        "backend.label_studio.client",
        "backend.service.service",
    },
    "backend.corrections.sync": {"torch", "flask", "requests", "backend.service.service"},
    "backend.corrections.prediction_outcomes": {"torch", "flask", "requests", "backend.service.service"},
    "backend.corrections.fetch_photos": {"torch", "flask", "requests", "backend.service.service"},
    "backend.corrections.sync_thread": {"torch", "flask", "requests", "backend.service.service"},
    "backend.service.intake": {"torch", "flask", "requests", "backend.service.service"},
    "backend.corrections.photo_archive": {"torch", "flask", "requests", "sqlalchemy"},
    "backend.adaptation.lessons": {"torch", "flask", "requests", "backend.inference.predictor"},
    "backend.adaptation.learner": {
        "torch",
        "flask",
        "requests",
        "sqlalchemy",
        "backend.label_studio.client",
        "backend.service.service",
    },
    "backend.finetuning.jobs": {"torch", "flask", "requests"},
    "backend.finetuning.snapshot": {"torch", "flask", "requests", "sqlalchemy"},
    "backend.finetuning.worker": {
        "flask",
        "requests",
        "sqlalchemy",
        "backend.inference.predictor",
        "backend.service.service",
    },
    "backend.settings": {"torch", "flask", "requests"},
}


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in ("semsam_model", "backend")
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def imported(path: Path) -> set[str]:
    """Every module name that a file imports, with its parents."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {".".join(name.split(".")[: i + 1]) for name in names for i in range(name.count(".") + 1)}


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_nothing_it_may_not_know(module: str) -> None:
    package = module.split(".")[0]
    forbidden = FORBIDDEN.get(module, set()) | FORBIDDEN.get(package, set())
    assert not imported(modules()[module]) & forbidden


def test_the_table_names_only_modules_that_exist() -> None:
    assert set(FORBIDDEN) <= set(modules())


@pytest.mark.parametrize(
    "module",
    [
        "semsam_model",
        "semsam_model.config",
        "semsam_model.types",
        "backend.cli.main",
        "backend.service.service",
        "backend.web.app",
    ],
)
def test_light_modules_load_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
