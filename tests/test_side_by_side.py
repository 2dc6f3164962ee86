"""The page of random clicks: the same clicks for the same seed, and two answers to each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.side_by_side import GROUPS, MOST_BYTES, Answer, draw_clicks, sheet, table, write_png
from semsam_model.config import config_root
from semsam_model.data.folder import read_samples
from semsam_model.evaluation.groups import read_groups
from tests.semsam_model.houses import write_source


def test_clicks_are_drawn_by_the_seed_and_every_source_has_its_turn(tmp_path: Path) -> None:
    for source in ("barns", "houses", "sheds"):
        write_source(tmp_path, source, 3)
    samples = read_samples(tmp_path).samples

    def drawn(count: int, seed: int) -> list[tuple[str, int]]:
        return [(click.sample.name, click.region) for click in draw_clicks(samples, count, seed)]

    assert drawn(7, 0) == drawn(7, 0) != drawn(7, 1)
    for turn in (drawn(6, 0)[:3], drawn(6, 0)[3:]):
        assert sorted(name.split("/")[0] for name, _ in turn) == ["barns", "houses", "sheds"]


def test_the_page_holds_a_pair_for_each_click_and_stays_small(tmp_path: Path) -> None:
    write_source(tmp_path, "houses", 3)
    clicks = draw_clicks(read_samples(tmp_path).samples, 6, 0)
    noise = np.random.default_rng(0).integers(0, 255, (200, 220, 3), dtype=np.uint8)
    answers = [(Answer(50.0, 80.0, noise), Answer(75.0, 75.0, noise))] * 6
    write_png(sheet(clicks, answers), tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size <= MOST_BYTES
    with Image.open(tmp_path / "page.png") as page:
        assert page.width > 8 * 220 and page.height > 2 * 220
    rows = table("shown", clicks, answers).splitlines()
    assert rows[-2] == "| | mean | 50.0 | 80.0 | 75.0 | 75.0 |"
    assert rows[-1].endswith("| 0 | 6 | 6 | 6 |")


def test_both_groups_lie_in_wide_and_share_no_source() -> None:
    groups = read_groups(GROUPS).groups
    wide = read_groups(config_root() / "groups" / "val.yaml").sources("wide")
    assert set(groups["shown"]) | set(groups["unseen"]) <= set(wide)
    assert set(groups) == {"shown", "unseen"}
