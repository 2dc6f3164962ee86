"""Background work waits for clicks, but not for ever."""

import time

from backend.inference.click_priority import ClickPriority


def test_without_a_click_nothing_is_waited_for() -> None:
    priority = ClickPriority(longest_wait_s=60)
    with priority.click():
        pass
    began = time.monotonic()
    priority.wait_for_clicks()
    assert time.monotonic() - began < 30


def test_clicks_without_end_hold_background_work_up_for_a_while_only() -> None:
    priority = ClickPriority(longest_wait_s=0.05)
    began = time.monotonic()
    with priority.click():
        priority.wait_for_clicks()
    assert 0.05 <= time.monotonic() - began < 30
