"""A project owner in Label Studio's Data Manager: tasks ticked and an action chosen with the mouse."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import Locator, Page


class DataManager:
    """The table of a project's tasks."""

    def __init__(self, page: Page, url: str) -> None:
        self._page = page
        self._url = url

    def open(self, project: int) -> None:
        self._page.goto(f"{self._url}/projects/{project}/data")
        self._page.get_by_label("Select all rows").wait_for(state="attached")

    def select_all(self, tasks: int) -> None:
        """Ticks every task; the button of actions then counts them."""
        self._page.get_by_label("Select all rows").locator("xpath=..").click()
        self._actions(tasks).wait_for()

    def retrieve_predictions(self, tasks: int) -> Any:
        """Actions > Retrieve Predictions > OK for the ticked tasks: what Label Studio answers when all are done."""
        self._actions(tasks).click()
        self._page.get_by_text("Retrieve Predictions").first.click()
        with self._page.expect_response(
            lambda r: "retrieve_tasks_predictions" in r.url and r.request.method == "POST", timeout=100_000
        ) as caught:
            self._page.get_by_test_id("dialog-ok-button").click()
        assert caught.value.ok, caught.value.text()
        return caught.value.json()

    def _actions(self, tasks: int) -> Locator:
        return self._page.locator("button", has_text=re.compile(f"^{tasks} Tasks$"))
