"""As many annotators as a classroom has click at once: each is answered, the others wait their turn."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.endurance.clicks import click
from tests.endurance.conftest import Shared

ANNOTATORS = 16


@pytest.mark.slow
def test_no_click_of_sixteen_annotators_gets_an_empty_answer_and_the_queue_is_to_be_seen(shared: Shared) -> None:
    service, photos = shared.service, shared.photos
    waiting, done = list[float](), threading.Event()
    empty = service.metric("semsam_empty_answers_total")

    def watch() -> None:
        while not done.is_set():
            waiting.append(service.metric("semsam_waiting_predictions"))
            time.sleep(0.01)

    def annotate(annotator: int) -> list[int]:
        """Regions in each answer; four annotators share a project, each has photos of their own."""
        found = []
        for number in range(3 * annotator, 3 * annotator + 3):
            answer = service.post("/predict", click(number, photos[number], project=annotator % 4 + 1))
            assert answer.status_code == 200
            found.append(len(answer.json()["results"][0]["result"]))
        return found

    watching = threading.Thread(target=watch)
    watching.start()
    with ThreadPoolExecutor(ANNOTATORS) as annotators:
        answers = list(annotators.map(annotate, range(ANNOTATORS)))
    done.set()
    watching.join()
    assert min(min(each) for each in answers) > 0, service.lines("empty answer")
    assert service.metric("semsam_empty_answers_total") == empty
    assert max(waiting) > 2  # more than there are places: the others waited
    assert service.metric("semsam_waiting_predictions") == 0
