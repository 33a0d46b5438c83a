"""Timing: sessions take turns and are opened anew, and the numbers that come out are those of the clock."""

from __future__ import annotations

import threading
import time
import weakref

import numpy as np
import pytest

from graphopt import latency, timing
from graphopt.runtime import Session
from graphopt.timing import Block, Opening


class Sleeper(Session):
    """Takes a known time for every run."""

    def __init__(self, seconds=0.0, log=None):
        self.seconds, self.log = seconds, log

    def run(self, feeds, outputs=None):
        if self.log is not None:
            self.log.append(self)
        time.sleep(self.seconds)
        return {}


def opener(seconds=0.0, log=None, opening=0.0):
    def opened():
        time.sleep(opening)
        return Sleeper(seconds, log)

    return opened


def openings(*parts):
    """Measurements of two contenders: `parts` hold (first, second) seconds of each round of each opening."""
    return [
        Opening([0.0, 0.0], [[Block(np.array([cost, cost]), cost) for cost in row] for row in part]) for part in parts
    ]


def test_exactly_as_many_rounds_as_asked_on_one_opening():
    (opening,) = timing.race([opener(0.001), opener(0.002)], {}, seconds=9, rounds=5)
    assert len(opening.rounds) == 5
    assert {len(row) for row in opening.rounds} == {2}
    assert all(block.cost > 0 for row in opening.rounds for block in row)


def test_sessions_are_opened_anew_where_that_takes_little():
    found = timing.race([opener(0.0005), opener(0.0005)], {}, seconds=0.6, width=0)
    assert len(found) >= 6
    assert all(len(opening.rounds) % 2 == 0 and len(opening.rounds) >= 6 for opening in found)


def test_sessions_that_take_long_to_open_are_opened_once():
    (opening,) = timing.race([opener(0.001, opening=0.05)] * 2, {}, seconds=0.3, width=0)
    assert len(opening.rounds) >= 20
    assert all(seconds >= 0.05 for seconds in opening.load_seconds)


def test_a_slow_model_gets_a_few_rounds_only(monkeypatch):
    monkeypatch.setattr(timing, "_GRACE_SECONDS", 0.2)
    (opening,) = timing.race([opener(0.06)] * 2, {}, seconds=0.1)
    assert 6 <= len(opening.rounds) < 20


def test_it_stops_when_the_interval_is_narrow():
    assert len(timing.race([opener(0.002), opener(0.002)], {}, seconds=600, width=0.9)) == 6


def test_one_contender_is_timed_to_the_end():
    found = timing.race([opener(0.001)], {}, seconds=0.3)
    assert len(timing.run_seconds(found, 0)) > 10
    assert timing.cost(found, 0) >= 0.001


def test_each_pair_of_rounds_visits_every_session_forth_and_back():
    log = []
    timing.race([opener(0.06, log), opener(0.06, log)], {}, seconds=0, rounds=8)
    one = log[0]
    visits = [session is one for session in log[2 * 2 :]]  # after two runs of each to warm up
    pairs = [tuple(visits[i : i + 4]) for i in range(0, len(visits), 4)]
    assert len(pairs) == 4
    assert set(pairs) <= {(True, False, False, True), (False, True, True, False)}


def test_every_other_time_the_last_contender_is_opened_first():
    order = []

    def named(name):
        return lambda: order.append(name) or Sleeper(0.0005)

    timing.race([named("a"), named("b")], {}, seconds=0.5, width=0)
    assert order[:8] in (["a", "b", "b", "a"] * 2, ["b", "a", "a", "b"] * 2)


def test_one_opening_is_over_before_the_next_begins():
    alive, most = weakref.WeakSet(), []

    def opened():
        session = Sleeper(0.0005)
        alive.add(session)
        most.append(len(alive))
        return session

    assert len(timing.race([opened, opened], {}, seconds=0.5, width=0)) >= 6
    assert max(most) == 2


