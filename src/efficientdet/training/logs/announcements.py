"""What a run prints at the start: what it trains, derived values, that it is compiling, and the expected duration."""

import time
from collections.abc import Callable, Mapping

from efficientdet import backend
from efficientdet.config import ExperimentConfig
from efficientdet.training.dataset import Dataset
from efficientdet.training.distributed import processes

_LEAST_STEPS, _LEAST_SECONDS = 3, 10.0  # measured before a run estimates its duration


def describe(config: ExperimentConfig, dataset: Dataset, num_parameters: int, num_devices: int) -> str:
    """Summarizes the network, data and settings of a run in one line.

    Args:
        config: config of the run.
        dataset: the data it trains on.
        num_parameters: number of trainable parameters.
        num_devices: number of devices of all processes.
    """
    training, (height, width) = config.training, config.model.image_size
    return (
        f"{num_parameters:,} parameters, {len(dataset.categories)} classes, {height} x {width} px; "
        f"{dataset.num_examples} training and {dataset.num_validation} validation images; batch "
        f"{training.batch_size}, {training.epochs:g} epochs, {training.precision}, {backend.running()}"
        + (f", {num_devices} devices" if num_devices > 1 else "")
        + (f" in {processes.count()} processes" if processes.count() > 1 else "")
    )


def derived(values: Mapping[str, float | str]) -> str:
    """Lists the values derived from batch size, dataset and number of steps.

    Args:
        values: dotted name -> value.
    """
    texts = (f"{name} {value if isinstance(value, str) else format(value, '.4g')}" for name, value in values.items())
    return "derived from batch size and steps: " + ", ".join(texts)


def fixed(step: int) -> str:
    """Announces that batch statistics are constant from a step on, for which the step is compiled again."""
    return (
        f"batch statistics are fixed after step {step}: the rest of the run trains with the statistics used at "
        "inference; recompiling"
    )


class Forecast:
    """Announces that the first step is compiling and, after a few steps, how long the rest will take."""

    def __init__(self, total_steps: int, batch_size: int, say: Callable[[str], None]):
        """Announces that the step is being compiled.

        Args:
            total_steps: steps of the whole run.
            batch_size: images per step, over all devices.
            say: prints a line.
        """
        self._total_steps, self._batch_size, self._say = total_steps, batch_size, say
        self._created = time.monotonic()
        self._first_seconds: float | None = None
        self._measured_from: tuple[int, float] | None = None  # step, time
        self._is_done = False
        say("compiling the training step; this can take a minute or more")

    def advance(self, step: int) -> None:
        """Records that a step has been started; prints the forecast as soon as it is known."""
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
            f"the first step took {self._first_seconds:.0f} s; about {_duration(left)} left at {rate:.3g} images/s, "
            "not counting evaluations"
        )

    def leave_out(self) -> None:
        """Ignores the time since the last step, which went into something else, such as an evaluation."""
        self._measured_from = None


def _duration(seconds: float) -> str:
    """Formats a duration for people: 40 s, 12 min, 3.5 h, 2.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
