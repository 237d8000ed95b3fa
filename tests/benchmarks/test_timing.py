"""Turns, ratios of one round, percentiles that are percentiles."""

import time

import pytest

from efficientdet.benchmarks import timing


def test_candidates_are_measured_in_turns_and_warm_rounds_do_not_count():
    order = []

    def candidate(name, rates):
        remaining = iter(rates)
        return lambda: order.append(name) or next(remaining)

    candidates = {"a": candidate("a", [9.0, 1.0, 2.0]), "b": candidate("b", [9.0, 3.0, 4.0])}
    assert timing.in_turns(candidates, 2, warmup=1) == {"a": [1.0, 2.0], "b": [3.0, 4.0]}
    assert order == ["a", "b"] * 3


def test_a_ratio_is_taken_within_a_round():
    """A machine that is ten times slower in the second round changes nothing."""
    found = timing.ratio([20.0, 2.0, 30.0], [10.0, 1.0, 10.0])
    assert found == {"min": 2.0, "median": 2.0, "max": 3.0}


def test_a_percentile_is_a_time_that_was_measured():
    seconds = [number / 1000 for number in range(1, 101)]
    assert timing.percentiles(seconds) == {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "count": 100}
    assert timing.percentiles([0.004]) == {"p50": 4.0, "p90": 4.0, "p95": 4.0, "p99": 4.0, "count": 1}


def test_a_rate_counts_what_was_done():
    assert timing.rate_of(lambda: None, 10) > 0
    assert timing.spread([1.0, 3.0, 2.0]) == pytest.approx({"min": 1.0, "median": 2.0, "max": 3.0})


def test_a_call_is_repeated_for_a_while_and_made_once_at_least():
    numbers = []
    assert len(timing.repeat(numbers.append, 1e-12)) == 1
    assert numbers == [0]
    spent = timing.repeat(lambda number: time.sleep(0.01 * (number + 1)), 0.025)
    assert sum(spent[:-1]) < 0.025 <= sum(spent)
