"""Groups of sources as files: every source in one of them, and in no more."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semsam_model.config import config_root
from semsam_model.errors import ConfigError
from semsam_model.evaluation.groups import means_of_groups, read_groups

names = st.sampled_from("abcdefgh")


@given(st.lists(names, unique=True), st.lists(names, unique=True), st.integers(0, 8))
def test_seen_and_unseen_halves_of_all_groups_hold_every_source_once(
    sources: list[str], seen: list[str], cut: int
) -> None:
    groups = {"one": sources[:cut], "two": sources[cut:]}
    means = means_of_groups(groups, seen)
    halves = [s for name, listed in means.items() if name.endswith("seen") for s in listed]
    assert sorted(halves) == sorted(sources)
    assert all(set(listed) <= set(seen) for name, listed in means.items() if name.endswith("_seen"))
    assert means_of_groups(groups, None) == {"mean_over_one": groups["one"], "mean_over_two": groups["two"]}


def test_the_groups_of_the_validation_sources_can_be_read() -> None:
    groups = read_groups(config_root() / "groups" / "val.yaml").groups
    assert set(groups) == {"core", "wide"} and len(groups["core"]) == 14


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("groups: {core: [a, b], wide: [b]}", "source b is listed twice"),
        ("groups: {core: a}", "core"),
        ("core: [a]", "core"),
    ],
)
def test_a_file_of_groups_that_is_wrong_is_named(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "groups.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_groups(path)
