"""What a run warns of: at the start, on the way, at the end; each in one line that says what to change.

AP of n images is known to about +-0.52 / sqrt(n) (95 %), by a bootstrap over generated images with AP .37: +-.095 for
16, .068 for 64, .043 for 128, .026 for 400.
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
"""Half of an interval of AP from which on the run says so: below 109 images."""
_FEW_BOXES = 10
"""Validation boxes of a class below which its AP means little."""
_MANY_SMALL, _LEFT_SMALL = 0.10, 0.05
"""Share of training boxes too small for the anchors that is said, and the share that the advice aims at."""
_SIDES = 128
"""Image sizes that are advised are multiples of it, px: the stride of the coarsest level."""
_LARGER = 2.0
"""The most by which a larger image is advised in height and width: four times the memory and time."""
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
        """Takes up what `metrics.jsonl` has of the steps before a resume.

        Args:
            config: of the run, with derived values.
            dataset: what it trains on.
            run_dir: its `metrics.jsonl` has no line beyond the step that the run goes on from.
            num_devices: of all processes.
            say: shows a line.
        """
        self._config, self._dataset, self._num_devices, self._say = config, dataset, num_devices, say
        self.said: list[str] = []
        """What was said so far, of the evaluations only the last, for `summary.json`."""
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
        """Says what can be known before the first step."""
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
        """Follows the loss; says once that it diverges.

        Args:
            losses: of steps, without those that were not finite.
        """
        self._follow(losses)
        if self._trend.is_diverging and not self._has_diverged:
            self._has_diverged = True
            self._warn(self._describe_divergence())

    def evaluated(self, found: ValidationResult) -> None:
        """Says which validation images are full of confident boxes, and that their loss is far above training's."""
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
        """Says, for the last line of the run, that the loss diverged; empty: it did not, or recovered."""
        if not self._trend.is_high:
            return ""
        if not self._has_diverged:
            self._warn(self._describe_divergence())
        return f"; the loss diverged: {self._trend.level:.3g} at the end, {self._trend.lowest:.3g} at its lowest"

    def _follow(self, losses: Sequence[float]) -> None:
        for loss in losses:
            self._trend.add(loss)
        if losses:
            self._last_loss = float(np.mean(losses))

    def _describe_divergence(self) -> str:
        rate = self._config.optimizer.learning_rate
        assert rate is not None, "`schedule.derive` comes first"
        return (
            f"the training loss diverges: {self._trend.level:.3g} over the last steps, {self._trend.lowest:.3g} at its "
            f"lowest. Start again with `--optimizer.learning-rate {rate / _LOWER_RATE:.2g}` (a third of this run's) in "
            "a new `--run-dir`."
        )

    def _warn(self, text: str | None) -> None:
        if text and processes.is_first():
            self.said.append(text)
            self._say(f"warning: {text}")


def _batch(config: ExperimentConfig, dataset: Dataset) -> str | None:
    """Warns of a batch that is larger than the training data."""
    batch_size, number = config.training.batch_size, dataset.num_examples
    if batch_size <= number:
        return None
    steps = max(math.ceil(config.training.epochs * number / batch_size), 1)
    advised = 2 ** int(math.log2(max(number // 2, 1)))
    return (
        f"`training.batch_size` is {batch_size}, more than the {number} training images: an update sees each of them "
        f"{batch_size / number:.1f} times, and the whole run is {_counted(steps, 'update')}. Give "
        f"`--training.batch-size {advised}`, and `--training.epochs` for some hundred updates."
    )


def _classes(dataset: Dataset) -> str | None:
    """Warns of classes without training boxes."""
    counts = None if dataset.train_records is None else dataset.train_records.boxes_per_class
    missing = [c.name for c, count in zip(dataset.categories, counts or (), strict=False) if not count]
    if not missing:
        return None
    verb = "has" if len(missing) == 1 else "have"
    return (
        f"{len(missing)} of {len(dataset.categories)} classes {verb} no training boxes and will never be found: "
        f"{_listed(missing)}. Add images of them, or convert without these classes."
    )


def _validation(config: ExperimentConfig, dataset: Dataset) -> str | None:
    """Warns of validation data that have no boxes, or too few to know AP."""
    records, number = dataset.validation_records, dataset.num_validation
    if records is None:
        return None
    if not records.num_boxes:
        return (
            f"the {_counted(number, 'validation image')} have no boxes: losses are computed, AP stays `-`, and "
            "weights/best is not written. Give boxes by `--data.validation`, or go without: `--data.validation none`."
        )
    half, texts = _AP_INTERVAL / math.sqrt(number), []
    if half > _WIDE:
        texts.append(
            f"AP of {_counted(number, 'validation image')} may be off by {100 * half:.0f} points; the interval "
            "beside AP says what it is here, and smaller differences mean nothing"
        )
    whole = number == len(records)
    counts = zip(records.categories, records.boxes_per_class or (), strict=False) if whole else ()
    few = [f"{category.name} ({count})" for category, count in counts if count < _FEW_BOXES]
    if few:
        texts.append(f"AP of classes with fewer than {_FEW_BOXES} validation boxes means little: {_listed(few)}")
    if not texts:
        return None
    more = "convert with a larger `--val-fraction`" if whole else "raise `--evaluation.max-images`"
    return f"{'; '.join(texts)}. To know more, {more}, or name more images by `--data.validation`."


def small_boxes(model: ModelConfig, match_iou: float, sample: box_sample.BoxSample, num_examples: int) -> str | None:
    """Warns of training boxes that are too small for the anchors: their IoU with any stays below `match_iou`.

    Each still gets the one anchor that it overlaps most (`targets`), but is hard to learn.

    Args:
        model: `image_size`, `anchor_scale`, `aspect_ratios`, `min_level`.
        match_iou: least IoU of a match.
        sample: of the training boxes.
        num_examples: training images.

    Returns:
        A line, if they are a tenth of the boxes or more.
    """
    areas = sample.areas(model.image_size)
    anchor = _smallest_anchor(model)
    is_small = areas < match_iou * anchor**2
    if not len(areas) or is_small.mean() < _MANY_SMALL:
        return None
    # The linear factor between boxes and anchors that leaves the share aimed at.
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
        f"{model.image_size[0]} x {model.image_size[1]} px they cover less than {match_iou:.0%} of the smallest, "
        f"{anchor:.0f} x {anchor:.0f} px. "
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
