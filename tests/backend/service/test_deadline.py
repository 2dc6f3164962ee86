"""Answers within the time that a request has."""

import threading
from functools import partial

from backend.service.deadline import in_time


def test_photos_that_do_not_come_hold_up_neither_the_answer_nor_each_other() -> None:
    released, begun = threading.Event(), list[str]()

    def job(name: str, stuck: bool) -> str:
        begun.append(name)
        if stuck:
            released.wait(60)
        return name

    names = ["fine", "stuck", "fine too", "stuck too", "not begun"]
    answers = in_time([partial(job, name, "stuck" in name) for name in names], 1.0, lambda: "late")
    assert answers == ["fine", "late", "fine too", "late", "late"]
    released.set()
    assert set(begun) == set(names[:4])
