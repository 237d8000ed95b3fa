"""SIGTERM, SIGUSR1, Ctrl-C: at once where there is nothing to save, else after the step; a second one ends all."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from efficientdet.training.state import interruption

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_ALL = (*_SIGNALS, signal.SIGINT)


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
    assert said == [f"{signal.Signals(number).name}: stopped; run the same command to resume (status 75)"]


def test_before_the_first_step_ctrl_c_is_a_keyboard_interrupt_that_has_said_what_there_is_to_say(said):
    with pytest.raises(KeyboardInterrupt, match="call again to resume"):
        _run(lambda asked: os.kill(os.getpid(), signal.SIGINT), said)
    assert said == ["Ctrl-C: stopped; run the same command to resume (status 130)"]


def test_after_ctrl_c_the_step_that_was_saved_is_named(said):
    def work(asked):
        asked.can_wait = True
        os.kill(os.getpid(), signal.SIGINT)
        raise asked.end(57)

    with pytest.raises(interruption.Stopped):
        _run(work, said)
    assert said[-1] == "Ctrl-C: stopped after saving step 57; run the same command to resume (status 130)"


def test_while_a_step_is_under_way_ctrl_c_is_answered(said):
    def work(asked):
        asked.can_wait = True
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)  # the main thread is busy

    _run(work, said)
    assert said == ["Ctrl-C: finishing this step, then saving; press Ctrl-C again to quit immediately"]


def test_at_a_prompt_the_second_ctrl_c_is_python_s(said, monkeypatch):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)

    def work(asked):
        asked.can_wait = True
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("it goes on")

    with pytest.raises(KeyboardInterrupt) as caught:
        _run(work, said)
    assert type(caught.value) is KeyboardInterrupt


@pytest.mark.parametrize("number", _ALL)
def test_later_it_is_noted_and_the_step_goes_on(number):
    with interruption.caught() as asked:
        asked.can_wait = True
        assert not asked.is_wanted()
        os.kill(os.getpid(), number)
        assert asked.name == signal.Signals(number).name
        assert asked.is_wanted()


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGUSR1, interruption.Interrupted), (signal.SIGINT, interruption.Stopped)]
)
def test_work_that_may_be_left_off_is_left_off_at_the_next_item(number, error, said):
    done = []

    def work(asked):
        asked.can_wait = True
        for item in asked.guard(range(5)):
            done.append(item)
            if item == 2:
                os.kill(os.getpid(), number)

    with pytest.raises(error):
        _run(work, said)
    assert done == [0, 1, 2]


def test_afterwards_the_signals_do_what_they_did_before():
    before = [signal.getsignal(number) for number in _ALL]
    descriptor = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(descriptor)
    with interruption.caught():
        assert not set(before) & {signal.getsignal(number) for number in _ALL}
    assert [signal.getsignal(number) for number in _ALL] == before
    assert signal.set_wakeup_fd(descriptor) == descriptor
    assert not [thread for thread in threading.enumerate() if thread.name == "signals"]


def test_a_run_in_another_thread_leaves_the_signals_alone():
    found = []

    def run():
        with interruption.caught() as asked:
            found.append((asked.name, *map(signal.getsignal, _ALL)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [("", *map(signal.getsignal, _ALL))]


_BUSY = """
import os, signal, time
from efficientdet.training.state import interruption
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
    ("numbers", "seconds", "status"),
    [
        ((15, 15), 1.1, 128 + 15),
        ((15, 10), 1.1, 128 + 10),
        ((10, 15), 1.1, 128 + 15),
        ((2, 2), 0.4, 128 + 2),
        ((2, 15), 1.1, 128 + 15),
        ((15, 2), 0.4, 128 + 2),
    ],
    ids=str,
)
@pytest.mark.skipif(sys.platform != "linux", reason="signals have other numbers elsewhere")
def test_a_second_signal_ends_the_process_at_once(numbers, seconds, status):
    done = subprocess.run(
        [sys.executable, "-c", _BUSY.format(numbers=numbers, seconds=seconds)], capture_output=True, timeout=60
    )
    assert done.returncode == status, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="signals have other numbers elsewhere")
def test_signals_that_come_together_are_one():
    program = _BUSY.format(numbers=(15, 15, 10, 2, 2, 15), seconds=0.01).replace(
        "while time.monotonic() < deadline", "while False"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
