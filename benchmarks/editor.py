"""A click in Label Studio's own editor, with 0 to 60 masks accepted before: seconds until its suggestion is drawn.

    python -m benchmarks.editor [--sizes 640 2 12] [--controls PolygonLabels ...] [--accepted 0 10 30 60] [--clicks 5]

The demo as `make run` starts it, and Chromium without a window. Each row of the table: median seconds from the mouse
until the request leaves the page, and until the suggestion is drawn, for each number of accepted masks; in brackets
the processor time of a click in milliseconds, which a busy machine changes less: of the page's main thread, of Label
Studio's server and of the backend. The photo is warm: one click before the first that counts; and the backend has
learned what was accepted.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, TimeoutError, sync_playwright

from backend.label_studio.label_config import LabelConfig
from backend.label_studio.predictions import build_prediction
from benchmarks.machine import LABELING, SAMPLES, children, cpu_seconds, described
from semsam_model.masks.geometry import Size, crop_mask
from semsam_model.types import Candidate
from tests.journeys.browser import Editor
from tests.journeys.demo_process import DemoProcess

#: Name -> (W, H). 640 pixels, 2 and 12 megapixels.
SIZES = {"640": (640, 480), "2": (1632, 1224), "12": (4000, 3000)}
CONTROLS = ("PolygonLabels", "BitmaskLabels", "BrushLabels", "BrushLabels, 3 rows", "RectangleLabels")
ROWS = (
    '<Choices name="level" toName="image" perRegion="true"><Choice value="level 1"/></Choices>'
    '<TextArea name="note" toName="image" perRegion="true" smart="false"/>'
)
ACROSS, DOWN = 12, 5  #: accepted masks, in the upper 70 % of the photo; the clicks are below
SETTLED_MS = 1000  #: between two clicks, for what follows a click in the background
# Times of the page's own clock: of the last mouse button, and of the last request for suggestions.
_CLOCK = """
addEventListener('mousedown', () => { window.pressed = performance.now(); window.left = null; }, true);
const fetched = window.fetch;
window.fetch = (what, ...rest) => {
  if (String(what?.url ?? what).includes('/interactive-annotating')) window.left = performance.now();
  return fetched(what, ...rest);
};
"""
DRAWN = """() => {
  if (!window.left || Htx.awaitingSuggestions || !Htx.annotationStore.selected.suggestions.size) return false;
  return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() =>
    done([window.left - window.pressed, performance.now() - window.pressed]))));
}"""


@dataclass(frozen=True)
class Click:
    """Seconds from the mouse button until the request left, until the suggestion was drawn; of processors, until then:
    of the page's main thread, of Label Studio's server, of the backend.
    """

    left: float
    drawn: float
    page: float
    studio: float
    backend: float


class Processors:
    """Processor seconds so far of the page's main thread, of Label Studio's server and of the backend."""

    def __init__(self, page: Page, demo: DemoProcess) -> None:
        self._devtools = page.context.new_cdp_session(page)
        self._devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(demo.pid)}
        self._studio = [pid for pid, command in commands.items() if b"label-studio" in command]
        self._backend = [pid for pid, command in commands.items() if b"\0serve\0" in command]

    def wait_until_learned(self) -> None:
        """Wait until the backend has done nothing for three seconds."""
        idle = 0
        while idle < 3:
            before = sum(map(cpu_seconds, self._backend))
            time.sleep(1)
            idle = idle + 1 if sum(map(cpu_seconds, self._backend)) - before < 0.05 else 0

    def used(self) -> tuple[float, float, float]:
        metrics = {each["name"]: each["value"] for each in self._devtools.send("Performance.getMetrics")["metrics"]}
        return metrics["TaskDuration"], sum(map(cpu_seconds, self._studio)), sum(map(cpu_seconds, self._backend))


def labeling(control: str) -> str:
    """The default labeling config with another answer."""
    tag, _, rows = control.partition(",")
    xml = re.sub("PolygonLabels", tag, LABELING.read_text())
    return xml.replace("</View>", f"{ROWS}</View>") if rows else xml


def accepted_masks(count: int, size: Size) -> Iterator[Candidate]:
    """Star-shaped masks side by side, each with an uneven outline."""
    height, width = size
    rng = np.random.default_rng(0)
    step_x, step_y = width / ACROSS, 0.7 * height / DOWN
    for number in range(count):
        y, x = np.mgrid[: int(step_y), : int(step_x)].astype(np.float32)
        y, x = y - step_y / 2, x - step_x / 2
        radius = min(step_x, step_y) * 0.36 * (1 + 0.25 * np.sin(rng.integers(4, 9) * np.arctan2(y, x) + number))
        crop, (x0, y0, x1, y1) = crop_mask(np.hypot(x, y) < radius)
        left, top = int(number % ACROSS * step_x), int(number // ACROSS * step_y)
        bbox = (left + x0, top + y0, left + x1, top + y1)
        yield Candidate(number + 1, 0, 3, 0.9, 0.9, 0.9, size, bbox, crop)


def accepted_rows(control: str, count: int, size: Size) -> list[dict[str, object]]:
    """What an annotation with so many accepted masks holds. The editor writes the mask into each of its rows."""
    config = LabelConfig.parse(labeling(control))
    rows = build_prediction(list(accepted_masks(count, size)), config=config, prompt_id="p", model_version="v")[
        "result"
    ]
    geometry = {row["id"]: row["value"] for row in rows if row["type"] == control.partition(",")[0].lower()}
    return [row | {"value": geometry[row["id"]] | row["value"]} for row in rows]


@contextmanager
def browsing(demo: DemoProcess) -> Iterator[Page]:
    """A page of Chromium that is logged in."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(viewport={"width": 1440, "height": 1000})
        context.route(lambda address: not address.startswith((demo.url, "data:", "blob:")), lambda route: route.abort())
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.add_init_script(_CLOCK)
        page.goto(f"{demo.url}/user/login/")
        page.fill("input[name=email]", demo.credentials.email)
        page.fill("input[name=password]", demo.credentials.password)
        page.press("input[name=password]", "Enter")
        page.wait_for_url(lambda address: "/user/login" not in address)
        yield page
        browser.close()


