"""Places for predictions, and the queue for them."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from backend.metrics import Metrics
from backend.settings import Settings
from backend.web.app import create_app
from backend.web.throttle import Throttle
from tests.backend.web.stand_in import StandIn


@contextmanager
def held(throttle: Throttle) -> Iterator[None]:
    """A place, held by another thread inside the block."""
    begun, end = threading.Event(), threading.Event()

    def hold() -> None:
        with throttle.place("held") as free:
            assert free
            begun.set()
            end.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert begun.wait(60)
    try:
        yield
    finally:
        end.set()
        thread.join()


def test_a_place_is_free_again_after_an_error() -> None:
    throttle = Throttle(1, 0, 60)
    for _ in range(3):
        try:
            with throttle.place("a") as free:
                assert free
                raise ValueError
        except ValueError:
            pass


def test_a_full_queue_is_refused_at_once() -> None:
    throttle = Throttle(1, 0, 60)
    began = time.monotonic()
    with held(throttle), throttle.place("a") as free:
        assert not free
    assert time.monotonic() - began < 30


def test_whoever_waits_gets_the_next_place_or_none_in_time() -> None:
    throttle = Throttle(1, 1, 60)
    with ExitStack() as other:
        other.enter_context(held(throttle))
        threading.Timer(0.1, other.close).start()
        with throttle.place("a") as free:
            assert free
    hasty = Throttle(1, 1, 0.05)
    with held(hasty):
        for _ in range(2):  # who has gone no longer waits
            with hasty.place("a") as free:
                assert not free


def test_first_come_is_first_served_in_a_project_and_projects_take_turns() -> None:
    waiting, served = list[int](), list[str]()
    throttle = Throttle(1, 9, 60, waiting.append)

    def predict(name: str) -> None:
        with throttle.place(name[0]) as free:
            assert free
            served.append(name)

    threads = [threading.Thread(target=predict, args=[name]) for name in ("a1", "a2", "a3", "a4", "b1", "b2", "c1")]
    with held(throttle):
        for number, thread in enumerate(threads, 1):
            thread.start()
            while waiting[-1:] != [number]:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert served == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]
    assert waiting[-1] == 0


def test_sixteen_annotators_at_once_are_all_answered() -> None:
    class Slow(StandIn):
        def predict_request(self, body: object, request_id: str) -> list[dict[str, object]]:
            time.sleep(0.05)
            return super().predict_request(body, request_id)

    app = create_app(Settings(threads=1), Slow(), metrics := Metrics())  # type: ignore[arg-type]

    def click(number: int) -> object:
        sent = {"tasks": [{"id": number}], "project": f"{number % 3}.1"}
        return app.test_client().post("/predict", json=sent).json["results"][0]["result"]  # type: ignore[index]

    with ThreadPoolExecutor(16) as annotators:
        assert all(annotators.map(click, range(16)))
    figures = metrics.render().decode()
    assert "semsam_waiting_predictions 0.0" in figures and 'semsam_predict_seconds_count{stage="wait"} 16.0' in figures
    assert "semsam_empty_answers_total{" not in figures
