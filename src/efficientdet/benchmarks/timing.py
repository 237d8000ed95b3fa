"""Timing on a machine that others use too: candidates in turns, medians and spread, ratios within one round.

A machine's pace changes by the minute, so that two times from different minutes say little about each other. Each round
times every candidate once, one after the other; a ratio is taken between times of the same round.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Rates = dict[str, list[float]]
"""What was measured -> one rate a round, a second."""


def in_turns(candidates: Mapping[str, Callable[[], float]], rounds: int, *, warmup: int = 1) -> Rates:
    """Measures each candidate once a round.

    Args:
        candidates: name -> function that works for a while and returns its rate, things a second.
        rounds: that count.
        warmup: rounds before, which do not.

    Returns:
        `rounds` rates of each.
    """
    rates: Rates = {name: [] for name in candidates}
    for number in range(warmup + rounds):
        for name, measure in candidates.items():
            rate = measure()
            if number >= warmup:
                rates[name].append(rate)
    return rates


def repeat(call: Callable[[int], object], seconds: float) -> list[float]:
    """Calls again and again for so long, once at least; `call` is told the number of calls before it.

    Returns:
        The seconds of each call.
    """
    spent: list[float] = []
    while sum(spent) < seconds:
        began = time.perf_counter()
        call(len(spent))
        spent.append(time.perf_counter() - began)
    return spent


def rate_of(work: Callable[[], object], count: int) -> float:
    """Measures how many of `count` things `work` does a second."""
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Divides rates round by round.

    Returns:
        min, median and max of our rate over theirs.
    """
    ratios = np.asarray(ours) / np.asarray(theirs)
    return _rounded({"min": ratios.min(), "median": np.median(ratios), "max": ratios.max()})


def spread(values: Sequence[float]) -> dict[str, float]:
    """Sums up repeated measurements: min, median, max."""
    return _rounded({"min": np.min(values), "median": np.median(values), "max": np.max(values)})


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Sums up single latencies, in milliseconds: p50, p90, p95, p99 and how many there are.

    A percentile is a time that was measured (the smallest with so many at or below it), not a multiple of a standard
    deviation.
    """
    found = np.percentile(np.asarray(seconds) * 1e3, [50, 90, 95, 99], method="inverted_cdf")
    return {**_rounded(dict(zip(("p50", "p90", "p95", "p99"), found, strict=True))), "count": len(seconds)}


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in values.items()}
