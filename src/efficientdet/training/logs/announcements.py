"""What a run says as it begins: what it trains, what it derived, that it compiles, and how long it will take."""

import time
from collections.abc import Callable, Mapping

from efficientdet import backend
from efficientdet.config import ExperimentConfig
from efficientdet.training.dataset import Dataset
from efficientdet.training.distributed import processes

_LEAST_STEPS, _LEAST_SECONDS = 3, 10.0  # measured before a run says how long it will take


def describe(config: ExperimentConfig, dataset: Dataset, num_parameters: int, num_devices: int) -> str:
    """Says in one line what is trained on what.

    Args:
        config: of the run.
        dataset: what it trains on.
        num_parameters: trainable numbers.
        num_devices: of all processes.
    """
    training, (height, width) = config.training, config.model.image_size
    return (
        f"{num_parameters:,} parameters, {len(dataset.categories)} classes, {height} x {width} px; "
        f"{dataset.num_examples} training and {dataset.num_validation} validation images; batch "
        f"{training.batch_size}, {training.epochs:g} epochs, {training.precision}, {backend.running()}"
        + (f", {num_devices} devices" if num_devices > 1 else "")
        + (f" of {processes.count()} processes" if processes.count() > 1 else "")
    )


def derived(values: Mapping[str, float | str]) -> str:
    """Says which values follow from batch, dataset and length.

    Args:
        values: dotted name -> value.
    """
    texts = (f"{name} {value if isinstance(value, str) else format(value, '.4g')}" for name, value in values.items())
    return "derived from batch size and steps: " + ", ".join(texts)


def fixed(step: int) -> str:
    """Says that batch statistics stay from a step on, for which the step is compiled again."""
    return (
        f"batch statistics are fixed after step {step}: the rest trains with those that inference uses; compiling again"
    )


class Forecast:
    """Says that the first step compiles and, after some steps, how long the rest takes."""

    def __init__(self, total_steps: int, batch_size: int, say: Callable[[str], None]):
        """Says that the step is being compiled.

        Args:
            total_steps: of the whole run.
            batch_size: images a step, over all devices.
            say: shows a line.
        """
        self._total_steps, self._batch_size, self._say = total_steps, batch_size, say
        self._created = time.monotonic()
        self._first_seconds: float | None = None
        self._measured_from: tuple[int, float] | None = None  # step, time
        self._is_done = False
        say("compiling the training step; that can take a minute or more")

    def advance(self, step: int) -> None:
        """Takes the number of the step that has just been started; says the forecast when it can be told."""
        now = time.monotonic()
        if self._first_seconds is None:
            self._first_seconds = now - self._created
        if self._is_done or self._measured_from is None:
            self._measured_from = (step, now)
            return
        steps, seconds = step - self._measured_from[0], now - self._measured_from[1]
        if steps < _LEAST_STEPS or seconds < _LEAST_SECONDS or step >= self._total_steps:
            return
        self._is_done = True
        rate = steps * self._batch_size / seconds
        left = (self._total_steps - step) * seconds / steps
        self._say(
            f"the first step took {self._first_seconds:.0f} s; about {_duration(left)} to go at {rate:.3g} images/s, "
            "evaluations not counted"
        )

    def leave_out(self) -> None:
        """Leaves out the time since the last step, in which something else was done, such as an evaluation."""
        self._measured_from = None


def _duration(seconds: float) -> str:
    """Writes a time for people: 40 s, 12 min, 3.5 h, 2.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
