"""The documents lead somewhere, and the embedded weights say what they are."""

import re
from pathlib import Path

import pytest

from semsam_model.checkpoints.header import read_header
from tests.paths import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"!?\[[^]]*\]\(([^)\s]+)\)")


def relative_links(document: Path) -> list[str]:
    """Targets of links and images within the repository, without code and without the part after #."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", document.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = [target.split("#")[0] for target in LINK.findall(text) if not re.match(r"[a-z]+:", target)]
    return [target for target in targets if target]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_and_image_of_a_document_is_there(document: Path) -> None:
    missing = [target for target in relative_links(document) if not (document.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_line_of_a_document_is_longer_than_120_characters(document: Path) -> None:
    """Lines of an image alone may be: they cannot be broken."""
    lines = document.read_text("utf-8").splitlines()
    assert not [line for line in lines if len(line) > 120 and not line.startswith("![")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_is_there(document: Path) -> None:
    named = re.findall(
        r"`((?:backend|semsam_model|tests|configs|benchmarks)/[\w./]+\.\w+)`", document.read_text("utf-8")
    )
    assert not [name for name in named if not (ROOT / name).exists()]


def test_every_document_is_in_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / target).resolve() for target in relative_links(index)}
    assert set((ROOT / "docs").rglob("*.md")) - {index} <= linked


def test_the_links_of_the_read_me_are_found_pictures_too() -> None:
    found = relative_links(ROOT / "README.md")
    assert any(target.endswith(".png") for target in found)
    assert any(target.endswith(".md") for target in found)


def test_the_embedded_weights_carry_a_card() -> None:
    assert read_header(ROOT / "semsam_model" / "weights" / "mobile.safetensors").card
