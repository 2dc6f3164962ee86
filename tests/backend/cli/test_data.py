"""`semsam data`: scenes are made, and a mixture is checked."""

import json
from pathlib import Path

from tests.backend.cli.semsam import semsam


def test_made_data_is_written_and_checked(tmp_path: Path) -> None:
    made = semsam("data", "make", "--out", tmp_path, "--count", 2, "--size", 64)
    assert made.code == 0, made.stderr
    config = tmp_path / "mixture.yaml"
    config.write_text("sources: [{name: made, kind: coco, path: synthetic.json, feeds: [masks, object_names]}]")
    checked = semsam("data", "check", config, "--root", tmp_path, "--out", tmp_path / "out")
    assert checked.code == 0, checked.stderr
    assert json.loads((tmp_path / "out" / "report.json").read_text())["by_source"]["made"]["photos"] == 2
    assert (tmp_path / "out" / "contact_sheet.png").stat().st_size > 0
    lost = semsam("data", "check", config, "--root", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert lost.code == 1 and "synthetic.json" in lost.stderr and "Traceback" not in lost.stderr
