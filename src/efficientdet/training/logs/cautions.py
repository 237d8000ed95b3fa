"""Warnings of a run at the start, during training and at the end; each is one line that says what to change.

AP measured on n images is accurate to about +-0.52 / sqrt(n) (95 %), from a bootstrap over generated images with AP
.37: +-.095 for 16, .068 for 64, .043 for 128, .026 for 400.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from efficientdet import backend
from efficientdet.config import ExperimentConfig, ModelConfig
from efficientdet.data.records import box_sample
from efficientdet.evaluation import plausibility
from efficientdet.model import anchors
from efficientdet.training.dataset import Dataset
from efficientdet.training.distributed import processes, replicas
from efficientdet.training.logs import metrics
from efficientdet.training.logs.divergence import LossTrend
from efficientdet.training.validation import ValidationResult

_AP_INTERVAL = 0.52
_WIDE = 0.05
"""Half-width of the AP interval above which the run warns: fewer than 109 images."""
_FEW_BOXES = 10
"""Number of validation boxes of a class below which its AP means little."""
_MANY_SMALL, _LEFT_SMALL = 0.10, 0.05
"""Share of training boxes too small for the anchors that triggers the warning, and the share the advice aims for."""
_SIDES = 128
"""Suggested image sizes are multiples of this, px: the stride of the coarsest level."""
_LARGER = 2.0
"""Largest factor by which a larger height and width is suggested: four times the memory and time."""
_LOWER_RATE = 3.0
_SHOWN = 10


class Cautions:
    """The warnings of one run."""

    def __init__(
        self,
        config: ExperimentConfig,
        dataset: Dataset,
        run_dir: Path,
        num_devices: int,
        say: Callable[[str], None],
    ):
        """Reads the losses before a resume from `metrics.jsonl`.

        Args:
            config: config of the run, with derived values.
            dataset: the data it trains on.
            run_dir: run folder; its `metrics.jsonl` has no lines beyond the step that the run resumes from.
            num_devices: number of devices of all processes.
            say: prints a line.
        """
        self._config, self._dataset, self._num_devices, self._say = config, dataset, num_devices, say
        self.said: list[str] = []
        """Warnings so far, for `summary.json`; of those about evaluations, only the last evaluation's."""
        self._of_last_evaluation: list[str] = []
        self._trend, self._has_diverged = LossTrend(), False
        self._last_loss: float | None = None
        before = 0
        for line in metrics.read_lines(run_dir / metrics.LINES_FILE) if processes.is_first() else ():
            loss = line["values"].get("loss")
            if line["kind"] == "train" and loss is not None:
                self._follow([loss] * (line["step"] - before))
                before = line["step"]

    def start(self) -> None:
        """Warns about what is known before the first step."""
        if not processes.is_first():
            return
        config, dataset = self._config, self._dataset
        lines = [backend.unused_gpu_build(), replicas.lone_values(config.model, config.training, self._num_devices)]
        if not config.overfit:
            lines += [_batch(config, dataset), _classes(dataset), _validation(config, dataset)]
            if dataset.train_records is not None:
                sample = box_sample.sample_boxes(dataset.train_records)
                lines.append(small_boxes(config.model, config.loss.match_iou, sample, dataset.num_examples))
        for line in filter(None, lines):
            self._warn(line)

    def trained(self, losses: Sequence[float]) -> None:
        """Follows the loss and warns once if it diverges.

        Args:
            losses: finite losses of the latest steps.
        """
        self._follow(losses)
        if self._trend.is_diverging and not self._has_diverged:
            self._has_diverged = True
            self._warn(self._describe_divergence())

    def evaluated(self, found: ValidationResult) -> None:
        """Warns of validation images full of confident boxes, and of a loss far above that of training."""
        before = [text for text in self.said if text not in self._of_last_evaluation]
        lines = [
            found.watch.warning(self._dataset.validation_name),
            plausibility.warn_of_losses(self._last_loss, found.losses["loss"]),
        ]
        self._of_last_evaluation = [line for line in lines if line]
        self.said = before
        for line in self._of_last_evaluation:
            self._warn(line)

    def ending(self) -> str:
        """Returns a note for the run's last line if the loss diverged; empty if it did not or recovered."""
        if not self._trend.is_high:
            return ""
        if not self._has_diverged:
            self._warn(self._describe_divergence())
        return f"; the loss diverged: {self._trend.level:.3g} at the end, up from a low of {self._trend.lowest:.3g}"

    def _follow(self, losses: Sequence[float]) -> None:
        for loss in losses:
            self._trend.add(loss)
        if losses:
            self._last_loss = float(np.mean(losses))

    def _describe_divergence(self) -> str:
        rate = self._config.optimizer.learning_rate
        assert rate is not None, "`schedule.derive` comes first"
        return (
            f"the training loss is diverging: {self._trend.level:.3g} over the last steps, up from a low of "
            f"{self._trend.lowest:.3g}. Start a new run with `--optimizer.learning-rate {rate / _LOWER_RATE:.2g}` (a "
            "third of this run's) and a new `--run-dir`."
        )

    def _warn(self, text: str | None) -> None:
        if text and processes.is_first():
            self.said.append(text)
            self._say(f"warning: {text}")


