"""Pictures of the editor for the documents: labels, photo and bottom bar, with the mouse drawn in."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import FloatRect, Page

WIDTH = 720  #: of a picture, pixels at most
# Chromium without a window draws no mouse.
_MOUSE = """() => {
  const arrow = document.createElement('div');
  arrow.innerHTML = '<svg width="22" height="32"><path d="M1 1v24l6-6 4 10 4-2-4-9h8z" fill="black" stroke="white"'
    + ' stroke-width="1.5"/></svg>';
  arrow.style.cssText = 'position:fixed;z-index:99999;pointer-events:none;left:-50px;top:0';
  document.body.append(arrow);
  const follow = event => { arrow.style.left = `${event.clientX}px`; arrow.style.top = `${event.clientY}px`; };
  addEventListener('mousemove', follow, true);
}"""


class Camera:
    """Of one page; its pictures are WebP files in `folder`."""

    def __init__(self, page: Page, folder: Path) -> None:
        self._page = page
        self._folder = folder
        self._frames: list[tuple[Image.Image, int]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def draw_mouse(self) -> None:
        """On the page that is open now."""
        self._page.evaluate(_MOUSE)

    def fit(self) -> None:
        """Makes the window so high that the bottom bar lies right under the photo."""
        photo, bar = self._box(".konvajs-content"), self._box(".lsf-bottombar")
        size = self._page.viewport_size
        assert size is not None
        height = round(photo["y"] + photo["height"] + bar["height"] + 12)
        self._page.set_viewport_size({"width": size["width"], "height": height})
        self._page.wait_for_timeout(300)

    def picture(self, name: str, *, panel: bool = False) -> Path:
        """What the annotator sees now. panel: the list of regions instead."""
        path = self._folder / f"{name}.webp"
        self._taken(panel).save(path, quality=80, method=6)
        return path

    def frame(self, milliseconds: int) -> None:
        """One more picture of the animation, to be seen so long."""
        self._frames.append((self._taken(panel=False), milliseconds))

    def animation(self, name: str) -> Path:
        """All frames so far, shown again and again."""
        (first, *others), times = zip(*self._frames, strict=True)
        path = self._folder / f"{name}.webp"
        first.save(path, save_all=True, append_images=others, duration=list(times), loop=0, quality=70, method=6)
        return path

    def _taken(self, panel: bool) -> Image.Image:
        shown = self._box(".lsf-main-content")
        if panel:
            whole, left = self._box(".lsf-wrapper"), shown["x"] + shown["width"]
            shown = {**whole, "x": left, "width": whole["x"] + whole["width"] - left}
        image = Image.open(io.BytesIO(self._page.screenshot(clip=shown))).convert("RGB")
        width = min(WIDTH, image.width)
        return image.resize((width, round(width * image.height / image.width)), Image.Resampling.LANCZOS)

    def _box(self, selector: str) -> FloatRect:
        box = self._page.locator(selector).first.bounding_box()
        assert box is not None
        return box
