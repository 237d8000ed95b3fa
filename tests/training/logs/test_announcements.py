"""What a run says as it begins: values that follow from others, that it compiles, how long it will take."""

import pytest

from efficientdet.training.logs import announcements


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand; returns the list whose last number is the time."""
    times = [0.0]
    monkeypatch.setattr(announcements.time, "monotonic", lambda: times[-1])
    return times


def _forecast(total_steps, said):
    return announcements.Forecast(total_steps, 8, said.append)


def test_a_run_says_that_it_compiles_and_then_how_long_it_will_take(clock):
    said = []
    forecast = _forecast(1000, said)
    assert said == ["compiling the training step; this can take a minute or more"]
    for step, seconds in ((1, 48.0), (2, 48.5), (20, 57.5)):
        clock.append(seconds)
        forecast.advance(step)
    assert len(said) == 1, "ten seconds have not passed since the first step"
    clock.append(58.0)
    forecast.advance(21)
    # 20 steps of 8 images in 10 s, and 979 steps left.
    assert said[1:] == [
        "the first step took 48 s; about 8 min left at 16 images/s, not counting evaluations",
    ]
    clock.append(100.0)
    forecast.advance(100)
    assert len(said) == 2, "once"


def test_slow_steps_are_measured_three_times(clock):
    said = []
    forecast = _forecast(2000, said)
    for step in range(1, 4):
        clock.append(step * 20.0)
        forecast.advance(step)
        assert len(said) == 1
    clock.append(80.0)
    forecast.advance(4)
    assert said[1].endswith("about 11.1 h left at 0.4 images/s, not counting evaluations")


def test_an_evaluation_is_left_out(clock):
    said = []
    forecast = _forecast(100, said)
    clock.append(1.0)
    forecast.advance(1)
    clock.append(500.0)
    forecast.leave_out()
    for step, seconds in ((2, 501.0), (3, 504.0), (4, 507.0), (5, 513.0)):
        clock.append(seconds)
        forecast.advance(step)
    assert "about 6 min left at 2 images/s" in said[1], "95 steps of 4 s"


def test_a_run_that_is_over_before_forecasts_nothing(clock):
    said = []
    forecast = _forecast(4, said)
    for step in range(1, 5):
        clock.append(step * 10.0)
        forecast.advance(step)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(40, "40 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (7200, "2.0 h"), (2e5, "2.3 days")],
)
def test_a_duration_is_written_for_people(seconds, text):
    assert announcements._duration(seconds) == text


def test_derived_values_are_said_by_name():
    values = {"optimizer.method": "adam", "optimizer.learning_rate": 0.023094, "training.recalibrate_images": 160}
    assert announcements.derived(values) == (
        "derived from batch size and steps: optimizer.method adam, optimizer.learning_rate 0.02309, "
        "training.recalibrate_images 160"
    )
