"""What is written out: exports into a folder, predictions into Label Studio."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from backend.batch.annotator import Annotator
from backend.batch.local import by_one_model
from backend.batch.run import read_config, run
from backend.batch.sources import task_items
from backend.corrections.archive import PhotoArchive
from backend.export.run import export
from backend.label_studio.client import LabelStudio
from semsam_model.checkpoints.header import read_header
from tests.backend import stored
from tests.backend.batch.studio_with_photos import Studio, at_work
from tests.backend.preannotating import settings
from tests.endurance.killed.work import Say, Work


class Export(Work):
    """An export into one folder, of two states of a project in turn."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.photos = PhotoArchive(self.folder / "photos")
        self.states = [stored.car_park(self.photos, count) for count in (12, 20)]
        self.whole = []
        for number, regions in enumerate(self.states):
            out = self.folder / f"whole{number}"
            export(regions, stored.project(), self.photos, out, form="coco")
            self.whole.append(_content(out))

    def _export(self, state: int) -> None:
        export(self.states[state], stored.project(), self.photos, self.folder / "out", form="coco", checkpoint=10)

    def do(self, number: int, say: Say) -> None:
        self._export(number % 2)
        say(number % 2)

    def check(self, said: list[Any], new: list[Any]) -> None:
        out = self.folder / "out"
        if new:
            assert _content(out) == self.whole[new[-1]]
        elif (out / "export.json").is_file() and not (out / ".export").exists():
            assert _content(out) in self.whole


class Batch(Work):
    """`semsam batch` on a project of a made Label Studio: each task gets one prediction."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.studio = Studio(*["a.png", "b.png"] * 10)
        self.open = ExitStack()
        self.settings = settings(self.open.enter_context(at_work(self.studio)), self.weights, self.folder)
        self.config = read_config(self.studio.config)
        self.annotator = Annotator(self.settings, self.weights, self.config)
        self.version = read_header(self.weights).version.version

    def do(self, number: int, say: Say) -> None:
        items = task_items(LabelStudio(self.settings), 1, self.config, self.version)
        with by_one_model(self.annotator) as annotate:
            say(run(items, annotate).written)

    def check(self, said: list[Any], new: list[Any]) -> None:
        found = self.studio.versions()
        assert all(each in ([], [self.version]) for each in found.values()), found
        assert not new or all(found.values()), found
        if all(found.values()):
            self.studio.predictions = {number: [] for number in found}

    def end(self) -> None:
        self.open.close()


def _content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
