"""How fast does a detector memorize a few photographs? The time and the steps until AP reaches a mark.

`efficientdet train PRESET --overfit N` as a user starts it: trained and evaluated on the first N images. Whether AP
comes near 1 depends on targets, losses, optimiser, post-processing and evaluation all being right, and on anchors small
enough for the objects. Writes as JSON how AP rose, how large the state is, steps, time, and processor time, since a
machine may be shared.

    python benchmarks/overfit.py records/ --output benchmarks/results/overfit.json

`records/` is a converted dataset (`efficientdet convert coco photographs/ --output records/`).
"""

import dataclasses
import json
import resource
import tempfile
import time
from pathlib import Path

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
    count: int = 8,
    mark: float = 0.9,
    image_size: tuple[int, int] = (320, 320),
    anchor_scale: float = 1.5,
    epochs: float = 150.0,
    evaluate_every: float = 15.0,
    learning_rate: float | None = None,
    seed: int = 0,
) -> None:
    """Trains, and writes how AP rose.

    Args:
        records: converted dataset; the first images of its training split are taken.
        output: JSON file to write.
        preset: model.
        backbone: what it starts from; empty: random weights.
        count: images.
        mark: AP to reach.
        image_size: height and width of the network input, px.
        anchor_scale: side of the smallest anchor in strides of its level.
        epochs: of the run, one step each.
        evaluate_every: epochs between evaluations.
        learning_rate: peak; none: what `overfit` takes.
        seed: of the weights.
    """
    backend.choose()
    import efficientdet
    from efficientdet.training.logs import metrics

    start = presets.find_preset(preset)
    config = dataclasses.replace(
        start,
        overfit=count,
        backbone=backbone,
        model=dataclasses.replace(start.model, image_size=image_size, anchor_scale=anchor_scale),
        data=dataclasses.replace(start.data, train=str(records)),
        optimizer=dataclasses.replace(start.optimizer, learning_rate=learning_rate),
        training=dataclasses.replace(start.training, epochs=epochs, evaluate_every=evaluate_every, seed=seed),
    )
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        summary = efficientdet.train(dataclasses.replace(config, run_dir=f"{folder}/run"))
        lines = metrics.read_lines(Path(folder) / "run" / "metrics.jsonl")
        checkpoints = [path.stat().st_size for path in (Path(folder) / "run" / "checkpoints").iterdir()]
    rows = [
        {"step": line["step"], "seconds": round(line["time"] - began, 1), "AP": line["values"]["AP"]}
        for line in lines
        if line["kind"] == "validation"
    ]
    used = resource.getrusage(resource.RUSAGE_SELF)
    table = {
        "what": f"AP of {preset} on the {count} images that it learns by heart",
        "reached": next((row for row in rows if (row["AP"] or 0.0) >= mark), None),
        "rows": rows,
        "best_AP": summary.best_ap,
        "metrics": summary.metrics,
        "steps": summary.steps,
        "seconds": round(summary.seconds, 1),
        "state_megabytes": round(max(checkpoints) / 1e6, 1),
        "settings": knobs.to_dict(
            dataclasses.replace(config, data=dataclasses.replace(config.data, train=records.name))
        ),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        **report.circumstances(),
    }
    files.write_json(output, table)
    print(json.dumps(rows))


if __name__ == "__main__":
    tyro.cli(main)
