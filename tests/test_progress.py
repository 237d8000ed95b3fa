"""Lines of progress, where standard error is not a terminal."""

import pytest

from efficientdet import progress


@pytest.fixture
def clock(monkeypatch):
    """A time that a test moves."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def _said(capsys):
    return capsys.readouterr().err.splitlines()


def test_a_rate_that_is_not_known_yet_is_not_shown(clock, capsys):
    with progress.track("validate", 3) as bar:
        clock[0] = 20.0  # the first advance may have compiled
        bar.advance(3)
    assert _said(capsys) == ["validate: 3/3"]


def test_a_line_says_what_is_left_until_nothing_is(clock, capsys):
    with progress.track("train", 40) as bar:
        for now in (5.0, 25.0, 45.0):
            clock[0] = now
            bar.advance(10 if now < 45 else 20, note="a.jpg" if now < 45 else "")
    assert _said(capsys) == ["train: 20/40, 0.5 images/s, 0:40 left, a.jpg", "train: 40/40, 0.8 images/s"]


def test_bytes_are_megabytes(clock, capsys):
    with progress.track("Fetching", 2_000_000, unit="bytes") as bar:
        bar.advance(1_000_000)
        clock[0] = 10.0
        bar.advance(1_000_000)
    assert _said(capsys) == ["Fetching: 2.0/2.0 MB, 0.1 MB/s"]
