"""Bring a project up to date with Label Studio: what the sync thread, `semsam sync` and fine-tuning all do.

Three steps, in this order: annotations that no webhook brought are fetched; predictions that annotations were begun
from are read, and their regions judged; photos of regions are fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from backend.corrections.fetch_photos import Fetched, fetch_photos
from backend.corrections.photo_archive import PhotoArchive
from backend.corrections.prediction_outcomes import Judged, judge_preannotated
from backend.corrections.sync import Synced, sync_project
from backend.label_studio.client import LabelStudio
from backend.records import ProjectKey
from backend.store.database import Store
from semsam_model.types import ShouldStop, never_stop

Step = Literal["annotations", "predictions", "photos"]
STEPS: tuple[Step, ...] = ("annotations", "predictions", "photos")


@dataclass(frozen=True)
class UpToDate:
    """What was done; None for a step that was not taken."""

    synced: Synced | None
    judged: Judged | None
    fetched: Fetched | None


def bring_up_to_date(
    store: Store,
    label_studio: LabelStudio,
    photos: PhotoArchive,
    key: ProjectKey,
    *,
    steps: Collection[Step] = STEPS,
    everything: bool = False,
    retry: bool = True,
    on_task: Callable[[int, int], None] = lambda done, total: None,
    should_stop: ShouldStop = never_stop,
) -> UpToDate:
    """Take the steps for one project. Events that wait in the inbox are the caller's to process first.

    everything, on_task: see `sync_project`. retry: try again at once what failed a moment ago. should_stop: asked
    between any two tasks, predictions and photos. Raises Stopped, StoreError, LabelStudioError; what was done before
    stays done.
    """
    synced = judged = fetched = None
    if "annotations" in steps:
        synced = sync_project(store, label_studio, key, everything=everything, on_task=on_task, should_stop=should_stop)
    if "predictions" in steps:
        judged = judge_preannotated(store, label_studio, key, retry=retry, should_stop=should_stop)
    if "photos" in steps:
        fetched = fetch_photos(store, label_studio, photos, key, retry=retry, should_stop=should_stop)
    return UpToDate(synced, judged, fetched)
