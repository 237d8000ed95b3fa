"""Another implementation, measured in turns with ours: a program that works when told to, and says how fast it was.

It may live in an environment of its own. On a line `go` at its standard input it works once and answers with one line
of JSON, {"rate": things a second} and whatever else it knows; other lines it prints are passed on to a person. It ends
when its input ends. `benchmarks/effdet_rival.py` is one.
"""

import contextlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from efficientdet.errors import UserError


class Rival:
    """A rival that has been started."""

    def __init__(self, command: str):
        """Starts it; it gets ready meanwhile.

        Raises:
            UserError: it cannot be started.
        """
        self._command = command
        try:
            self._process = subprocess.Popen(
                shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except (OSError, ValueError) as error:
            raise UserError(f"`--rival` is `{command}`, which cannot be started: {error}.") from error

    def measure(self) -> dict[str, Any]:
        """Lets it work once.

        Returns:
            What it says: `rate`, and more.

        Raises:
            UserError: it has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):
                answer = json.loads(line)
                if isinstance(answer, dict) and isinstance(answer.get("rate"), float):
                    return answer
            print(line, end="", file=sys.stderr)
        raise UserError(f"`--rival` `{self._command}` ended with status {self._process.wait()}; look at its output.")

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextlib.contextmanager
def started(command: str) -> Iterator[Rival | None]:
    """Starts a rival, if there is a command, and ends it after the block."""
    rival = Rival(command) if command else None
    try:
        yield rival
    finally:
        if rival is not None:
            rival.close()
