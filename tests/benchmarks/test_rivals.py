"""A rival works when it is told to, and its end is told in one line."""

import sys

import pytest

from efficientdet.benchmarks import rivals
from efficientdet.errors import UserError


@pytest.fixture
def script(tmp_path):
    """Returns the command that runs a program."""

    def write(text):
        path = tmp_path / "rival.py"
        path.write_text(text)
        return f'"{sys.executable}" "{path}"'

    return write


def test_it_answers_each_time(script, capsys):
    text = "import sys\nprint('getting ready')\nfor n, _ in enumerate(sys.stdin):\n"
    text += '    print(\'{"rate": 2.5, "n": %d}\' % n, flush=True)\n'
    with rivals.started(script(text)) as rival:
        assert [rival.measure() for _ in range(2)] == [{"rate": 2.5, "n": 0}, {"rate": 2.5, "n": 1}]
        process = rival._process
    assert process.poll() == 0, "it ends with its input"
    assert "getting ready" in capsys.readouterr().err


def test_one_that_ends_is_named(script):
    with rivals.started(script("raise SystemExit(3)")) as rival, pytest.raises(UserError, match="exited with status 3"):
        rival.measure()


def test_one_that_does_not_start_is_named():
    with (
        pytest.raises(UserError, match="`--rival` is `/nowhere/at-all`, which cannot be started"),
        rivals.started("/nowhere/at-all"),
    ):
        pass


def test_none_is_none():
    with rivals.started("") as rival:
        assert rival is None
