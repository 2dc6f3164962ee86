"""Whoever waits to write comes in turn, whoever is in a hurry."""

from __future__ import annotations

import threading
import time

import pytest

from backend.store.turns import Turns


def test_turns_are_given_in_the_order_in_which_they_were_asked_for() -> None:
    turns, order, waiting = Turns(), list[int](), list[threading.Thread]()

    def take(number: int) -> None:
        with turns.turn(60):
            order.append(number)

    with turns.turn(60):
        for number in range(8):
            waiting.append(threading.Thread(target=take, args=(number,)))
            waiting[-1].start()
            while len(turns._waiting) <= number:
                time.sleep(0.001)
    for thread in waiting:
        thread.join()
    assert order == list(range(8))


def test_one_who_takes_turn_after_turn_keeps_nobody_waiting() -> None:
    turns, order = Turns(), list[str]()

    def patient() -> None:
        with turns.turn(60):
            order.append("patient")

    waits = threading.Thread(target=patient)
    with turns.turn(60):
        waits.start()
        while not turns._waiting:
            time.sleep(0.001)
    with turns.turn(60):
        order.append("greedy")
    waits.join()
    assert order == ["patient", "greedy"]


def test_a_turn_that_does_not_come_in_time_is_given_to_the_next() -> None:
    turns = Turns()
    with turns.turn(60):
        late = pytest.raises(TimeoutError)
        with late, turns.turn(0.01):
            pass
    with turns.turn(0.01):
        pass
