"""The training and validation data of a run: records or generated images."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet import backend
from efficientdet.config import DataConfig, ExperimentConfig
from efficientdet.data import synthetic
from efficientdet.data.records import store, tfrecord
from efficientdet.errors import UserError
from efficientdet.structures import Batch, Category, Originals

SYNTHETIC = "synthetic"
_SYNTHETIC_POOL, _SYNTHETIC_VALIDATION = 256, 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Training and validation data."""

    categories: tuple[Category, ...]
    num_examples: int
    """Number of training images."""
    num_validation: int
    """Number of validation images; may be 0."""
    training_batches: Callable[[int, int], Iterator[tuple[Batch, np.ndarray]]]
    """(start step, stop step) -> batches with their image ids; each of several processes gets its share of each."""
    plain_batches: Callable[[int, int], Iterator[Batch]]
    """(batch size, number of batches) -> training images preprocessed as in validation, without augmentation, the same
    in every process; there must be enough training images."""
    validation_batches: Callable[[], Iterator[tuple[Batch, Originals]]]
    """One pass over the validation images, the same in every process."""
    train_records: store.Records | None = None
    """Records of the training images; None if they are generated."""
    validation_records: store.Records | None = None
    """Records of the validation images, in the order of `validation_batches`; None if they are generated or there are
    none."""

    def checksums(self) -> dict[str, str | None]:
        """Identifies the training and validation data, wherever they are stored.

        Returns:
            train, validation: checksum of the records; `synthetic`, which the configuration fully describes; or None.
        """
        train, validation = self.train_records, self.validation_records
        return {
            "train": train.checksum if train else SYNTHETIC,
            "validation": validation.checksum if validation else SYNTHETIC if self.num_validation else None,
        }

    def validation_name(self, position: int) -> str:
        """Names a validation image for messages: its file, or its position if it is generated."""
        if self.validation_records is None:
            return f"image {position}"
        return tfrecord.file_name(store.read(self.validation_records, position))


def open_dataset(config: ExperimentConfig, share: tuple[int, int] = (0, 1)) -> Dataset:
    """Opens the data named in `config.data`.

    Args:
        config: config of the run.
        share: (k, n): the k-th of n equal parts of each training batch, for one of n processes.

    Raises:
        UserError: no data are named, or they cannot be used.
    """
    data = config.data
    if data.train and data.source:
        raise UserError(f"`data.train` is {data.train} and `data.source` is {data.source}; set only one of them.")
    if data.source:
        data = dataclasses.replace(data, train=prepare_source(config))
        config = dataclasses.replace(config, data=data)
    if not data.train:
        raise UserError("`data.train` is empty; pass a converted dataset, a glob of TFRecord files, or `synthetic`.")
    opened = _open_synthetic(config, share) if data.train == SYNTHETIC else _open_records(config, share)
    found = opened.validation_records
    if config.training.patience and (not opened.num_validation or (found is not None and not found.num_boxes)):
        raise UserError(
            f"`training.patience` is {config.training.patience}, but there are no validation images with boxes to "
            "measure AP on; pass `--data.validation`, or set patience to 0."
        )
    return opened


def prepare_source(config: ExperimentConfig) -> str:
    """Converts the images of `config.data.source`, unless an earlier run did; returns the folder of records."""
    from efficientdet.data import conversion

    return str(conversion.convert_once(Path(config.data.source)))


