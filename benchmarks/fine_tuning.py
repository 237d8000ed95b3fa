"""Does an ImageNet backbone help on a few hundred photographs? Lite0 with it against Lite0 from random weights.

Both train on the same images in the same order for the same number of steps, with the settings that
docs/training.md recommends for a few hundred images; then they are evaluated on a split that neither training nor the
choice of the best weights saw. Writes the table as JSON.

    python benchmarks/fine_tuning.py records/ --output benchmarks/results/fine-tuning.json

`records/` is a converted dataset with the splits train, val and test, such as BCCD's
(`efficientdet convert voc bccd/ --output records/`).
"""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import tyro

from efficientdet import backend, knobs, presets
from efficientdet.benchmarks import report
from efficientdet.storage import files


def main(
    records: Path,
    /,
    *,
    output: Path,
    preset: str = "lite0",
    backbone: str = "imagenet",
    image_size: tuple[int, int] = (256, 320),
    batch_size: int = 8,
    epochs: float = 20.0,
    learning_rate: float = 0.03,
    seed: int = 0,
) -> None:
    """Trains twice and writes both results.

    Args:
        records: converted dataset with the splits train, val and test.
        output: JSON file to write.
        preset: model.
        backbone: what the second run starts from.
        image_size: height and width of the network input, px.
        batch_size: images a step.
        epochs: of each run.
        learning_rate: peak.
        seed: of both runs.
    """
    backend.choose()
    import efficientdet

    start = presets.find_preset(preset)
    config = dataclasses.replace(
        start,
        model=dataclasses.replace(start.model, image_size=image_size, batch_norm_momentum=0.9),
        data=dataclasses.replace(start.data, train=str(records)),
        augmentation=dataclasses.replace(start.augmentation, scale_min=0.5, scale_max=1.5),
        optimizer=dataclasses.replace(start.optimizer, learning_rate=learning_rate, average_decay=0.99),
        training=dataclasses.replace(
            start.training, batch_size=batch_size, epochs=epochs, evaluate_every=epochs / 4, seed=seed
        ),
    )
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, source in (("random", ""), (backbone, backbone)):
            run = dataclasses.replace(config, backbone=source, run_dir=f"{folder}/{name}")
            summary = efficientdet.train(run)
            found = efficientdet.evaluate(Path(run.run_dir), data=str(records), split="test")
            rows[name] = {
                "steps": summary.steps,
                "seconds": round(summary.seconds, 1),
                "validation_AP": summary.best_ap,
                "test": found.to_dict(),
            }
    table = {
        "what": "test AP after the same training, from random weights and from an ImageNet backbone",
        "rows": rows,
        "AP_gain": rows[backbone]["test"]["metrics"]["AP"] - rows["random"]["test"]["metrics"]["AP"],
        "settings": knobs.to_dict(config),
        **report.circumstances(),
    }
    files.write_json(output, table)
    print(json.dumps({name: row["test"]["metrics"]["AP"] for name, row in rows.items()}))


if __name__ == "__main__":
    tyro.cli(main)
