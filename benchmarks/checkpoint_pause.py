"""How long does a checkpoint hold up training? Written by the step itself, and by a thread beside it.

A few steps of one model in turns: without a checkpoint, with one that is written before the next step, and with one
that is copied to memory and written in a thread. Writes the table as JSON.

    python benchmarks/checkpoint_pause.py --output benchmarks/results/checkpoint-pause.json
"""

import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro

from efficientdet import backend, presets
from efficientdet.benchmarks import report
from efficientdet.data import synthetic
from efficientdet.storage import files

_WAYS = ("none", "step", "thread")


def main(
    *, output: Path, preset: str = "d0", image_size: int = 128, batch_size: int = 2, steps: int = 4, rounds: int = 7
) -> None:
    """Measures and writes the table.

    Args:
        output: JSON file to write.
        preset: model; its size decides how large a checkpoint is.
        image_size: height and width of the network input, px.
        batch_size: images a step.
        steps: of one measurement, with one checkpoint after the first.
        rounds: measurements of each way.
    """
    backend.choose()
    from efficientdet.model import anchors
    from efficientdet.model.efficientdet import EfficientDet
    from efficientdet.training import schedule as schedules
    from efficientdet.training import step as training_step
    from efficientdet.training.distributed import engine, replicas
    from efficientdet.training.state import checkpoint
    from efficientdet.training.state.checkpoint_writer import CheckpointWriter

    config = presets.find_preset(preset)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, image_size=(image_size, image_size)))
    config, _ = schedules.derive(config, num_examples=1000)
    model = EfficientDet(config.model)
    schedule = {"peak": 0.01, "start": 0.01, "warmup_steps": 1.0, "total_steps": 1e6}
    step = training_step.make_step(model, anchors.anchor_boxes(config.model), config, schedule, replicas.OneDevice())
    compiled = backend.compile_function(step, donate=True)
    images = synthetic.batches(
        batch_size=batch_size, image_size=config.model.image_size, max_boxes=8, seed=0, num_classes=6, num_images=8
    )
    batch = engine.to_device(next(images)[0])
    state = engine.to_device(training_step.first_state(model))
    state, logs = compiled(state, batch)
    float(logs["loss"])  # compiled
    seconds: dict[str, list[float]] = {way: [] for way in _WAYS}
    pauses: dict[str, list[float]] = {way: [] for way in _WAYS}
    with tempfile.TemporaryDirectory(dir=output.parent) as name:
        folder = Path(name)
        with CheckpointWriter(folder, model, {}, keep=2) as writer:
            for _ in range(rounds):
                for way in _WAYS:
                    began = time.monotonic()
                    for number in range(steps):
                        state, logs = compiled(state, batch)
                        float(logs["loss"])
                        if number == 0:
                            asked = time.monotonic()
                            if way == "step":
                                checkpoint.save(folder, engine.to_host(state), model, {}, 2)
                            elif way == "thread":
                                writer.write(engine.to_host(state), {}, None)
                            pauses[way].append(time.monotonic() - asked)
                    seconds[way].append(time.monotonic() - began)
                    writer.wait()
        size = max(path.stat().st_size for path in folder.iterdir())
    table = {
        "what": f"seconds of {steps} steps with one checkpoint, and of the pause it made; medians",
        "checkpoint_bytes": size,
        "rows": {way: _row(seconds[way], pauses[way], statistics.median(seconds["none"])) for way in _WAYS},
        "settings": {"preset": preset, "image_size": image_size, "batch_size": batch_size, "rounds": rounds},
        **report.circumstances(),
    }
    files.write_json(output, table)
    print(json.dumps(table["rows"], indent=2))


def _row(seconds: list[float], pauses: list[float], without: float) -> dict[str, Any]:
    """Sums one way up."""
    median = statistics.median(seconds)
    return {
        "seconds": round(median, 3),
        "lost": round(median - without, 3),
        "pause": round(statistics.median(pauses), 4),
        "longest_pause": round(max(pauses), 4),
        "all_seconds": [round(value, 3) for value in seconds],
    }


if __name__ == "__main__":
    tyro.cli(main)