def _batch(config: ExperimentConfig, dataset: Dataset) -> str | None:
    """Warns if the batch is larger than the training set."""
    batch_size, number = config.training.batch_size, dataset.num_examples
    if batch_size <= number:
        return None
    steps = max(math.ceil(config.training.epochs * number / batch_size), 1)
    advised = 2 ** int(math.log2(max(number // 2, 1)))
    return (
        f"`training.batch_size` is {batch_size}, more than the {number} training images: each update sees every image "
        f"{batch_size / number:.1f} times, and the whole run is only {_counted(steps, 'update')}. Use "
        f"`--training.batch-size {advised}` and enough `--training.epochs` for a few hundred updates."
    )


def _classes(dataset: Dataset) -> str | None:
    """Warns about classes without training boxes."""
    counts = None if dataset.train_records is None else dataset.train_records.boxes_per_class
    missing = [c.name for c, count in zip(dataset.categories, counts or (), strict=False) if not count]
    if not missing:
        return None
    verb = "has" if len(missing) == 1 else "have"
    return (
        f"{len(missing)} of {len(dataset.categories)} classes {verb} no training boxes and will never be detected: "
        f"{_listed(missing)}. Add images of them, or convert the dataset without these classes."
    )


def _validation(config: ExperimentConfig, dataset: Dataset) -> str | None:
    """Warns if the validation data have no boxes, or too few for a reliable AP."""
    records, number = dataset.validation_records, dataset.num_validation
    if records is None:
        return None
    if not records.num_boxes:
        return (
            f"the {_counted(number, 'validation image')} have no boxes: losses are computed, but AP stays `-` and "
            "weights/best is not written. Pass data with boxes (`--data.validation`) or turn validation off "
            "(`--data.validation none`)."
        )
    half, texts = _AP_INTERVAL / math.sqrt(number), []
    if half > _WIDE:
        texts.append(
            f"AP on {_counted(number, 'validation image')} may be off by {100 * half:.0f} points; the interval "
            "next to AP shows the actual margin, and smaller differences mean nothing"
        )
    whole = number == len(records)
    counts = zip(records.categories, records.boxes_per_class or (), strict=False) if whole else ()
    few = [f"{category.name} ({count})" for category, count in counts if count < _FEW_BOXES]
    if few:
        texts.append(f"AP of classes with fewer than {_FEW_BOXES} validation boxes means little: {_listed(few)}")
    if not texts:
        return None
    more = "convert with a larger `--val-fraction`" if whole else "raise `--evaluation.max-images`"
    return f"{'; '.join(texts)}. For a more precise AP, {more}, or pass more images with `--data.validation`."


def small_boxes(model: ModelConfig, match_iou: float, sample: box_sample.BoxSample, num_examples: int) -> str | None:
    """Warns about training boxes that are too small for the anchors: their IoU with every anchor is below `match_iou`.

    Each still gets the one anchor that it overlaps most (`targets`), but is hard to learn.

    Args:
        model: `image_size`, `anchor_scale`, `aspect_ratios`, `min_level`.
        match_iou: lowest IoU of a match.
        sample: sample of the training boxes.
        num_examples: number of training images.

    Returns:
        The warning if at least a tenth of the boxes are too small, else None.
    """
    areas = sample.areas(model.image_size)
    anchor = _smallest_anchor(model)
    is_small = areas < match_iou * anchor**2
    if not len(areas) or is_small.mean() < _MANY_SMALL:
        return None
    # The factor between box and anchor sides that leaves the intended share.
    factor = anchor * math.sqrt(match_iou / max(np.quantile(areas, _LEFT_SMALL), 1e-9))
    advice = []
    if factor <= _LARGER:
        larger = (math.ceil(side * factor / _SIDES) * _SIDES for side in model.image_size)
        advice.append("`--model.image-size {} {}`".format(*larger))
    scale = math.floor(10 * model.anchor_scale / factor) / 10
    if scale >= 1:
        advice.append(f"`--model.anchor-scale {scale:g}`")
    images = f" in a sample of {sample.num_images} images" if sample.num_images < num_examples else ""
    return (
        f"{is_small.mean():.0%} of the training boxes{images} are too small for the anchors: at "
        f"{model.image_size[0]} x {model.image_size[1]} px they cover less than {match_iou:.0%} of the smallest anchor "
        f"({anchor:.0f} x {anchor:.0f} px). "
        + (f"{' or '.join(advice)} would leave about {_LEFT_SMALL:.0%}." if advice else "Cut the images into tiles.")
    )


def _smallest_anchor(model: ModelConfig) -> float:
    """Computes the side of a square with the area of the smallest anchor, px."""
    rows, columns = anchors.feature_sizes(model.image_size, model.min_level)[-1]
    strides = model.image_size[0] / rows * model.image_size[1] / columns
    return model.anchor_scale * math.sqrt(strides * min(width * height for width, height in model.aspect_ratios))


def _listed(names: Sequence[str]) -> str:
    others = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {others} more" if others > 0 else "")


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
