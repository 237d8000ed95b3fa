"""Do images explode after a short training from random weights? Trains several times and looks at every stage.

An image explodes where activations grow from layer to layer until the class logits are far above those of any image
that was trained on, and fills up with confident boxes. The sign that is counted: the largest class logit of the
validation images against that of the training images, and images full of confident boxes (`plausibility`).

    python benchmarks/explosion.py demo/records --output benchmarks/results/explosion-demo.json
    python benchmarks/explosion.py records/ --preset d0 --image-size 320 320 --batch-sizes 2 4 8 --seeds 0 1 \
      --output benchmarks/results/explosion-d0.json

The dataset is a converted one with the splits train and val. Finished runs stay in the output: the same command again
goes on, and other batch sizes, seeds or another KERAS_BACKEND are added. `--fixed 0` trains without the cure.
"""

import dataclasses
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from efficientdet import backend, presets
from efficientdet import config as configs
from efficientdet.benchmarks import report
from efficientdet.storage import files

_BOUND = 5.0
"""A validation image whose largest logit is this far above that of all training images has exploded."""


def main(
    records: Path,
    /,
    *,
    output: Path,
    preset: str = "demo",
    image_size: tuple[int, int] = (128, 128),
    batch_sizes: tuple[int, ...] = (2, 4, 8, 16),
    seeds: tuple[int, ...] = (0, 1),
    steps: int = 160,
    fixed: float | None = None,
    recalibrate: int | None = None,
    method: Literal["sgd", "adam"] | None = None,
) -> None:
    """Trains for each batch size and seed, and writes a row for each.

    Args:
        records: converted dataset with the splits train and val.
        output: JSON file to write, or to go on with.
        preset: model.
        image_size: height and width of the network input, px.
        batch_sizes: images an update.
        seeds: of weights, order and augmentation; one training for each batch size and seed.
        steps: updates of each training.
        fixed: `training.fixed_statistics`; none: what the run derives.
        recalibrate: `training.recalibrate_images`; none: what the run derives.
        method: `optimizer.method`; none: what the run derives.
    """
    backend.choose()
    knobs = {"fixed_statistics": fixed, "recalibrate_images": recalibrate}
    done = json.loads(output.read_text())["rows"] if output.is_file() else []
    for batch_size, seed in itertools.product(batch_sizes, seeds):
        settings = {
            "preset": preset,
            "backend": backend.running(),
            "image_size": list(image_size),
            "batch_size": batch_size,
            "seed": seed,
            "steps": steps,
            "method": method,
            **knobs,
        }
        if any(settings == row["settings"] for row in done):
            continue
        done.append({"settings": settings, **_run(records, settings)})
        table = {
            "what": "largest class logits, confident boxes and AP after short trainings from random weights",
            "bound": _BOUND,
            "exploded": sum(row["exploded"] for row in done),
            "rows": done,
            **report.circumstances(),
        }
        files.write_json(output, table)
        row = done[-1]
        print(
            f"batch {batch_size}, seed {seed}: AP50 {row['AP50']:.3f}, largest logit {row['validation']['logit']:.1f} "
            f"of validation, {row['training']['logit']:.1f} of training, {row['full_images']} full images",
            flush=True,
        )


def _run(records: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Trains once, and looks at the weights for use on validation and training images."""
    import efficientdet
    from efficientdet.training.logs import metrics

    start = presets.find_preset(settings["preset"])
    size = tuple(settings["image_size"])
    config = dataclasses.replace(
        start,
        model=dataclasses.replace(start.model, image_size=size, batch_norm_momentum=None),
        data=dataclasses.replace(start.data, train=str(records)),
        optimizer=configs.OptimizerConfig(method=settings["method"]),
        training=configs.TrainingConfig(
            batch_size=settings["batch_size"],
            epochs=(settings["steps"] - 0.5) * settings["batch_size"] / _num_examples(records),  # rounded up
            evaluate_every=0,
            seed=settings["seed"],
            fixed_statistics=settings["fixed_statistics"],
            recalibrate_images=settings["recalibrate_images"],
        ),
    )
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        summary = efficientdet.train(dataclasses.replace(config, run_dir=str(run)))
        validation, training = (_look(run, records, split, size) for split in ("val", "train"))
        full = _full_images(run, records)
        losses = [line["values"] for line in metrics.read_lines(run / "metrics.jsonl")]
    return {
        "AP": summary.metrics["AP"],
        "AP50": summary.metrics["AP50"],
        "class_loss": {"training": losses[-2]["class_loss"], "validation": summary.metrics["class_loss"]},
        "validation": validation,
        "training": training,
        "full_images": full,
        "exploded": bool(full or validation["logit"] > training["logit"] + _BOUND),
        "steps": summary.steps,
        "minutes": round((time.monotonic() - began) / 60, 1),
    }


def _num_examples(records: Path) -> int:
    from efficientdet.data.records import store as opened

    return len(opened.open_records(str(records), "train"))


def _look(run: Path, records: Path, split: str, size: tuple[int, int]) -> dict[str, Any]:
    """Finds the largest class logit of a split, and the largest absolute value of each stage on that image."""
    from efficientdet.data import pipeline
    from efficientdet.data.records import store as opened
    from efficientdet.model import weights
    from efficientdet.model.efficientdet import EfficientDet

    loaded = weights.load(run / "weights" / "last.safetensors")
    network = EfficientDet(loaded.model)
    weights.assign(network, loaded)
    chosen = opened.spread(opened.open_records(str(records), split), 256)
    largest, found = -np.inf, {}
    for batch, originals in pipeline.evaluation_batches(
        chosen, batch_size=16, categories=loaded.categories, image_size=size, resize=loaded.model.resize
    ):
        real = np.flatnonzero(np.asarray(originals["ids"]) >= 0)
        inputs = {name: np.asarray(batch[name])[real] for name in ("images", "valid_size")}
        logits = np.asarray(network(inputs)["class_logits"]).max(axis=(1, 2))
        if logits.max() > largest:
            largest, row = float(logits.max()), int(logits.argmax())
            found = {name: value[row : row + 1] for name, value in inputs.items()}
    return {"logit": round(largest, 3), "stages": _stages(network, found)}


def _stages(network: Any, inputs: dict[str, np.ndarray]) -> dict[str, float]:
    """Measures the largest absolute value behind each stage for one image."""

    def largest(x: Any) -> float:
        return round(float(np.abs(np.asarray(x)).max()), 2)

    x = network.normalize(inputs["images"], valid_size=inputs["valid_size"])
    found = {"normalized input": largest(x)}
    x = network.backbone.stem_norm(network.backbone.stem(x), training=False)
    found["stem"] = largest(x)
    for number, block in enumerate(network.backbone.blocks):
        x = block(x, training=False)
        found[f"block {number}"] = largest(x)
    features = network.backbone(network.normalize(inputs["images"], valid_size=inputs["valid_size"]), training=False)
    for level, x in enumerate(network.feature_network(features, training=False), start=3):
        found[f"feature network, P{level}"] = largest(x)
    return found


def _full_images(run: Path, records: Path) -> int:
    """Counts the validation images that are full of confident boxes."""
    from efficientdet.data.records import store as opened
    from efficientdet.evaluation import measuring
    from efficientdet.formats import loading

    runtime = loading.load_runtime(run)
    return len(measuring.evaluate_runtime(runtime, opened.open_records(str(records), "val")).watch.full)


if __name__ == "__main__":
    tyro.cli(main)
