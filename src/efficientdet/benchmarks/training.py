"""`efficientdet benchmark train`: speed of training, of the step alone or fed by the input pipeline.

A turn runs a few whole updates (forward, losses, backward, clipping, momentum, weight average) and waits for the last
one. Turns of the candidates, and of a rival if there is one, alternate. The step alone has its batch on the device
already; with records it takes batches from the pipeline, as a run does, and measures how long it waits for them.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from efficientdet import backend, presets, progress
from efficientdet.benchmarks import accelerator, report, rivals, timing
from efficientdet.config import Depthwise, ExperimentConfig, Precision, Switch
from efficientdet.errors import UserError
from efficientdet.result import Result
from efficientdet.storage import files

_EXAMPLES = 1000  # assumed number of training images for derived settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSpeed(Result):
    """Training speed of each candidate and of a rival."""

    rows: tuple[dict[str, Any], ...]
    """One per candidate: preset, image_size, batch_size, precision, depthwise, backend, devices, images_per_second
    {min, median, max}, first_turn_seconds, peak_memory_mb of the process, device_memory_mb, published (NVIDIA's rates),
    and with records input_wait."""
    rival: dict[str, Any] | None
    ratios: dict[str, dict[str, float]]
    """Our rate over the rival's, min, median and max over the rounds."""
    circumstances: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Converts the result to plain JSON values."""
        return {
            "what": f"training, images per second, on {report.device()}",
            "rows": list(self.rows),
            "rival": self.rival,
            "ratios": self.ratios,
            **self.circumstances,
        }

    def table(self) -> Any:
        """Returns a rich table for the terminal."""
        from rich.table import Table

        table = Table(box=None, pad_edge=False, title=f"Training on {report.device()}", title_justify="left")
        for name in (
            "model",
            "px",
            "batch",
            "precision",
            "depthwise",
            "images/s",
            "min to max",
            "waits for input",
            "MB",
        ):
            table.add_column(name, justify="left" if name in ("model", "precision", "depthwise") else "right")
        for row in self.rows:
            speed, wait = row["images_per_second"], row.get("input_wait")
            memory = row["device_memory_mb"] or row["peak_memory_mb"]
            table.add_row(
                row["preset"],
                "x".join(map(str, row["image_size"])),
                str(row["batch_size"]),
                row["precision"],
                row["depthwise"],
                f"{speed['median']:.3g}",
                f"{speed['min']:.3g} to {speed['max']:.3g}",
                "" if wait is None else f"{100 * wait:.0f} %",
                "" if memory is None else f"{memory:.0f}",
            )
        if self.rival is not None:
            speed = self.rival["images_per_second"]
            table.add_row(
                "rival", "", "", "", "", f"{speed['median']:.3g}", f"{speed['min']:.3g} to {speed['max']:.3g}"
            )
        for name, value in self.ratios.items():
            table.add_row(name, "", "", "", "", f"{value['median']:.3g}", f"{value['min']:.3g} to {value['max']:.3g}")
        return table


def benchmark_train(
    records: Path | None = None,
    /,
    *,
    preset: str = "d0",
    image_size: tuple[int, int] | None = None,
    batch_sizes: tuple[int, ...] = (4,),
    precisions: tuple[Precision, ...] = ("float32",),
    devices: int = 0,
    xla: Switch = "auto",
    depthwise: tuple[Depthwise, ...] = ("auto",),
    steps: int = 2,
    rounds: int = 7,
    warmup: int = 2,
    boxes: int = 8,
    rival: str = "",
    output: Path | None = None,
) -> TrainingSpeed:
    """Measures training speed for every batch size and precision, in turns.

    Args:
        records: converted dataset to train on through the input pipeline; default: one generated batch that stays on
            the device, to measure the step alone.
        preset: model or recipe.
        image_size: height and width of the network input, px; default: the preset's own.
        batch_sizes: images per update, over all devices.
        precisions: data types inside the network.
        devices: number of devices; 0: all GPUs, or one CPU.
        xla: auto, on or off.
        depthwise: how depthwise convolutions are computed: as in `train` (auto), by the backend's own convolution, as
            sums of products (shifts), or with JAX on a GPU by our own kernels (pallas).
        steps: updates per turn.
        rounds: number of measured turns of each candidate.
        warmup: number of warm-up turns before the measured ones.
        boxes: maximum number of boxes on a generated image.
        rival: command of a program to compare with at the first batch size and precision, such as
            `.venv-parity/bin/python benchmarks/effdet_rival.py train`; image size, batch size and precision are added.
        output: JSON file to write.

    Returns:
        The rates, memory, and ratios.

    Raises:
        UserError: an argument is invalid, or the rival exited.
    """
    _check(batch_sizes, steps, rounds)
    accelerator.check_depthwise(depthwise)
    start = presets.find_preset(preset)
    if output is not None:
        files.check_writable(output)
    candidates = []
    for precision in precisions:
        for batch_size in batch_sizes:
            model = dataclasses.replace(start.model, image_size=image_size or start.model.image_size)
            training = dataclasses.replace(
                start.training, batch_size=batch_size, precision=precision, devices=devices, xla=xla
            )
            config = dataclasses.replace(start, model=model, training=training)
            candidates += [_Candidate(config, records, steps, boxes, method) for method in depthwise]
    command = _rival_command(rival, candidates[0].config, steps) if rival else ""
    with rivals.started(command) as other, progress.track("measure", (warmup + rounds) * len(candidates)) as bar:
        measures: dict[str, Callable[[], float]] = {}
        for number, candidate in enumerate(candidates):
            measures[str(number)] = _counted(candidate.measure, bar)
        answers: list[dict[str, Any]] = []
        if other is not None:

            def measure_rival() -> float:
                answers.append(other.measure())
                return float(answers[-1]["rate"])

            measures["rival"] = measure_rival
        rates = timing.in_turns(measures, rounds, warmup=warmup)
    rows = tuple(candidate.row(rates[str(number)], warmup) for number, candidate in enumerate(candidates))
    facts, ratios = None, {}
    if other is not None:
        facts = {"command": rival, "images_per_second": timing.spread(rates["rival"]), **_without_rate(answers[-1])}
        # The first candidates have the rival's batch size and precision and differ only in `depthwise`.
        ours = max((rates[str(number)] for number in range(len(depthwise))), key=statistics.median)
        ratios = {_ratio_name(): timing.ratio(ours, rates["rival"])}
    found = TrainingSpeed(rows=rows, rival=facts, ratios=ratios, circumstances=report.circumstances())
    if output is not None:
        files.write_json(output, found.to_dict())
    return found


class _Candidate:
    """One model, batch size and precision, ready to train."""

    def __init__(self, config: ExperimentConfig, records: Path | None, steps: int, boxes: int, depthwise: Depthwise):
        """Builds the model; its step is compiled in its first turn."""
        from efficientdet.kernels import choice
        from efficientdet.model import anchors
        from efficientdet.model.efficientdet import EfficientDet
        from efficientdet.training import schedule
        from efficientdet.training import step as training_step
        from efficientdet.training.distributed import replicas

        self.name = config.preset
        self._steps, self._waits, self._seconds = steps, [0.0], [0.0]
        batches, config = _batches(config, records, boxes)
        config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, method="sgd"))
        config, _ = schedule.derive(config, _EXAMPLES)
        self.config = config
        self._replicas = replicas.make_replicas(config.training)
        accelerator.check_depthwise([depthwise], devices=self._replicas.count)
        self._depthwise = choice.find_depthwise(depthwise, self._replicas.count)
        policy = backend.use_precision(config.training.precision)
        model = EfficientDet(config.model, precision=policy, kernels=self._replicas.kernels(self._depthwise))
        self._replicas.keep_state_of(model)
        # A learning rate this small keeps random weights finite.
        rates = {"peak": 1e-4, "start": 1e-4, "warmup_steps": 1.0, "total_steps": 1e6}
        self._state = self._replicas.place_state(training_step.first_state(model))
        self._step = self._replicas.compile(
            training_step.make_step(model, anchors.anchor_boxes(config.model), config, rates, self._replicas),
            xla=config.training.xla,
        )
        if records is None:
            on_device = self._replicas.place_batch(next(batches))
            self._next: Callable[[], Any] = lambda: on_device
        else:
            self._next = lambda: self._replicas.place_batch(next(batches))
        self._has_input = records is not None
        self._first_step: float | None = None

    def measure(self) -> float:
        """Runs the updates of one turn; returns images/s."""
        backend.use_precision(self.config.training.precision)  # TF32 is global state of the backend
        waited, began = 0.0, time.perf_counter()
        logs: dict[str, Any] = {}
        for _ in range(self._steps):
            asked = time.perf_counter()
            batch = self._next()
            waited += time.perf_counter() - asked
            self._state, logs = self._step(self._state, batch)
        float(self._replicas.first(logs)["loss"])  # waits until the last one is done
        seconds = time.perf_counter() - began
        if self._first_step is None:
            self._first_step = seconds
        self._waits.append(waited)
        self._seconds.append(seconds)
        return self._steps * self.config.training.batch_size / seconds

    def row(self, rates: list[float], warmup: int) -> dict[str, Any]:
        """Summarizes the measured turns."""
        from efficientdet.training.logs import memory

        training = self.config.training
        values = {
            "preset": self.name,
            "image_size": list(self.config.model.image_size),
            "batch_size": training.batch_size,
            "precision": training.precision,
            "depthwise": self._depthwise,
            "backend": backend.running(),
            "devices": self._replicas.count,
            "images_per_second": timing.spread(rates),
            "first_turn_seconds": round(self._first_step or 0.0, 1),
            "peak_memory_mb": memory.resident_peak(),
            "device_memory_mb": memory.device_peak(),
            "published": rivals.training_rates(self.name, training.precision, self._replicas.count),
        }
        if self._has_input:
            values["input_wait"] = round(sum(self._waits[1 + warmup :]) / sum(self._seconds[1 + warmup :]), 4)
        return values


def _batches(config: ExperimentConfig, records: Path | None, boxes: int) -> tuple[Iterator[Any], ExperimentConfig]:
    """Opens the data of a candidate; with records, the number of classes comes from them."""
    from efficientdet.data import synthetic

    if records is None:
        classes = len(synthetic.CATEGORIES)
        images = synthetic.batches(
            batch_size=config.training.batch_size,
            image_size=config.model.image_size,
            max_boxes=boxes,
            seed=0,
            num_classes=classes,
            num_images=max(8, config.training.batch_size),
        )
        # Keeps the preset's number of classes, which published speeds are for.
        return (batch for batch, _ in images), config
    from efficientdet.training import dataset

    config = dataclasses.replace(config, data=dataclasses.replace(config.data, train=str(records), validation="none"))
    opened = dataset.open_dataset(config)
    model = dataclasses.replace(config.model, num_classes=len(opened.categories))
    return (batch for batch, _ in opened.training_batches(0, 10**6)), dataclasses.replace(config, model=model)


def _check(batch_sizes: tuple[int, ...], steps: int, rounds: int) -> None:
    if not batch_sizes or min(batch_sizes) < 1:
        raise UserError(f"`--batch-sizes` is {batch_sizes}; each must be at least 1.")
    for name, value in (("steps", steps), ("rounds", rounds)):
        if value < 1:
            raise UserError(f"`--{name}` is {value}; it must be at least 1.")


def _rival_command(command: str, config: ExperimentConfig, steps: int) -> str:
    """Returns the command for a rival with the settings of the first candidate."""
    height, width = config.model.image_size
    precision = config.training.precision.removeprefix("mixed_")
    return (
        f"{command} --image-size {height} {width} --batch-size {config.training.batch_size} "
        f"--precision {precision} --calls {steps}"
    )


def _ratio_name() -> str:
    return f"train_{'gpu' if report.accelerators() else 'cpu'}_vs_effdet"


def _counted(measure: Callable[[], float], bar: Any) -> Callable[[], float]:
    def measure_and_count() -> float:
        rate = measure()
        bar.advance(note=f"{rate:.3g} images/s")
        return rate

    return measure_and_count


def _without_rate(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in ("rate", "seconds")}
