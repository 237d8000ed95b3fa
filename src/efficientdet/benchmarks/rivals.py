"""What stands beside our speeds: another implementation, measured in turns with ours, and what NVIDIA published.

The other implementation is a program that works when told to, and says how fast it was. It may live in an environment
of its own. On a line `go` at its standard input it works once and answers with one line of JSON, {"rate": things a
second} and whatever else it knows; other lines it prints are passed on to a person. It ends when its input ends.
`benchmarks/effdet_rival.py` is one.

NVIDIA published EfficientDet-D0 in TensorFlow 2. Its inference was timed with another suppression than the one its AP
was measured with, and its "90 %" latency is the mean of the fastest nine tenths; the average latency is given here.
"""

import contextlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from efficientdet.errors import UserError

_TRAINING = {
    # (GPU, devices, precision) -> images a second
    ("A100", 1, "tf32"): 162.0,
    ("A100", 1, "mixed_float16"): 397.0,
    ("A100", 8, "tf32"): 1266.0,
    ("A100", 8, "mixed_float16"): 2711.0,
    ("V100", 1, "float32"): 113.0,
    ("V100", 1, "mixed_float16"): 232.0,
    ("V100", 8, "float32"): 645.0,
    ("V100", 8, "mixed_float16"): 777.0,
}
_INFERENCE = {
    # A100, float16: batch size -> images a second
    1: 38.0,
    2: 40.0,
    4: 80.0,
    8: 153.0,
    16: 276.0,
    32: 465.0,
    64: 706.0,
    128: 791.0,
    256: 858.0,
}


def training_rates(preset: str, precision: str, devices: int) -> dict[str, float]:
    """Finds NVIDIA's images a second for as many of its GPUs in the same precision: GPU -> rate; empty for others."""
    if not preset.startswith("d0"):
        return {}
    return {gpu: rate for (gpu, count, kind), rate in _TRAINING.items() if (count, kind) == (devices, precision)}


def inference_rates(preset: str, batch_size: int) -> dict[str, float]:
    """Finds NVIDIA's images a second at a batch size, on an A100 in float16: GPU -> rate; empty for others."""
    return {"A100": _INFERENCE[batch_size]} if preset.startswith("d0") and batch_size in _INFERENCE else {}


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
        """Closes its input, at which it should end; kills it after 30 s."""
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
