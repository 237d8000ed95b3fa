"""The command `evaluate`: compares a model, or a file of detections, with the ground truth of a dataset."""

from __future__ import annotations

from pathlib import Path

from efficientdet import backend, errors, progress
from efficientdet.config import Precision, RuntimeName, Switch
from efficientdet.data.records import store
from efficientdet.errors import UserError
from efficientdet.evaluation import counting, plausibility, results
from efficientdet.formats import loading
from efficientdet.storage import files

_METRICS_FILE = "metrics.json"


def evaluate(
    weights: Path,
    /,
    *,
    data: str,
    split: str = "",
    image_size: tuple[int, int] | None = None,
    batch_size: int = 8,
    max_images: int = 0,
    precision: Precision = "float32",
    runtime: RuntimeName = "auto",
    xla: Switch = "auto",
    output: Path | None = None,
    results_name: str = "detections.json",
) -> counting.EvaluationResult:
    """Measures COCO AP on a dataset, for weights (with the same post-processing as `predict`) or for detections.

    Images without ground truth (COCO's test-dev) yield no metrics; use `output` to write the file for COCO's server.

    Args:
        weights: weights file, run folder (its best weights), a published name such as coco-d0, or an export. Or a
            .json file of detections in COCO's results format from any detector; in that case no model runs.
        data: converted dataset, or glob of TFRecord files.
        split: split of a converted dataset; empty: val, else test, else the only one.
        image_size: height and width of the network input, px; default: that of the weights.
        batch_size: images per batch.
        max_images: evaluate only the first N images; 0: all.
        precision: data type inside the network.
        runtime: runtime for weights, as in `predict`; auto: OpenVINO on a CPU if installed, else Keras.
        xla: compile with XLA (Keras only); auto: on a GPU.
        output: folder for metrics.json and detections.json (COCO's results format).
        results_name: file name instead of detections.json; COCO's server expects
            detections_test-dev2017_NAME_results.json.

    Returns:
        The 12 COCO metrics, and AP of each class.

    Raises:
        UserError: weights or data cannot be used, their classes differ, the file is not a list of detections for the
            images and classes of the data, or a model option was set for detections.
    """
    from efficientdet.data.records import tfrecord

    if Path(weights).suffix == ".json" and not Path(weights).is_dir():
        of_model = {"image_size": image_size, "batch_size": batch_size, "precision": precision, "runtime": runtime}
        unused = {**of_model, "xla": xla, "results_name": results_name}
        errors.refuse(evaluate, unused, f"`{weights}` contains detections, so no model runs")
        return _evaluate_detections(Path(weights), data=data, split=split, max_images=max_images, output=output)
    if batch_size < 1:
        raise UserError(f"`batch_size` is {batch_size}; it must be at least 1.")
    results.check_name(results_name, output, _METRICS_FILE)
    _check_max_images(max_images)
    if output is not None:
        for name in (_METRICS_FILE, results_name):
            files.check_writable(output / name)
    backend.require_tensorflow("`data` from records")
    opened = store.open_records(data, split or store.choose_split(data), may_lack_boxes=output is not None)
    loaded = loading.load_runtime(weights, runtime=runtime, image_size=image_size, precision=precision, xla=xla)
    evaluator = evaluate_runtime(loaded, opened, batch_size=batch_size, max_images=max_images)
    result = evaluator.result()
    for warning in (
        evaluator.watch.warning(lambda position: tfrecord.file_name(store.read(opened, position))),
        plausibility.warn_of_losses(*plausibility.read_losses(Path(weights))),
    ):
        if warning:
            progress.console.print(f"warning: {warning}", soft_wrap=True, markup=False)
    if output is not None:
        files.write_json(output / _METRICS_FILE, result.to_dict())
        results.write(output / results_name, evaluator.coco_results())
    return result


def evaluate_runtime(
    runtime: loading.Runtime, opened: store.Records, *, batch_size: int = 8, max_images: int = 0
) -> counting.CocoEvaluator:
    """Runs a runtime on every image of a split.

    Args:
        runtime: loaded weights or export.
        opened: the split.
        batch_size: images per batch.
        max_images: use only the first N images; 0: all.

    Returns:
        The evaluator, ready to compute metrics.

    Raises:
        UserError: a record is damaged, or its classes differ from the runtime's.
    """
    from efficientdet.data import pipeline

    # Records from other tools that have no boxes don't tell which classes the dataset has.
    evaluator = counting.CocoEvaluator(runtime.categories, opened.categories or runtime.categories)
    batches = pipeline.evaluation_batches(
        opened,
        categories=runtime.categories,
        image_size=runtime.image_size,
        resize=runtime.resize,
        batch_size=batch_size,
        max_images=max_images,
    )
    with progress.track(f"evaluate on {opened.name}", min(len(opened), max_images or len(opened))) as bar:
        for batch, originals in batches:
            found = runtime.detect(batch["images"], batch["valid_size"])
            evaluator.add(originals, counting.to_originals(found, originals))
            bar.advance(int((originals["ids"] >= 0).sum()))
    return evaluator


def _check_max_images(number: int) -> None:
    if number < 0:
        raise UserError(f"`max_images` is {number}; it must be at least 1, or 0 for all.")


def _evaluate_detections(
    detections: Path, *, data: str, split: str, max_images: int, output: Path | None
) -> counting.EvaluationResult:
    """Evaluates detections in COCO's results format from any detector."""
    from efficientdet.data import pipeline

    _check_max_images(max_images)
    if output is not None:
        files.check_writable(output / _METRICS_FILE)
    backend.require_tensorflow("`data` from records")
    opened = store.open_records(data, split or store.choose_split(data))
    evaluator = counting.CocoEvaluator(opened.categories)
    with progress.track("read ground truth", min(len(opened), max_images or len(opened))) as bar:
        for originals in pipeline.truth_batches(opened, max_images=max_images):
            evaluator.add_truth(originals)
            bar.advance(int((originals["ids"] >= 0).sum()))
    image_ids, category_ids = evaluator.image_ids, [category.id for category in opened.categories]
    evaluator.add_coco_results(results.read(detections, image_ids, category_ids))
    result = evaluator.result()
    if output is not None:
        files.write_json(output / _METRICS_FILE, result.to_dict())
    return result
