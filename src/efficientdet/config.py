"""Every knob: default, range, unit, what it does, and whether a resumed run may change it (`is_free`).

Sets of values for one purpose are in `presets`. A knob whose default is None says how its value is derived;
`training/schedule.py` computes it.
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
_MOST_NUMBERS = 2**30  # in one tensor for one image: 4 GB. The largest published network, D7x, has 1.1 * 10^8

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
    """EfficientNet without its classifier (EfficientNet, table 1 and section 3.3)."""

    name: str = "efficientnet-b0"
    """Name of the backbone in checkpoints."""
    width: float = knob(1.0, above=0, high=20)
    """Multiplier for the number of channels in every stage."""
    depth: float = knob(1.0, above=0, high=20)
    """Multiplier for the number of blocks in every stage."""
    squeeze_excite: bool = True
    """Use squeeze-and-excitation in every block; off in the Lite backbones."""
    fixed_ends: bool = False
    """Don't widen the stem or deepen the first and last stages; on in the Lite backbones."""
    survival: float = knob(1.0, above=0, high=1)
    """Stochastic depth: probability of keeping the last block in a training step (earlier blocks: higher). 1: off."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network (EfficientDet, sections 3 and 4)."""

    name: str = "efficientdet-d0"
    """Name of the model."""
    image_size: tuple[int, int] = (512, 512)
    """Height and width of the network input, px; at least 32 each."""
    num_classes: int = knob(90, 1, MANY)
    """Outputs of the class head; `train` sets it from the dataset."""
    backbone: BackboneConfig = BackboneConfig()
    feature_channels: int = knob(64, 1, 100_000)
    """Channels of the feature network and the heads."""
    num_cells: int = knob(3, 1, 20)
    """Number of BiFPN cells."""
    head_repeats: int = knob(3, 0, 20)
    """Separable convolutions in each head before the prediction layer."""
    fusion: Literal["fast_attention", "attention", "sum"] = "fast_attention"
    """How a BiFPN node weights its inputs (EfficientDet, section 3.3)."""
    fusion_relu: bool = True
    """Fast attention only: clip negative fusion weights to 0. NVIDIA's weights were trained with this off."""
    upsampling: Upsampling = "legacy"
    """Which pixel of the coarser level the feature network copies when upsampling: the one at the top-left corner of
    the output pixel (legacy: google/automl) or at its center (half_pixel: NVIDIA). Stored with the weights."""
    activation: Literal["swish", "relu6"] = "swish"
    """Activation used throughout the network; relu6 in the Lite models."""
    min_level: int = 3
    """First level of the feature network; level l has stride 2^l."""
    max_level: int = 7
    """Last level of the feature network; levels 6 and up are computed from level 5."""
    anchor_scale: float = knob(4.0, above=0, high=1000)
    """Side of the smallest anchor on each level, in strides of that level."""
    num_octaves: int = knob(3, 1, 100)
    """Number of anchor sizes per level: 2^(o / num_octaves) for o = 0, 1, ..."""
    aspect_ratios: tuple[tuple[float, float], ...] = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))
    """Anchor shapes as (width, height) factors."""
    pixel_mean: tuple[float, float, float] = knob((0.485, 0.456, 0.406), 0, 1)
    """Mean of the training pixels, RGB, as a fraction of 255."""
    pixel_std: tuple[float, float, float] = knob((0.229, 0.224, 0.225), above=0)
    """Standard deviation of the training pixels, RGB, as a fraction of 255."""
    normalize_twice: bool = False
    """Subtract the mean and divide by the standard deviation a second time, as NVIDIA's weights expect."""
    resize: Resize = "half_pixel"
    """How images are resized (bilinearly); stored with the weights. half_pixel: aligns pixel centers; legacy: aligns
    top-left corners (NVIDIA); antialiased: averages all covered pixels when shrinking (Pillow)."""
    padding: Literal["mean", "black"] = "mean"
    """Color of the part of the network input that the image does not cover; black for AdvProp weights."""
    batch_norm_momentum: float | None = knob(None, 0, below=1)
    """Share of the old value kept in a running statistic at each step. None: averages over 1/50 of the run's steps,
    but at least 10 and at most 100 steps (0.9 to 0.99)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images come from."""

    train: str = knob("", is_free=True)
    """Converted dataset (folder with dataset.json), glob of TFRecord files, or `synthetic` for generated images."""
    validation: str = knob("", is_free=True)
    """The same for validation. Empty: the validation split of `train`, if it has one. `none`: no validation."""
    source: str = knob("", is_free=True)
    """Folder of images and annotations (formats: docs/data.md); converted once into a cache and used as `train`."""
    train_split: str = knob("train", is_free=True)
    """Split of a converted dataset to train on."""
    validation_split: str = knob("val", is_free=True)
    """Split of a converted dataset to validate on."""
    decode: Decode = "fast"
    """How training JPEGs are decoded. fast: only the cropped part, shrunk while decoding if half size or less is
    enough; exact: the whole image, as in evaluation and when `augmentation` changes the image first."""
    synthetic_examples: int = knob(1024, 1, MANY)
    """Images per epoch of `synthetic` data."""
    synthetic_classes: int = knob(6, 1, MANY)
    """Number of classes in `synthetic` data, at most 6."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """How training images are augmented (ranges from google/automl and NVIDIA)."""

    horizontal_flip: bool = True
    """Mirror half of the images, chosen at random."""
    scale_min: float = knob(0.1, above=0)
    """Smallest random scale; at 1 the image just fits the network input."""
    scale_max: float = 2.0
    """Largest random scale; above 1 the image is cropped at random."""
    policy: Policy = "none"
    """Color and geometry changes before scaling: randaugment, or one of AutoAugment's detection policies."""
    randaugment_layers: int = knob(1, 1, 10)
    """Number of randaugment operations applied to each image in turn."""
    randaugment_magnitude: float = knob(15.0, 0, 30)
    """Strength of the randaugment operations; the scale was designed for 0 to 10."""
    grid_mask: float = knob(0.0, 0, 1)
    """Probability of hiding a sixth of the image behind a grid of gray squares."""
    brightness: float = knob(0.0, 0, 1)
    """Multiply the brightness by a random factor from 1 - this to 1 + this."""
    contrast: float = knob(0.0, 0, 1)
    """The same for the distance of all pixels from the mean gray."""
    saturation: float = knob(0.0, 0, 1)
    """The same for the distance of each pixel from its own gray."""
    hue: float = knob(0.0, 0, 0.5)
    """Shift hues by up to this fraction of a full turn in either direction."""
    mosaic: float = knob(0.0, 0, 1)
    """Probability of combining four images into one example; above 0, examples can hold four times as many boxes."""
    mixup: float = knob(0.0, 0, 1)
    """Probability of blending in a second example; above 0, examples can hold twice as many boxes."""
    mixup_alpha: float = knob(8.0, above=0)
    """The mixing ratio is drawn from Beta(alpha, alpha); larger values stay closer to one half."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Targets and losses (RetinaNet, section 3; EfficientDet, section 5.1)."""

    match_iou: float = knob(0.5, 0, 1)
    """Lowest IoU at which an anchor is matched to the box it overlaps most."""
    focal_alpha: float = knob(0.25, 0, 1)
    """Weight of positives; negatives get 1 - alpha."""
    focal_gamma: float = knob(1.5, 0, 100)
    """How strongly easy examples are down-weighted; 0 is cross-entropy."""
    label_smoothing: float = knob(0.0, 0, 1)
    """Move class targets from 0 and 1 toward 0.5 by this fraction."""
    huber_delta: float = knob(0.1, above=0)
    """Box error at which the box loss changes from quadratic to linear."""
    box_weight: float = knob(50.0, 0, 1e6)
    """Weight of the box loss relative to the class loss."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """SGD with momentum or Adam, with warm-up and a cosine schedule (EfficientDet, section 5.1)."""

    method: Method | None = None
    """None: adam in runs under 10,000 steps with neither learning rate nor detector weights set, else published sgd."""
    learning_rate: float | None = knob(None, above=0)
    """Peak value. None with sgd: 0.08 * batch_size / 64; if the batch is below 64 and the run under 10,000 steps, this
    times sqrt(10,000 / steps), but at most 0.08 * sqrt(batch_size / 64). None with adam: 0.02 (0.008 from a backbone) *
    sqrt(batch_size / 64)."""
    warmup_learning_rate: float = knob(1e-4, 0, 1e6)
    """Learning rate of the first step."""
    warmup_epochs: float | None = knob(None, 0, 1e6)
    """Epochs of linear warm-up. None: one, but at least 100 steps and at most a tenth of the run."""
    schedule_epochs: float = knob(0.0, 0, 1e6)
    """Epochs until the learning rate reaches 0. 0: `training.epochs`. If larger, the run ends before it gets there."""
    momentum: float = knob(0.9, 0, below=1)
    """Share of the previous update in the new one; for Adam, decay of the gradient average."""
    square_decay: float = knob(0.99, 0, below=1)
    """Adam only: decay of the squared-gradient average."""
    clip_norm: float = knob(10.0, 0, 1e6)
    """Maximum norm of each gradient, then of all gradients together; 0: no clipping."""
    weight_decay: float = knob(4e-5, 0, 1)
    """L2 on kernels: adds weight_decay * sum(kernel^2) / 2 to the loss."""
    average_decay: float = knob(0.9998, 0, below=1)
    """Decay of the weight average. After n updates the effective decay is min(average_decay, (1 + n) / (10 + n)), so
    the average covers the last tenth of the updates, at most 5,000."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The training run."""

    batch_size: int = knob(64, 1, MANY)
    """Images per update, over all devices."""
    accumulate_steps: int = knob(1, 1, 1024)
    """Number of parts the batch is split into, run one after another to save memory. Gradients are those of the whole
    batch; batch statistics are computed per part."""
    epochs: float = knob(300.0, above=0, high=1e6)
    """Passes over the training images."""
    precision: Precision = "float32"
    """Data type inside the network; outputs and losses are always float32. tf32: float32, with multiplications that
    use 10 mantissa bits where the GPU supports it (NVIDIA Ampere and newer)."""
    devices: int = knob(0, 0, MANY, is_free=True)
    """Number of devices to train on in one machine. 0: all GPUs, or all devices JAX finds."""
    join_seconds: float = knob(300.0, 1, 1e6, is_free=True)
    """How long the processes of a run on several machines wait for each other at the start, s."""
    batch_norm: Literal["global", "per_replica"] = "global"
    """Compute batch statistics over the whole batch, or per device and then average (faster; as NVIDIA does)."""
    recalibrate_images: int | None = knob(None, 0, MANY)
    """Number of unaugmented training images to measure batch statistics on before evaluating and saving weights
    ("precise BN"). 0: use the running averages. None: 640 if fewer than 32 images are normalized together, else 0."""
    fixed_statistics: float | None = knob(None, 0, 1)
    """Final fraction of the steps that trains with the batch statistics used at inference, measured once as above and
    then constant. None: 0.5 if fewer than 32 images are normalized together, else 0."""
    freeze: Literal["none", "backbone", "all_but_heads"] = "none"
    """Parts of the network to freeze, including their batch statistics."""
    xla: Switch = knob("auto", is_free=True)
    """Compile with XLA. auto: on a GPU. JAX always uses XLA."""
    seed: int = knob(0, 0, MANY)
    """Random seed for initial weights, image order and augmentation."""
    deterministic: bool = knob(False, is_free=True)
    """Make runs with the same seed bit-identical on the same machine, even when interrupted and resumed; slower."""
    evaluate_every: float = knob(5.0, 0, 1e6, is_free=True)
    """Epochs between evaluations; 0: only at the end."""
    evaluate_from: float = knob(0.0, 0, 1e6, is_free=True)
    """First epoch to evaluate at; the final evaluation always runs."""
    patience: int = knob(0, 0, MANY, is_free=True)
    """Stop early after this many evaluations in a row without a better AP; 0: never. The learning rate still follows
    `epochs`."""
    log_every: int = knob(20, 1, MANY, is_free=True)
    """Steps between lines in metrics.jsonl."""
    checkpoint_every: int = knob(500, 1, MANY, is_free=True)
    """Steps between checkpoints; one is also saved at each evaluation and at the end."""
    keep_checkpoints: int = knob(2, 1, MANY, is_free=True)
    """Number of newest checkpoints to keep for resuming; the one with the best AP is kept as well."""
    max_bad_steps: int = knob(50, 1, MANY, is_free=True)
    """Stop after this many steps in a row with a non-finite loss or gradient; such steps are skipped."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PostprocessConfig:
    """From raw predictions to detections."""

    max_candidates: int = knob(5000, 1, 1_000_000)
    """Number of highest logits, over all anchors and classes, that go into non-maximum suppression."""
    max_detections: int = knob(100, 1, 10_000)
    """Maximum number of detections per image."""
    nms_sigma: float = knob(0.5, above=0)
    """Width of the soft-NMS Gaussian: the score of an overlapping box is multiplied by exp(-iou^2 / sigma)."""
    score_threshold: float = knob(0.001, 0, 1)
    """Drop detections whose score after soft-NMS is below this."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How validation images are evaluated."""

    batch_size: int = knob(8, 1, MANY, is_free=True)
    """Images per batch."""
    max_images: int = knob(0, 0, MANY, is_free=True)
    """Evaluate only the first N images; 0: all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Where metrics are logged in addition to metrics.jsonl and TensorBoard."""

    time_log: bool = knob(False, is_free=True)
    """Also write time_log.txt in NVIDIA's DLLogger format."""
    wandb: str = knob("", is_free=True)
    """Weights & Biases project for metrics, config and images; empty: off. Needs the extra `wandb`; WANDB_MODE and
    the other WANDB_ variables apply."""
    mlflow: str = knob("", is_free=True)
    """MLflow experiment for the same; empty: off. Needs the extra `mlflow`; MLFLOW_TRACKING_URI and the other MLFLOW_
    variables apply."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Everything needed to repeat a run."""

    preset: str = "d0"
    """Preset that the values are based on."""
    run_dir: str = knob("", is_free=True)
    """Run folder; empty: runs/<preset>. Running again with the same folder resumes the run."""
    weights: str = ""
    """Weights to start from: a weights file, a run, `coco` or another published name. The class predictor is
    reinitialized if the dataset has different classes."""
    backbone: str = ""
    """Backbone weights to start from: `imagenet`, or a checkpoint of a backbone or a detector."""
    overfit: int = knob(0, 0, MANY)
    """Overfit the first N training images and evaluate on them; an AP near 1 shows that data and labels are fine. 0: a
    normal training run."""
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
    """Raises a UserError for the first knob with an invalid value."""
    knobs.check_ranges(config)
    _check_levels(config.model)
    check_image_size(config.model)
    augmentation = config.augmentation
    if 0 < config.optimizer.schedule_epochs < config.training.epochs:
        raise UserError(
            f"`optimizer.schedule_epochs` is {config.optimizer.schedule_epochs:g}; it must be 0 or at least "
            f"`training.epochs` ({config.training.epochs:g}) because the learning rate is 0 after that."
        )
    if not augmentation.scale_min <= augmentation.scale_max <= 16:
        raise UserError(
            f"`augmentation.scale_max` is {augmentation.scale_max}; "
            f"it must be at least `augmentation.scale_min` ({augmentation.scale_min}) and at most 16."
        )


