"""Timing on a shared machine: alternating candidates, medians and spread, ratios within one round.

The speed of a machine changes by the minute, so times from different minutes cannot be compared. Each round times every
candidate once, one after another; ratios are taken between times of the same round.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Rates = dict[str, list[float]]
"""Name of the candidate -> one rate per round, units per second."""


def in_turns(candidates: Mapping[str, Callable[[], float]], rounds: int, *, warmup: int = 1) -> Rates:
    """Measures each candidate once per round.

    Args:
        candidates: name -> function that works for a while and returns its rate, units per second.
        rounds: number of measured rounds.
        warmup: number of rounds before, which are discarded.

    Returns:
        `rounds` rates for each candidate.
    """
    rates: Rates = {name: [] for name in candidates}
    for number in range(warmup + rounds):
        for name, measure in candidates.items():
            rate = measure()
            if number >= warmup:
                rates[name].append(rate)
    return rates


def repeat(call: Callable[[int], object], seconds: float) -> list[float]:
    """Calls repeatedly for `seconds`, at least once; `call` gets the number of previous calls.

    Returns:
        Duration of each call, s.
    """
    spent: list[float] = []
    while sum(spent) < seconds:
        began = time.perf_counter()
        call(len(spent))
        spent.append(time.perf_counter() - began)
    return spent


def rate_of(work: Callable[[], object], count: int) -> float:
    """Measures the rate of `work`, which processes `count` units, in units per second."""
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Divides rates of the same round.

    Returns:
        min, median and max of our rate over theirs.
    """
    ratios = np.asarray(ours) / np.asarray(theirs)
    return _rounded({"min": ratios.min(), "median": np.median(ratios), "max": ratios.max()})


def spread(values: Sequence[float]) -> dict[str, float]:
    """Summarizes repeated measurements: min, median, max."""
    return _rounded({"min": np.min(values), "median": np.median(values), "max": np.max(values)})


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Summarizes single latencies in milliseconds: p50, p90, p95, p99 and their number.

    Percentiles are measured times (the smallest with that share at or below it), not computed from a standard
    deviation.
    """
    found = np.percentile(np.asarray(seconds) * 1e3, [50, 90, 95, 99], method="inverted_cdf")
    return {**_rounded(dict(zip(("p50", "p90", "p95", "p99"), found, strict=True))), "count": len(seconds)}


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in values.items()}
