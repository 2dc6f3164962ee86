from __future__ import annotations

import logging

import pytest

from backend.outages import Outages


def test_an_outage_is_one_line_when_it_begins_one_when_it_changes_and_one_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outages = Outages(logging.getLogger("tests"))
    with caplog.at_level(logging.INFO):
        outages.works("a", "a is back")
        for line in ("down", "down", "down", "refused", "refused"):
            outages.failed("a", line)
        outages.failed("b", "down")
        for _ in range(2):
            outages.works("a", "a is back")
        outages.failed("a", "down")
    assert caplog.messages == ["down", "refused", "down", "a is back", "down"]
