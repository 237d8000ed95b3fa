"""SIGTERM and SIGUSR1: at once where there is nothing to save, else after the step; a second one ends everything."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from efficientdet.training import interruption

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@pytest.fixture
def said():
    return []


def _run(work, said):
    """Does some work that signals may end, and keeps what is said."""
    with interruption.caught() as asked:
        asked.say = said.append
        work(asked)


@pytest.mark.parametrize("number", _SIGNALS)
def test_before_the_first_step_a_signal_ends_the_run_at_once_with_status_75(number, said):
    with pytest.raises(interruption.Interrupted) as caught:
        _run(lambda asked: os.kill(os.getpid(), number), said)
    assert caught.value.code == 75
    assert said == [f"{signal.Signals(number).name}: stopped; the same command goes on (status 75)"]


@pytest.mark.parametrize("number", _SIGNALS)
def test_later_it_is_noted_and_the_step_goes_on(number):
    with interruption.caught() as asked:
        asked.can_wait = True
        assert not asked.is_wanted()
        os.kill(os.getpid(), number)
        assert asked.name == signal.Signals(number).name
        assert asked.is_wanted()


def test_work_that_may_be_left_off_is_left_off_at_the_next_item(said):
    done = []

    def work(asked):
        asked.can_wait = True
        for item in asked.guard(range(5)):
            done.append(item)
            if item == 2:
                os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.raises(interruption.Interrupted):
        _run(work, said)
    assert done == [0, 1, 2]


def test_afterwards_the_signals_do_what_they_did_before():
    before = [signal.getsignal(number) for number in _SIGNALS]
    descriptor = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(descriptor)
    with interruption.caught():
        assert [signal.getsignal(number) for number in _SIGNALS] != before
    assert [signal.getsignal(number) for number in _SIGNALS] == before
    assert signal.set_wakeup_fd(descriptor) == descriptor
    assert not [thread for thread in threading.enumerate() if thread.name == "signals"]


def test_a_run_in_another_thread_leaves_the_signals_alone():
    found = []

    def run():
        with interruption.caught() as asked:
            found.append((asked.name, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [("", signal.getsignal(signal.SIGTERM))]


_BUSY = """
import os, signal, time
from efficientdet.training import interruption
with interruption.caught() as asked:
    asked.can_wait = True
    for number in {numbers}:
        os.kill(os.getpid(), number)
        time.sleep({seconds})
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        pass
"""


@pytest.mark.parametrize(
    ("numbers", "status"), [((15, 15), 128 + 15), ((15, 10), 128 + 10), ((10, 15), 128 + 15)], ids=str
)
@pytest.mark.skipif(sys.platform != "linux", reason="signals have other numbers elsewhere")
def test_a_second_signal_ends_the_process_at_once(numbers, status):
    done = subprocess.run(
        [sys.executable, "-c", _BUSY.format(numbers=numbers, seconds=1.1)], capture_output=True, timeout=60
    )
    assert done.returncode == status, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="signals have other numbers elsewhere")
def test_signals_that_come_together_are_one():
    program = _BUSY.format(numbers=(15, 15, 10), seconds=0.02).replace(
        "while time.monotonic() < deadline", "while False"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