def test_the_order_and_the_length_of_blocks_are_drawn_and_seeded():
    class Lane:
        load_seconds = 0.0

        def __init__(self, name, log):
            self.name, self.log = name, log

        def block(self, seconds):
            self.log.append((self.name, seconds))
            return Block(np.ones(1), 1.0)

    def visits(seed):
        log = []
        lanes = [Lane("a", log), Lane("b", log)]
        timing._rounds(lanes, np.random.default_rng(seed), lambda done: len(done.rounds) == 40)
        return log

    assert visits(1) == visits(1) != visits(2)
    firsts = [name for name, _ in visits(1)[::4]]
    assert set(firsts) == {"a", "b"}
    lengths = [seconds for _, seconds in visits(1)]
    assert len(set(lengths)) == 20, "one for each pair of rounds"
    assert [lengths[i] == lengths[i + 3] for i in range(0, 80, 4)] == [True] * 20


def test_it_warms_up_until_runs_get_no_faster():
    class Warming(Session):
        runs = 0

        def run(self, feeds, outputs=None):
            Warming.runs += 1
            time.sleep(max(0.0, 0.02 - 0.002 * Warming.runs) + 0.001)

    assert timing._warm(Warming().prepare({})) < 0.006
    assert Warming.runs >= 10


def test_prepared_runs_are_what_is_timed():
    class Prepared(Sleeper):
        def prepare(self, feeds):
            feeds_seen.append(feeds)
            return lambda: time.sleep(0.001)

        def run(self, feeds, outputs=None):
            raise AssertionError("copies would be timed")

    feeds_seen = []
    timing.race([Prepared], {"x": 1}, seconds=0, rounds=2)
    assert feeds_seen == [{"x": 1}]


def test_clients_run_at_the_same_time():
    lock, running, most = threading.Lock(), 0, 0

    class Crowded(Session):
        def run(self, feeds, outputs=None):
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.005)
            with lock:
                running -= 1

    found = timing.race([Crowded], {}, seconds=0, rounds=3, clients=4)
    assert most > 1
    assert np.median(timing.run_seconds(found, 0)) >= 0.005, "latency is that of a single run"
    assert timing.cost(found, 0) < 0.004, "four runs pass in the time of one"


def test_a_known_ratio():
    found = timing.race([opener(0.004), opener(0.002)], {}, seconds=0.8, width=0)
    ratio, (low, high) = timing.speedup(found, 1)
    assert 1 < low <= ratio <= high
    assert timing.cost(found, 0) >= 0.004
    assert timing.cost(found, 1) >= 0.002
    measured = latency.compare_latency(opener(0.004), opener(0.002), {}, 3, seconds=0.3)
    assert measured.batch == 3
    assert (measured.before_ms >= 4, measured.after_ms >= 2) == (True, True)
    assert 1 < measured.ci95[0] <= measured.speedup <= measured.ci95[1]


def test_pairs_of_rounds_cancel_what_the_first_place_costs():
    """Whoever comes first in a round is three times as slow here."""
    rounds = [(3.0, 2.0), (1.0, 6.0)] * 5
    ratio, interval = timing.speedup(openings(rounds), 1)
    assert ratio == pytest.approx(0.5)
    assert interval == pytest.approx((0.5, 0.5))


def test_openings_are_what_is_independent():
    """Within an opening the ratio hardly varies; between openings it does, and the interval must show it."""
    parts = [[(1.0, 1.0 + shift)] * 100 for shift in (-0.05, 0.04, -0.02, 0.03, 0.01, -0.03, 0.05, -0.01)]
    ratio, (low, high) = timing.speedup(openings(*parts), 1)
    assert low < 0.98 < 1 < 1.02 < high
    assert ratio == pytest.approx(1, abs=0.02)


def test_two_rounds_give_an_interval_and_one_gives_none():
    assert timing.speedup(openings([(1.0, 1.0), (1.0, 2.0)]), 1)[1] == pytest.approx((0.5, 1.0))
    assert timing.speedup(openings([(1.0, 2.0)]), 1) == (0.5, (0.0, np.inf))