def _open_synthetic(config: ExperimentConfig, share: tuple[int, int]) -> Dataset:
    """Prepares generated images; they need neither files nor TensorFlow."""
    data, training, size = config.data, config.training, config.model.image_size
    if data.validation not in ("", "none", SYNTHETIC):
        raise UserError(
            f"`data.validation` is {data.validation}; with `data.train synthetic` it must be `synthetic` or `none`."
        )
    if data.synthetic_classes > len(synthetic.CATEGORIES):
        raise UserError(
            f"`data.synthetic_classes` is {data.synthetic_classes}; it must be at most {len(synthetic.CATEGORIES)}."
        )

    def make(batch_size: int, seed: int, start: int, num_images: int) -> Iterator[tuple[Batch, Originals]]:
        return synthetic.batches(
            batch_size=batch_size,
            image_size=size,
            max_boxes=synthetic.MAX_BOXES,
            seed=seed,
            num_classes=data.synthetic_classes,
            start_step=start,
            num_images=num_images,
        )

    pool = config.overfit or _SYNTHETIC_POOL

    def training_batches(start: int, stop: int) -> Iterator[tuple[Batch, np.ndarray]]:
        for batch, originals in itertools.islice(make(training.batch_size, training.seed, start, pool), stop - start):
            rows = slice(share[0] * training.batch_size // share[1], (share[0] + 1) * training.batch_size // share[1])
            columns: Any = batch
            own: Any = {name: value[rows] for name, value in columns.items()}
            yield own, originals["ids"][rows]

    batch_size, seed = config.evaluation.batch_size, training.seed + 1
    # Whole batches without repeated images; at least one batch.
    wanted = min(config.evaluation.max_images or _SYNTHETIC_VALIDATION, _SYNTHETIC_VALIDATION)
    batches = max(synthetic.pool_size(batch_size, size, wanted) // batch_size, 1)
    if config.overfit:
        batch_size = max(n for n in range(1, batch_size + 1) if config.overfit % n == 0)
        batches, seed = config.overfit // batch_size, training.seed
    num_validation = 0 if data.validation == "none" and not config.overfit else batches * batch_size
    return Dataset(
        categories=synthetic.CATEGORIES[: data.synthetic_classes],
        num_examples=config.overfit or data.synthetic_examples,
        num_validation=num_validation,
        training_batches=training_batches,
        plain_batches=lambda size, count: (
            batch for batch, _ in itertools.islice(make(size, training.seed, 0, pool), count)
        ),
        validation_batches=lambda: itertools.islice(
            make(batch_size, seed, 0, num_validation), num_validation // batch_size
        ),
    )


def _open_records(config: ExperimentConfig, share: tuple[int, int]) -> Dataset:
    """Opens the records of the training and validation splits."""
    backend.require_tensorflow("`data.train` from records")
    from efficientdet.data import pipeline

    data, training, size = config.data, config.training, config.model.image_size
    train = _open_training(data)
    if config.overfit:
        train = store.first(train, config.overfit)
    validation = train if config.overfit else _find_validation(config)
    resize = config.model.resize
    options: dict[str, Any] = {"categories": train.categories, "image_size": size, "resize": resize}

    def plain_batches(batch_size: int, count: int) -> Iterator[Batch]:
        chosen = store.spread(train, batch_size * count)
        return (batch for batch, _ in pipeline.evaluation_batches(chosen, batch_size=batch_size, **options))

    def validation_batches() -> Iterator[tuple[Batch, Originals]]:
        if validation is None:
            return iter(())
        evaluated = config.evaluation
        return pipeline.evaluation_batches(
            validation, batch_size=evaluated.batch_size, max_images=evaluated.max_images, **options
        )

    if validation is not None:
        pipeline.check_categories(validation, train.categories)
    num_validation = 0 if validation is None else min(len(validation), config.evaluation.max_images or len(validation))
    return Dataset(
        categories=train.categories,
        num_examples=len(train),
        num_validation=num_validation,
        training_batches=lambda start, stop: pipeline.training_batches(
            train,
            image_size=size,
            resize=resize,
            batch_size=training.batch_size,
            seed=training.seed,
            augmentation=config.augmentation,
            decode=data.decode,
            start_step=start,
            stop_step=stop,
            share=share,
        ),
        plain_batches=plain_batches,
        validation_batches=validation_batches,
        train_records=train,
        validation_records=validation,
    )


def _open_training(data: DataConfig) -> store.Records:
    """Opens the training split, which must have boxes."""
    train = store.open_records(data.train, data.train_split, may_lack_boxes=True)
    if train.num_boxes:
        return train
    if not Path(data.train).expanduser().is_dir():
        raise UserError(
            f"`data.train` is {data.train}, which has {len(train)} images but no boxes, so there is nothing to learn. "
            "Recreate the records with boxes (COCO's are in instances_*.json; captions_*.json have none)."
        )
    raise UserError(
        f"`data.train` is {data.train}, whose split `{data.train_split}` has {len(train)} images but no boxes, so "
        "there is nothing to learn. Convert it again with its annotations, or use a split with boxes "
        "(`--data.train-split`)."
    )


def _find_validation(config: ExperimentConfig) -> store.Records | None:
    """Opens the validation split, if there is one."""
    data = config.data
    if data.validation == "none":
        return None
    if data.validation:
        return store.open_records(data.validation, data.validation_split, may_lack_boxes=True)
    folder = Path(data.train).expanduser()
    if folder.is_dir() and data.validation_split in store.split_names(folder):
        return store.open_records(data.train, data.validation_split, may_lack_boxes=True)
    if data.validation_split != DataConfig().validation_split:
        raise UserError(
            f"`data.validation_split` is `{data.validation_split}`, but `{data.train}` has no split with that name."
        )
    return None