def _check_levels(model: ModelConfig) -> None:
    """Raises a UserError for invalid levels or anchors."""
    if model.min_level != 3 or not 5 <= model.max_level <= 8:
        levels = f"{model.min_level}..{model.max_level}"
        raise UserError(f"`model.min_level..max_level` is {levels}; the first must be 3 and the last 5, 6, 7 or 8.")
    wrong = [shape for shape in model.aspect_ratios if not all(0 < factor <= 100 for factor in shape)]
    if wrong or not model.aspect_ratios:
        found = f"has {wrong[0]}" if wrong else "is ()"
        raise UserError(f"`model.aspect_ratios` {found}; expected pairs of numbers above 0 and at most 100.")


def check_image_size(model: ModelConfig, name: str = "model.image_size") -> None:
    """Raises a UserError if the network cannot process images of its input size.

    Args:
        model: the network, with `image_size`.
        name: name of the size in the message.
    """
    height, width = model.image_size
    if min(height, width) < LEAST_SIDE or max(height, width) > _LARGEST_SIDE:
        raise UserError(
            f"`{name}` is {height} x {width}; both numbers must be between {LEAST_SIDE} and {_LARGEST_SIDE:,}."
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
            f"`{name}` is {height} x {width}; the {part} would need {numbers[part]:.1e} numbers per image, "
            f"and the limit is {_MOST_NUMBERS:.1e}."
        )


def load(path: pathlib.Path) -> ExperimentConfig:
    """Reads the config.json of a run, or a file in the same format.

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
        for facts in ("dataset", "derived"):  # what a run records about its data, and values derived for knobs at None
            values.pop(facts, None)
    return knobs.from_dict(ExperimentConfig, values, str(path))
