"""Places for predictions, and a short queue."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from backend.web.routes import Throttle


@contextmanager
def held(throttle: Throttle) -> Iterator[None]:
    """A place, held by another thread inside the block."""
    begun, end = threading.Event(), threading.Event()

    def hold() -> None:
        with throttle.place() as free:
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
    throttle = Throttle(1, queued=0)
    for _ in range(3):
        try:
            with throttle.place() as free:
                assert free
                raise ValueError
        except ValueError:
            pass


def test_a_full_queue_is_refused_at_once() -> None:
    throttle = Throttle(1, queued=0, queue_s=60)
    began = time.monotonic()
    with held(throttle), throttle.place() as free:
        assert not free
    assert time.monotonic() - began < 30


def test_whoever_waits_gets_the_next_place_or_none_in_time() -> None:
    throttle = Throttle(1, queued=1, queue_s=60)
    with ExitStack() as other:
        other.enter_context(held(throttle))
        threading.Timer(0.1, other.close).start()
        with throttle.place() as free:
            assert free
    hasty = Throttle(1, queued=1, queue_s=0.05)
    with held(hasty), hasty.place() as free:
        assert not free
