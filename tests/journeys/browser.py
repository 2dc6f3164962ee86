"""An annotator at Label Studio's image editor: real mouse and keyboard in Chromium, the page's own store to look at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, Response, TimeoutError

from tests.journeys.data_manager import DataManager

# Only looking: what the page's MobX store holds, as plain JSON.
_SUGGESTIONS = """() => [...Htx.annotationStore.selected.suggestions.values()].map(s => s.cleanId)"""
_REGIONS = """() => [...Htx.annotationStore.selected.areas.values()].map(r => ({id: r.cleanId, type: r.type}))"""
_SELECTED = """() => Htx.annotationStore.selected.highlightedNode"""
_SMART_TOOL = """() => {
  const image = [...Htx.annotationStore.selected.names.values()].find(tag => tag.type === 'image');
  const tool = image.getToolsManager().findSelectedTool();
  return tool?.dynamic ? tool.control.name.split('@')[0] : null;
}"""
_IMAGE_READY = """() => {
  const names = window.Htx?.annotationStore?.selected?.names;
  const image = names && [...names.values()].find(tag => tag.type === 'image');
  return Boolean(image?.imageIsLoaded && image.stageRef && document.querySelector('.konvajs-content canvas'));
}"""
# The two discs lie ten canvas pixels under the suggestion's bounding box: 64 x 32, reject left, accept right. `hit`:
# whether the canvas really draws such a control under the point; it may lie outside.
_ACCEPT_DISC = """id => {
  const s = [...Htx.annotationStore.selected.suggestions.values()].find(s => s.cleanId === id);
  const box = s.bboxCoordsCanvas, zoom = 1 / (s.parent.zoomScale || 1), stage = s.parent.stageRef;
  const centre = {x: (box.left + box.right) / 2 + 16 * zoom, y: box.bottom + 10 + 16 * zoom};
  const point = stage.getAbsoluteTransform().point(centre), screen = stage.container().getBoundingClientRect();
  const isControl = node => node.getClassName() === 'Group' && node.width() === 64 && node.height() === 32;
  let node = stage.getIntersection(point);
  while (node && !isControl(node)) node = node.getParent();
  return {x: screen.x + point.x, y: screen.y + point.y, hit: Boolean(node)};
}"""


@dataclass(frozen=True)
class Answer:
    """One exchange of a smart tool: `prompts` are the rows that the editor sent, `rows` those that it got back."""

    prompts: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    model_version: str

    @property
    def regions(self) -> list[dict[str, Any]]:
        """Rows that carry the mask itself, in the order of the answer."""
        shapes = ("brushlabels", "polygonlabels", "bitmasklabels", "polygon")
        return [row for row in self.rows if row["type"] in shapes]

    @property
    def labels(self) -> list[str]:
        """Of the regions, in the order of the answer."""
        return [row["value"][row["type"]][0] for row in self.regions]


class Editor:
    """The labeling page of one task. Places on the photo are fractions (x, y) of its width and height."""

    def __init__(self, page: Page, url: str, screenshots: Path) -> None:
        self._page = page
        self._url = url
        self._screenshots = screenshots

    @property
    def page(self) -> Page:
        return self._page

    def data_manager(self) -> DataManager:
        """The project's table of tasks in the same page."""
        return DataManager(self._page, self._url)

    def open(self, project: int, task: int) -> None:
        self._page.goto(f"{self._url}/projects/{project}/data?task={task}")
        self._page.wait_for_function(_IMAGE_READY)

    def open_annotation(self, project: int, task: int, regions: int) -> None:
        """A task whose annotation has so many regions. Label Studio's page now and then begins a new annotation in
        place of the one that is there, depending on which of its requests is answered first: it is opened again then.
        """
        for last in (False, False, False, True):
            self.open(project, task)
            try:
                self._page.wait_for_function(f"() => ({_REGIONS})().length === {regions}", timeout=5_000)
                return
            except TimeoutError:
                if last:
                    raise
                self._page.goto("about:blank")

    def switch_on_auto_annotation(self) -> None:
        toggle = self._page.get_by_test_id("bottombar-auto-annotation-toggle")
        toggle.wait_for(state="attached")
        if not toggle.is_checked():
            toggle.evaluate("toggle => toggle.click()")  # the box itself is hidden behind a drawn switch
        self._page.wait_for_function("() => Htx.autoAnnotation")

    def turn_to_page(self, number: int) -> None:
        """Of a task with several, from 0."""
        self._page.evaluate(
            "number => [...Htx.annotationStore.selected.names.values()].find(tag => tag.type === 'image')"
            ".setCurrentImage(number)",
            number,
        )
        self._page.wait_for_function(_IMAGE_READY)

    def press(self, key: str) -> None:
        """A key that the editor listens to."""
        self._page.keyboard.press(key)
        self._page.wait_for_timeout(100)

    def smart_tool(self) -> str | None:
        """Name of the control whose smart tool is active."""
        return self._page.evaluate(_SMART_TOOL)

    def show_region_labels(self) -> None:
        self._page.evaluate("() => Htx.settings.showLabels || Htx.settings.toggleShowLabels()")

    def choose(self, control: str) -> None:
        """Clicks Auto-Detect until the smart tool of the labeling config's `control` is active."""
        for _ in range(8):
            if self._page.evaluate(_SMART_TOOL) == control:
                return
            self._page.locator(".lsf-tool_smart").first.click()
            self._page.wait_for_timeout(100)
        raise AssertionError(f"Auto-Detect does not offer {control}")

    def point(self, at: tuple[float, float]) -> None:
        """Moves the mouse there."""
        self._page.mouse.move(*self._on_screen(at))

    def point_at_accept(self) -> None:
        """Moves the mouse to the check mark in the bottom bar."""
        self._page.get_by_test_id("bottombar-accept-suggestions-button").hover()

    def click(self, at: tuple[float, float], *keys: str) -> Answer:
        """Clicks the photo, holding `keys` ("Alt": not this), and waits for the suggestions."""
        with self._answer() as answers, self._holding(keys):
            self._page.mouse.move(*self._on_screen(at))
            self._page.mouse.down()
            self._page.mouse.up()
        return answers[0]

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> Answer:
        """Draws a box; waits for the suggestions."""
        with self._answer() as answers:
            self._page.mouse.move(*self._on_screen(start))
            self._page.mouse.down()
            self._page.mouse.move(*self._on_screen(end), steps=8)
            self._page.mouse.up()
        return answers[0]

    def write(self, control: str, text: str) -> Answer:
        """Writes into the text field of `control` and presses Enter; waits for the suggestions."""
        with self._answer() as answers:
            field = self._page.locator(f"[name='{control}']").last
            field.fill(text)
            field.press("Enter")
        return answers[0]

    def suggestions(self) -> list[str]:
        """Ids of the suggestions on the photo, in drawing order."""
        return self._page.evaluate(_SUGGESTIONS)

    def regions(self) -> list[dict[str, Any]]:
        """Id and type of everything that Submit would send."""
        return self._page.evaluate(_REGIONS)

    def panel(self) -> list[tuple[str, str, int]]:
        """Name and score of each region as the panel writes them, and how deep it is folded under others."""
        rows = self._page.locator(".lsf-tree__node")
        rows.first.wait_for()
        texts = [(row.inner_text().split("\n"), row.locator(".lsf-tree-indent-unit").count()) for row in rows.all()]
        return [(text[1], text[2], depth) for text, depth in texts]

    def select(self, name: str, score: str = "") -> None:
        """Clicks the first region of this name, and with this score, in the panel."""
        row = self._page.locator(".lsf-tree__node", has_text=name).filter(has_text=score).first
        row.locator(".lsf-outliner-item__title").click()
        self._page.wait_for_function("() => Htx.annotationStore.selected.highlightedNode")

    def select_last(self) -> None:
        """Clicks the last region in the panel, a dot too."""
        self._page.locator(".lsf-tree__node .lsf-outliner-item__title").last.click()
        self._page.wait_for_function("() => Htx.annotationStore.selected.highlightedNode")

    def select_at(self, place: tuple[float, float], region: str) -> None:
        """Clicks the photo where the accepted `region` is."""
        self._page.mouse.click(*self._on_screen(place))
        self._page.wait_for_function(f"id => ({_SELECTED})()?.cleanId === id", arg=region)

    def erase(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Draws one stroke of the eraser over the selected brush region."""
        self._page.get_by_label("eraser").first.click()
        strokes = self._page.evaluate(f"() => ({_SELECTED})().touches.length")
        self._page.mouse.move(*self._on_screen(start))
        self._page.mouse.down()
        self._page.mouse.move(*self._on_screen(end), steps=8)
        self._page.mouse.up()
        self._page.wait_for_function(f"n => ({_SELECTED})().touches.length > n", arg=strokes)

    def accept_with_the_mouse(self, suggestion: str) -> None:
        """Clicks the right disc under the suggestion; AssertionError when no disc, or another's, is under the mouse."""
        before = len(self.suggestions())
        disc = self._page.evaluate(_ACCEPT_DISC, suggestion)
        self._page.mouse.move(disc["x"], disc["y"])
        assert disc["hit"], f"the accept disc of {suggestion} cannot be reached at {disc['x']:.0f}, {disc['y']:.0f}"
        self._page.mouse.down()
        self._page.mouse.up()
        self._page.wait_for_function("n => Htx.annotationStore.selected.suggestions.size < n", arg=before)
        assert suggestion in [region["id"] for region in self.regions()], "another suggestion was accepted"

    def can_accept_with_the_mouse(self, suggestion: str) -> bool:
        return bool(self._page.evaluate(_ACCEPT_DISC, suggestion)["hit"])

    def reject_all(self) -> None:
        self._decide_all("reject")

    def accept_all(self) -> None:
        self._decide_all("accept")

    def start_training(self, project: int) -> None:
        """Settings > Model > the connection's menu > Start Training > the button that asks once more."""
        self._page.goto(f"{self._url}/projects/{project}/settings/ml")
        self._page.get_by_role("button", name="Machine learning model options").click()
        self._page.get_by_text("Start Training", exact=True).click()
        with self._page.expect_response(lambda r: r.url.endswith("/train") and r.request.method == "POST") as caught:
            self._page.get_by_role("button", name="Start Training").click()
        assert caught.value.ok, caught.value.text()
        self._page.get_by_text("Request Sent!").wait_for()

    def submit(self) -> dict[str, Any]:
        """Submits, and returns Label Studio's answer: the annotation as stored."""
        with self._page.expect_response(lambda r: "/annotations" in r.url and r.request.method == "POST") as caught:
            self._page.get_by_test_id("bottombar-submit-button").click()
        assert caught.value.ok, caught.value.text()
        return caught.value.json()

    def screenshot(self, name: str) -> None:
        self._page.screenshot(path=self._screenshots / f"{name}.png")

    def _decide_all(self, verb: str) -> None:
        self._page.get_by_test_id(f"bottombar-{verb}-suggestions-button").click()
        self._page.wait_for_function("() => Htx.annotationStore.selected.suggestions.size === 0")

    def _on_screen(self, at: tuple[float, float]) -> tuple[float, float]:
        box = self._page.locator(".konvajs-content").first.bounding_box()
        assert box is not None
        return box["x"] + at[0] * box["width"], box["y"] + at[1] * box["height"]

    @contextmanager
    def _holding(self, keys: tuple[str, ...]) -> Iterator[None]:
        for key in keys:
            self._page.keyboard.down(key)
        yield
        for key in reversed(keys):
            self._page.keyboard.up(key)

    @contextmanager
    def _answer(self) -> Iterator[list[Answer]]:
        """The exchange with the backend that the body sets off; afterwards its suggestions are drawn."""
        answers: list[Answer] = []
        with self._page.expect_response(lambda r: "/interactive-annotating" in r.url) as caught:
            yield answers
        response: Response = caught.value
        body, sent = response.json(), response.request.post_data_json
        assert not body.get("errors"), body["errors"]
        assert sent is not None
        answers.append(Answer(sent["context"]["result"], body["data"]["result"], body["data"]["model_version"]))
        self._page.wait_for_function("() => !Htx.awaitingSuggestions")
        expected = sorted({row["id"] for row in answers[0].regions})
        self._page.wait_for_function(
            "ids => JSON.stringify([...Htx.annotationStore.selected.suggestions.values()]"
            ".map(s => s.cleanId).sort()) === JSON.stringify(ids)",
            arg=expected,
        )
        self._page.wait_for_timeout(300)  # the canvas draws the masks after the store holds them