def clicks(page: Page, demo: DemoProcess, editor: Editor, count: int) -> list[Click]:
    """So many clicks below the accepted masks, each rejected again."""
    made = []
    processors = Processors(page, demo)
    processors.wait_until_learned()
    for number in range(count + 1):
        page.wait_for_timeout(SETTLED_MS)
        before = processors.used()
        box = page.locator(".konvajs-content").first.bounding_box()
        assert box is not None
        page.mouse.click(box["x"] + (0.2 + 0.1 * number) * box["width"], box["y"] + 0.76 * box["height"])
        left, drawn = page.wait_for_function(DRAWN).json_value()
        spent = (now - then for now, then in zip(processors.used(), before, strict=True))
        made.append(Click(left / 1000, drawn / 1000, *spent))
        editor.reject_all()
    return made[1:]


def open_with(page: Page, editor: Editor, task: tuple[int, int], accepted: int) -> None:
    """A task with its annotation; the page now and then begins a new one instead, and is opened again then."""
    for last in (False, True):
        editor.open(*task)
        try:
            page.wait_for_function(f"() => Htx.annotationStore.selected.areas.size === {accepted}", timeout=30_000)
            return
        except TimeoutError:
            if last:
                raise
            page.goto("about:blank")


def measured(page: Page, demo: DemoProcess, control: str, name: str, accepted: int, count: int, folder: Path) -> str:
    """A cell of the table."""
    size = SIZES[name]
    photo = folder / f"{name}.jpg"
    Image.open(SAMPLES / "coffee.jpg").convert("RGB").resize(size).save(photo, quality=92)
    title = f"{control} {name} {accepted}"
    made = demo.api.make(title, labeling(control), [photo], demo.backend_url, demo.credentials.webhook_secret)
    editor = Editor(page, demo.url, folder)
    if accepted:
        result = {"result": accepted_rows(control, accepted, size[::-1])}
        demo.api.call("POST", f"/api/tasks/{made.tasks[0]}/annotations/", json=result)
    try:
        open_with(page, editor, (made.id, made.tasks[0]), accepted)
        editor.switch_on_auto_annotation()
        editor.choose("click")
        taken = clicks(page, demo, editor, count)
    except TimeoutError:
        return "time-out"
    left, drawn, *spent = (statistics.median(column) for column in zip(*map(astuple, taken), strict=True))
    return f"{left:.2f} / {drawn:.2f} ({' + '.join(f'{1000 * each:.0f}' for each in spent)})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--controls", nargs="+", default=list(CONTROLS), choices=CONTROLS)
    parser.add_argument("--accepted", nargs="+", type=int, default=[0, 10, 30, 60])
    parser.add_argument("--clicks", type=int, default=5)
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        demo = DemoProcess(folder / "data")
        stack.callback(demo.stop)
        demo.wait_until_ready()
        page = stack.enter_context(browsing(demo))
        print("| photo | answer |", *(f"{count} |" for count in given.accepted))
        print("|---|---|" + "---|" * len(given.accepted), flush=True)
        for name in given.sizes:
            for control in given.controls:
                print(f"| {name} | {control} |", end="", flush=True)
                for accepted in given.accepted:
                    cell = measured(page, demo, control, name, accepted, given.clicks, folder)
                    print(f" {cell} |", end="", flush=True)
                print(flush=True)
        print(f"\n{described()}")


if __name__ == "__main__":
    main()
