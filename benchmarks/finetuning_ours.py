"""Our side of the comparison with effdet (finetuning_compare.py): one training as a user starts it, in this process.

    python benchmarks/finetuning_ours.py JOB.json RESULT.json

A job is JSON: `task` is `train` or `features`, the rest are the arguments of that function. After training, the weights
are evaluated as the run wrote them, and in two other ways that show where the AP comes from:

    averages                 the averaged weights with measured batch statistics: weights/last of the run
    last weights             the weights of the last step, batch statistics measured likewise
    statistics of the steps  the averaged weights with batch statistics averaged over the steps
"""

import dataclasses
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

import efficientdet
from efficientdet import backend, presets
from efficientdet import config as configs
from efficientdet.storage import files
from efficientdet.training.logs import metrics
from efficientdet.training.state import run_directory

HEADLINE = "averages"


def main() -> None:
    """Does what the job says."""
    job = json.loads(Path(sys.argv[1]).read_text())
    backend.choose()
    files.write_json(Path(sys.argv[2]), {"train": train, "features": features}[job.pop("task")](**job))


def configure(
    *,
    records: str,
    preset: str,
    backbone: str,
    image_size: tuple[int, int],
    batch_size: int,
    steps: int,
    warm_steps: int,
    rate: float | None,
    method: Literal["sgd", "adam"] | None,
    scales: tuple[float, float],
    seed: int,
    run_dir: str,
    num_examples: int,
) -> configs.ExperimentConfig:
    """Makes the configuration: what docs/training.md recommends for a few hundred images, the rest as it comes.

    Args:
        records: converted dataset.
        preset: model.
        backbone: what it starts from.
        image_size: height and width of the network input, px.
        batch_size: images a step.
        steps: of the run.
        warm_steps: steps at the start that the speed is also given without.
        rate: peak of the learning rate; None: derived from batch and steps.
        method: optimiser; None: what the run derives.
        scales: smallest and largest scale of a training image.
        seed: of weights, order and augmentation.
        run_dir: run directory.
        num_examples: training images.
    """
    start = presets.find_preset(preset)
    return dataclasses.replace(
        start,
        backbone=backbone,
        run_dir=run_dir,
        model=dataclasses.replace(start.model, image_size=tuple(image_size)),
        data=dataclasses.replace(start.data, train=records, validation="none"),
        augmentation=dataclasses.replace(start.augmentation, scale_min=scales[0], scale_max=scales[1]),
        optimizer=dataclasses.replace(start.optimizer, learning_rate=rate, method=method),
        training=dataclasses.replace(
            start.training,
            batch_size=batch_size,
            epochs=(steps - 0.5) * batch_size / num_examples,  # rounded up to whole steps
            evaluate_every=0,
            log_every=warm_steps,
            seed=seed,
        ),
    )


def train(*, split: str, **settings: Any) -> dict[str, Any]:
    """Trains once and evaluates.

    Args:
        split: that AP is measured on.
        settings: of `configure`.
    """
    config = configure(**settings)
    began = time.monotonic()
    used = resource.getrusage(resource.RUSAGE_SELF)
    summary = efficientdet.train(config)
    seconds, then = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF)
    assert summary.steps == settings["steps"], summary
    folder = Path(config.run_dir)
    paths = {HEADLINE: folder / "weights" / "last.safetensors", **write_variants(folder)}
    found = {name: efficientdet.evaluate(path, data=config.data.train, split=split) for name, path in paths.items()}
    written = json.loads((folder / run_directory.CONFIG).read_text())
    lines = metrics.read_lines(folder / metrics.LINES_FILE)
    rates = [line["values"]["images_per_second"] for line in lines if line["kind"] == "train"]
    return {
        **speed(rates, settings["warm_steps"], settings["steps"], settings["batch_size"]),
        "minutes": seconds / 60,
        "processor_seconds_a_step": (then.ru_utime + then.ru_stime - used.ru_utime - used.ru_stime) / summary.steps,
        "AP": {name: {split: short(each)} for name, each in found.items()},
        "peak_rate": settings["rate"] or written["derived"]["optimizer.learning_rate"],
        "loss": next(line["values"]["loss"] for line in reversed(lines) if line["kind"] == "train"),
    }


def speed(rates: list[float], window: int, steps: int, batch_size: int) -> dict[str, float]:
    """Turns the rates of windows of steps into those of the run.

    Args:
        rates: images/s of each window; the last one may be shorter.
        window: steps.
        steps: of the run.
        batch_size: images a step.
    """
    counts = [min(window, steps - window * number) for number in range(len(rates))]
    seconds = [count * batch_size / rate for count, rate in zip(counts, rates, strict=True)]
    return {
        "images_per_second": sum(counts[1:]) * batch_size / sum(seconds[1:]),
        "images_per_second_with_start": sum(counts) * batch_size / sum(seconds),
    }


def short(found: Any) -> dict[str, float]:
    """Takes AP and AP50 out of an evaluation."""
    return {name: found.metrics[name] for name in ("AP", "AP50")}


def write_variants(folder: Path) -> dict[str, Path]:
    """Writes other weights of a run that is done, from its last checkpoint; returns the files."""
    from efficientdet.model import weights
    from efficientdet.model.efficientdet import EfficientDet
    from efficientdet.training import batch_statistics, schedule
    from efficientdet.training.dataset import open_dataset
    from efficientdet.training.distributed import engine
    from efficientdet.training.state import checkpoint

    config = configs.load(folder / run_directory.CONFIG)
    dataset = open_dataset(config)
    config, _ = schedule.derive(config, dataset.num_examples)
    model = EfficientDet(config.model)
    state, _ = checkpoint.load(checkpoint.latest(folder / "checkpoints"), model)
    recalibrate = batch_statistics.Recalibration(model, config.training, dataset)
    last = [engine.to_device(state[name]) for name in ("trainable", "non_trainable")]
    values = {
        "last weights": [*state["trainable"], *engine.to_host(recalibrate(*last))],
        "statistics of the steps": [*state["average_trainable"], *state["average_non_trainable"]],
    }
    paths = {}
    for name, arrays in values.items():
        paths[name] = folder / "weights" / f"{name.replace(' ', '-')}{weights.SUFFIX}"
        weights.save(paths[name], weights.named(model, arrays), config.model, dataset.categories, config.postprocess)
    return paths


def features(*, preset: str, backbone: str, image: str, output: str) -> dict[str, Any]:
    """Writes what the backbone that our training starts from answers to an image.

    Args:
        preset: model.
        backbone: what it starts from.
        image: .npy, float32[1, 3, H, W], normalised.
        output: .npz to write: level_3 to level_5, float32[1, D, h, w].
    """
    from keras import ops

    from efficientdet.model.efficientdet import EfficientDet
    from efficientdet.training.beginning import initialization

    config = dataclasses.replace(presets.find_preset(preset), backbone=backbone)
    model = EfficientDet(config.model)
    initialization.assign_start(model, initialization.find_start(config), ())
    pixels = ops.convert_to_tensor(np.load(image).transpose(0, 2, 3, 1))
    levels = [ops.convert_to_numpy(level).transpose(0, 3, 1, 2) for level in model.backbone(pixels, training=False)]
    np.savez(output, **{f"level_{number}": level for number, level in enumerate(levels, start=3)})
    return {}


if __name__ == "__main__":
    main()
