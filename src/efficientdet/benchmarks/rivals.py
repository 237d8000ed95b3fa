"""References for our speed: another implementation, measured alternately with ours, and NVIDIA's published rates.

The other implementation is a program that works on demand and reports its speed; it may have its own environment. For
each line `go` on its standard input it works once and prints one line of JSON, {"rate": units per second} and any other
facts; other lines that it prints are passed on to the user. It exits at the end of its input.
`benchmarks/effdet_rival.py` is one.

NVIDIA published EfficientDet-D0 in TensorFlow 2. Its inference was timed with a different suppression than its AP was
measured with, and its "90 %" latency is the mean of the fastest nine tenths; the average latency is used here.
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
    # (GPU, devices, precision) -> images/s
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
    # A100, float16: batch size -> images/s
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
    """Returns NVIDIA's images/s for the same number of GPUs and precision: GPU -> rate; empty for other presets."""
    if not preset.startswith("d0"):
        return {}
    return {gpu: rate for (gpu, count, kind), rate in _TRAINING.items() if (count, kind) == (devices, precision)}


def inference_rates(preset: str, batch_size: int) -> dict[str, float]:
    """Returns NVIDIA's images/s for a batch size, on an A100 in float16: GPU -> rate; empty for other presets."""
    return {"A100": _INFERENCE[batch_size]} if preset.startswith("d0") and batch_size in _INFERENCE else {}


class Rival:
    """A running rival program."""

    def __init__(self, command: str):
        """Starts the program, which prepares itself in the background.

        Raises:
            UserError: the program cannot be started.
        """
        self._command = command
        try:
            self._process = subprocess.Popen(
                shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except (OSError, ValueError) as error:
            raise UserError(f"`--rival` is `{command}`, which cannot be started: {error}.") from error

    def measure(self) -> dict[str, Any]:
        """Has the program work once.

        Returns:
            Its answer: `rate` and other facts.

        Raises:
            UserError: the program has exited.
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
        raise UserError(f"`--rival` `{self._command}` exited with status {self._process.wait()}; check its output.")

    def close(self) -> None:
        """Closes the program's input, so that it exits; kills it after 30 s."""
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
    """Starts a rival if there is a command, and stops it after the block."""
    rival = Rival(command) if command else None
    try:
        yield rival
    finally:
        if rival is not None:
            rival.close()
