"""Every knob: default, range, unit, what it does, and whether a resumed run may change it (`is_free`).

Values that belong together for one purpose are in `presets`. What becomes of a knob that is left open is in its text,
and computed by `training/schedule.py`.
"""

import dataclasses
import json
import math
import pathlib
from typing import Literal

from efficientdet import knobs
from efficientdet.errors import UserError
from efficientdet.knobs import MANY, knob

LEAST_SIDE = 32
"""Smallest height or width of a network input, px."""
_LARGEST_SIDE = 100_000  # px
_MOST_NUMBERS = 2**30  # in one tensor of one image: 4 GB. The largest published network, D7x, has 1.1 * 10^8

Precision = Literal["float32", "tf32", "mixed_float16", "mixed_bfloat16"]
Switch = Literal["auto", "on", "off"]
RuntimeName = Literal["auto", "keras", "openvino"]
Tiles = tuple[int, int] | Literal["input"]
Depthwise = Literal["auto", "convolution", "shifts", "pallas"]
ExportFormat = Literal["saved_model", "onnx", "litert", "openvino"]
ExportPrecision = Literal["float32", "float16", "bfloat16", "int8"]
Answer = Literal["raw", "detections"]
Resize = Literal["half_pixel", "legacy", "antialiased"]
Decode = Literal["fast", "exact"]
Upsampling = Literal["legacy", "half_pixel"]
Method = Literal["sgd", "adam"]
Policy = Literal["none", "randaugment", "v0", "v1", "v2", "v3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """EfficientNet, features only (EfficientNet, table 1 and section 3.3)."""

    name: str = "efficientnet-b0"
    """What checkpoints call it."""
    width: float = knob(1.0, above=0, high=20)
    """Multiplies the channels of every stage."""
    depth: float = knob(1.0, above=0, high=20)
    """Multiplies the blocks of every stage."""
    squeeze_excite: bool = True
    """Squeeze-and-excitation in every block; the Lite backbones have none."""
    fixed_ends: bool = False
    """Neither widen the stem nor deepen the first and last stage (Lite)."""
    survival: float = knob(1.0, above=0, high=1)
    """Probability that the last block survives a training step (stochastic depth), earlier ones more; 1 is off."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network (EfficientDet, section 3 and 4)."""

    name: str = "efficientdet-d0"
    """What the model calls itself."""
    image_size: tuple[int, int] = (512, 512)
    """Height and width of the network input, px; any size from 32 up."""
    num_classes: int = knob(90, 1, MANY)
    """Outputs of the class head; `train` sets it from the dataset."""
    backbone: BackboneConfig = BackboneConfig()
    feature_channels: int = knob(64, 1, 100_000)
    """Channels of the feature network and the heads."""
    num_cells: int = knob(3, 1, 20)
    """BiFPN cells."""
    head_repeats: int = knob(3, 0, 20)
    """Separable convolutions in each head before its prediction."""
    fusion: Literal["fast_attention", "attention", "sum"] = "fast_attention"
    """How a BiFPN node weighs its inputs (EfficientDet, section 3.3)."""
    fusion_relu: bool = True
    """Fast attention only: weights below 0 count as 0. NVIDIA's weights were trained without."""
    upsampling: Upsampling = "legacy"
    """Which pixel of the coarser level a pixel of the feature network takes: the one below its top left corner
    (legacy: google/automl) or its centre (half_pixel: NVIDIA). Weights remember it."""
    activation: Literal["swish", "relu6"] = "swish"
    """Everywhere in the network; Lite has relu6."""
    min_level: int = 3
    """First level of the feature network; level l has stride 2^l."""
    max_level: int = 7
    """Last level of the feature network; those from 6 on are made from level 5."""
    anchor_scale: float = knob(4.0, above=0, high=1000)
    """Side of the smallest anchor of a level in strides of that level."""
    num_octaves: int = knob(3, 1, 100)
    """Anchor sizes a level: 2^(o / num_octaves) for o = 0, 1, ..."""
    aspect_ratios: tuple[tuple[float, float], ...] = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))
    """Anchor shapes as (width, height) factors."""
    pixel_mean: tuple[float, float, float] = knob((0.485, 0.456, 0.406), 0, 1)
    """Mean of the training pixels, RGB, fraction of 255."""
    pixel_std: tuple[float, float, float] = knob((0.229, 0.224, 0.225), above=0)
    """Standard deviation of the training pixels, RGB, fraction of 255."""
    normalize_twice: bool = False
    """Subtract the mean and divide by the standard deviation once more, as NVIDIA's weights were trained."""
    resize: Resize = "half_pixel"
    """How an image is resampled to the network input, bilinearly; weights remember it. half_pixel: between pixel
    centres; legacy: between top left corners (NVIDIA); antialiased: over all that a smaller one covers (Pillow)."""
    padding: Literal["mean", "black"] = "mean"
    """Colour beside an image that does not fill the network input; black for AdvProp weights."""
    batch_norm_momentum: float | None = knob(None, 0, below=1)
    """Share of the old value in a running statistic at each step; none: the statistics remember a fiftieth of the
    run's steps, but at least 10 and at most 100 (0.9 to 0.99)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images come from."""

    train: str = knob("", is_free=True)
    """Converted dataset (folder with dataset.json), glob of TFRecord files, or `synthetic` for generated images."""
    validation: str = knob("", is_free=True)
    """The same for validation; empty: the validation split of `train`, where it has one. `none`: no validation."""
    source: str = knob("", is_free=True)
    """Folder of images with annotations in a format of docs/data.md: converted once into a cache, used as `train`."""
    train_split: str = knob("train", is_free=True)
    """Split of a converted dataset to train on."""
    validation_split: str = knob("val", is_free=True)
    """Split of a converted dataset to validate on."""
    decode: Decode = "fast"
    """How JPEGs of training images become pixels. fast: only the part that is cut out, shrunk on the way where it is
    needed at half its size or less; exact: whole, as in evaluation and where `augmentation` changes the image first."""
    synthetic_examples: int = knob(1024, 1, MANY)
    """Images in an epoch of `synthetic` data."""
    synthetic_classes: int = knob(6, 1, MANY)
    """Classes of `synthetic` data, at most 6."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """What happens to a training image (google/automl's and NVIDIA's ranges)."""

    horizontal_flip: bool = True
    """Mirror every second image."""
    scale_min: float = knob(0.1, above=0)
    """Smallest scale of an image against the one that just fits the network input."""
    scale_max: float = 2.0
    """Largest scale; beyond 1 a random part of the image is cut out."""
    policy: Policy = "none"
    """Changes of colour and place before that: randaugment, or one of AutoAugment's for detection."""
    randaugment_layers: int = knob(1, 1, 10)
    """Changes of one image by randaugment, one after the other."""
    randaugment_magnitude: float = knob(15.0, 0, 30)
    """Strength of randaugment's changes; the scale was made for 0 to 10."""
    grid_mask: float = knob(0.0, 0, 1)
    """Probability that a grid of grey squares hides a sixth of the image."""
    brightness: float = knob(0.0, 0, 1)
    """Brightness is multiplied by 1 - this to 1 + this."""
    contrast: float = knob(0.0, 0, 1)
    """The same for the distance of all pixels from the mean grey."""
    saturation: float = knob(0.0, 0, 1)
    """The same for the distance of each pixel from its own grey."""
    hue: float = knob(0.0, 0, 0.5)
    """Hues are turned by up to this fraction of a full turn, either way."""
    mosaic: float = knob(0.0, 0, 1)
    """Probability that an example is made of four images side by side; on, there is room for four times the boxes."""
    mixup: float = knob(0.0, 0, 1)
    """Probability that a second example is laid over an example; on, there is room for twice the boxes."""
    mixup_alpha: float = knob(8.0, above=0)
    """Shares of the two are drawn from Beta(alpha, alpha): the larger, the closer to a half."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Targets and losses (RetinaNet, section 3; EfficientDet, section 5.1)."""

    match_iou: float = knob(0.5, 0, 1)
    """An anchor belongs to the box it overlaps most if their IoU is at least this."""
    focal_alpha: float = knob(0.25, 0, 1)
    """Weight of positives; negatives weigh 1 - alpha."""
    focal_gamma: float = knob(1.5, 0, 100)
    """How fast easy examples lose weight."""
    label_smoothing: float = knob(0.0, 0, 1)
    """Moves class targets from 0 and 1 towards 0.5 by this fraction."""
    huber_delta: float = knob(0.1, above=0)
    """Box error at which the box loss turns from square to linear."""
    box_weight: float = knob(50.0, 0, 1e6)
    """Weight of the box loss against the class loss."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """SGD with momentum or Adam, warm-up and cosine (EfficientDet, section 5.1)."""

    method: Method | None = None
    """None: adam for fewer than 10,000 steps, unless from a detector or with a rate given; else sgd, as published."""
    learning_rate: float | None = knob(None, above=0)
    """Peak. None, sgd: 0.08 * batch_size / 64, below 64 in fewer than 10,000 steps sqrt(10,000 / steps) times that, at
    most 0.08 * sqrt(batch_size / 64). None, adam: 0.02 (behind a backbone 0.008) * sqrt(batch_size / 64)."""
    warmup_learning_rate: float = knob(1e-4, 0, 1e6)
    """Learning rate of the first step."""
    warmup_epochs: float | None = knob(None, 0, 1e6)
    """Epochs of linear warm-up; none: one, but at least 100 steps, and at most a tenth of the run."""
    schedule_epochs: float = knob(0.0, 0, 1e6)
    """Epochs after which the learning rate is 0; 0: those of the run. Longer than the run: it stops on the way down."""
    momentum: float = knob(0.9, 0, below=1)
    """Share of the old update in the new one; for Adam, decay of the mean of the gradients."""
    square_decay: float = knob(0.99, 0, below=1)
    """Adam only: decay of the mean of the squared gradients."""
    clip_norm: float = knob(10.0, 0, 1e6)
    """Largest norm of each gradient, and then of all together; 0 is off."""
    weight_decay: float = knob(4e-5, 0, 1)
    """L2 on kernels: weight_decay * sum(kernel^2) / 2 is part of the loss."""
    average_decay: float = knob(0.9998, 0, below=1)
    """Decay of the weight average; the effective one is min(average_decay, (1 + n) / (10 + n)) after n updates, so that
    it remembers a tenth of them, up to 5,000."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The run."""

    batch_size: int = knob(64, 1, MANY)
    """Images of one update, over all devices."""
    accumulate_steps: int = knob(1, 1, 1024)
    """Parts of the batch that go through the network one after the other; memory is that of a part. Gradients are those
    of the whole batch, batch statistics those of each part."""
    epochs: float = knob(300.0, above=0, high=1e6)
    """Passes over the training images."""
    precision: Precision = "float32"
    """Type of the arithmetic inside the network; outputs and losses are float32 always. tf32: float32, multiplied with
    10 bits of mantissa where the GPU can (NVIDIA, from Ampere on)."""
    devices: int = knob(0, 0, MANY, is_free=True)
    """Devices of a machine to train on; 0: all GPUs, or on JAX whatever it finds."""
    join_seconds: float = knob(300.0, 1, 1e6, is_free=True)
    """How long the processes of a run on several machines wait for each other at the start, s."""
    batch_norm: Literal["global", "per_replica"] = "global"
    """Batch statistics over the whole batch, or of each device's part, averaged (NVIDIA's way: faster)."""
    recalibrate_images: int | None = knob(None, 0, MANY)
    """Training images, not augmented, on which batch statistics are measured before weights are evaluated and written
    ("precise BN"); 0: those averaged over the steps. None: 640 if fewer than 32 are normalised together, else 0."""
    fixed_statistics: float | None = knob(None, 0, 1)
    """Fraction of the steps, at the end, that train with the statistics inference uses: measured once, as above, then
    constant. None: 0.5 if fewer than 32 are normalised together, else 0."""
    freeze: Literal["none", "backbone", "all_but_heads"] = "none"
    """Parts that do not learn; their batch statistics stay as they are."""
    xla: Switch = knob("auto", is_free=True)
    """Compile with XLA. auto: on a GPU. JAX always does."""
    seed: int = knob(0, 0, MANY)
    """Of weights, order and augmentation."""
    deterministic: bool = knob(False, is_free=True)
    """The same bits from the same seed on the same machine, also if the run was interrupted; slower."""
    evaluate_every: float = knob(5.0, 0, 1e6, is_free=True)
    """Epochs between evaluations; 0: only at the end."""
    evaluate_from: float = knob(0.0, 0, 1e6, is_free=True)
    """No evaluation before this epoch, but for the one at the end."""
    patience: int = knob(0, 0, MANY, is_free=True)
    """How many evaluations in a row may bring no better AP before the run ends; 0: any number. The learning rate
    follows `epochs`."""
    log_every: int = knob(20, 1, MANY, is_free=True)
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = knob(500, 1, MANY, is_free=True)
    """Steps between checkpoints; one is also written at each evaluation and at the end."""
    keep_checkpoints: int = knob(2, 1, MANY, is_free=True)
    """Newest checkpoints kept for resume; that of the best AP stays too."""
    max_bad_steps: int = knob(50, 1, MANY, is_free=True)
    """How many steps in a row may have no finite loss and gradient before the run stops; such steps change nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PostprocessConfig:
    """Raw predictions to detections."""

    max_candidates: int = knob(5000, 1, 1_000_000)
    """Best logits of all anchors and classes that enter the suppression."""
    max_detections: int = knob(100, 1, 10_000)
    """Detections of one image."""
    nms_sigma: float = knob(0.5, above=0)
    """Width of the Gaussian of soft-NMS: a neighbour's score is multiplied by exp(-iou^2 / sigma)."""
    score_threshold: float = knob(0.001, 0, 1)
    """A decayed score below this is dropped."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How validation images are evaluated."""

    batch_size: int = knob(8, 1, MANY, is_free=True)
    """Images a batch."""
    max_images: int = knob(0, 0, MANY, is_free=True)
    """How many images to evaluate, from the first on; 0: all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Where the metrics of a run go, beside metrics.jsonl and TensorBoard."""

    time_log: bool = knob(False, is_free=True)
    """Write time_log.txt too, in the format of NVIDIA's DLLogger."""
    wandb: str = knob("", is_free=True)
    """Project of Weights & Biases that gets metrics, config and images; empty: none. Needs the extra `wandb`;
    WANDB_MODE and its other variables count."""
    mlflow: str = knob("", is_free=True)
    """Experiment of MLflow that gets the same; empty: none. Needs the extra `mlflow`; MLFLOW_TRACKING_URI and its other
    variables count."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Everything needed to repeat a run."""

    preset: str = "d0"
    """Preset that the values started from."""
    run_dir: str = knob("", is_free=True)
    """Where the run writes; empty: runs/<preset>. Running again with the same folder resumes."""
    weights: str = ""
    """Start from these weights: a weights file, a run, `coco` or another published name. The class predictor begins
    afresh if the dataset has other classes."""
    backbone: str = ""
    """Start from this backbone: `imagenet`, or a checkpoint of a backbone or a detector."""
    overfit: int = knob(0, 0, MANY)
    """How many training images to memorize and evaluate on, from the first on: AP near 1 proves data and labels. 0: a
    real training."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    postprocess: PostprocessConfig = PostprocessConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()


def check(config: ExperimentConfig) -> None:
    """Raises a UserError that names the first knob whose value cannot work."""
    knobs.check_ranges(config)
    _check_levels(config.model)
    check_image_size(config.model)
    augmentation = config.augmentation
    if 0 < config.optimizer.schedule_epochs < config.training.epochs:
        raise UserError(
            f"`optimizer.schedule_epochs` is {config.optimizer.schedule_epochs:g}; it must be 0 or at least "
            f"`training.epochs` ({config.training.epochs:g}), since the learning rate is 0 from then on."
        )
    if not augmentation.scale_min <= augmentation.scale_max <= 16:
        raise UserError(
            f"`augmentation.scale_max` is {augmentation.scale_max}; "
            f"it must be at least `augmentation.scale_min` ({augmentation.scale_min}) and at most 16."
        )


def _check_levels(model: ModelConfig) -> None:
    """Raises a UserError for levels or anchors that cannot work."""
    if model.min_level != 3 or not 5 <= model.max_level <= 8:
        levels = f"{model.min_level}..{model.max_level}"
        raise UserError(f"`model.min_level..max_level` is {levels}; the first must be 3 and the last 5, 6, 7 or 8.")
    wrong = [shape for shape in model.aspect_ratios if not all(0 < factor <= 100 for factor in shape)]
    if wrong or not model.aspect_ratios:
        found = f"has {wrong[0]}" if wrong else "is ()"
        raise UserError(f"`model.aspect_ratios` {found}; expected pairs of numbers above 0, at most 100.")


def check_image_size(model: ModelConfig, name: str = "model.image_size") -> None:
    """Raises a UserError if images of a size cannot go through a network.

    Args:
        model: the network, with the size.
        name: what the size is called.
    """
    height, width = model.image_size
    if min(height, width) < LEAST_SIDE or max(height, width) > _LARGEST_SIDE:
        raise UserError(
            f"`{name}` is {height} x {width}; both numbers must be at least {LEAST_SIDE}, at most {_LARGEST_SIDE:,}."
        )
    cells = math.ceil(height / 8) * math.ceil(width / 8)
    anchors = cells * model.num_octaves * len(model.aspect_ratios)
    numbers = {
        "backbone": height * width * 24 * model.backbone.width,  # 96 channels at half of each side
        "feature network": cells * model.feature_channels,
        "class head": anchors * model.num_classes,
        "list of anchors": anchors * 16,
    }
    part = max(numbers, key=lambda part: numbers[part])
    if numbers[part] > _MOST_NUMBERS:
        raise UserError(
            f"`{name}` is {height} x {width}; the {part} would need {numbers[part]:.1e} numbers for an image, "
            f"{_MOST_NUMBERS:.1e} is the most."
        )


def load(path: pathlib.Path) -> ExperimentConfig:
    """Reads the config.json of a run, or a file of the same form.

    Raises:
        UserError: the file is missing or damaged, or a field is unknown.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"`{path}` cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"`{path}` is not valid JSON: {error}.") from error
    if isinstance(values, dict):
        for facts in ("dataset", "derived"):  # what a run notes about its data, and what it made of knobs that are none
            values.pop(facts, None)
    return knobs.from_dict(ExperimentConfig, values, str(path))
