"""Stored verdicts are laid out whatever they hold: known rows first, unknown ones under their own names."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from semsam_model.gate.verdict_table import page_environment, read_verdict

plain = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
names = st.sampled_from(["reasons", "gain", "guard_gain", "held_out", "guard", "by_level", "by_label", "pictures"])


def drawn(verdict: dict[str, Any]) -> str:
    template = page_environment().from_string(
        '{% from "verdict.html" import summary, table %}{{ summary(verdict) }}{{ table(verdict) }}'
    )
    return template.render(verdict=read_verdict(verdict))


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(names | st.text(max_size=5), plain, max_size=6))
def test_any_json_is_laid_out_and_drawn(verdict: dict[str, Any]) -> None:
    assert "percent, before" in drawn(verdict)


def test_sets_come_in_order_and_parts_follow_the_first_set() -> None:
    row = {"masks": 9, "oracle": [30, 40], "first": [20, 40.0]}
    table = read_verdict({"guard": row, "held_out": row, "by_label": {"cup": row}, "by_level": {"2": row}, "gain": 3})
    assert [(row.group, row.name) for row in table.rows] == [
        (None, "held-out corrections"),
        ("level", "2"),
        ("label", "cup"),
        (None, "guard set"),
    ]
    value = table.rows[0].get("value")
    assert value is not None and (value.before, value.after, value.direction) == (25, 40, "up")
    assert table.rows[0].get("max") is None
    assert table.gain.mean is None


def test_how_masks_agree_with_their_photos_is_shown_with_its_interval_when_there_was_enough() -> None:
    gain = {"mean": 40.5, "low": 30.0, "high": 50.0}
    pictures = {"iou": [20.5, 61.0], "gain": gain, "asked": True}
    enough, too_little = (drawn({"pictures": pictures | {"asked": asked}}) for asked in (True, False))
    assert "61.0 % on their own photos, by 20.5 % on others: +40.5 points (+30.0 to +50.0)" in enough
    assert "61.0 % on their own photos" in too_little and "+40.5" not in too_little


def test_text_of_a_verdict_stays_text() -> None:
    row = {"oracle": [1, 2], "first": [1, 2], "<b>m</b>": [1, 2]}
    html = drawn({"reasons": ["<script>1</script>"], "held_out": row, "<i>": row, "by_label": {"<u>": row}})
    assert not any(tag in html for tag in ("<script", "<b>m", "<i>", "<u>"))
