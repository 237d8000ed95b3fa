"""Every knob: its default, its unit, what it does. Values that belong together for one purpose are in `presets`."""

import dataclasses
import difflib
import json
import pathlib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from efficientdet.errors import UserError

LEAST_SIDE = 32
"""Smallest height or width of a network input, px."""

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
    width: float = 1.0
    """Multiplies the channels of every stage."""
    depth: float = 1.0
    """Multiplies the blocks of every stage."""
    squeeze_excite: bool = True
    """Squeeze-and-excitation in every block; the Lite backbones have none."""
    fixed_ends: bool = False
    """Neither widen the stem nor deepen the first and last stage (Lite)."""
    survival: float = 1.0
    """Probability that the last block survives a training step (stochastic depth), earlier ones more; 1 is off."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network (EfficientDet, section 3 and 4)."""

    name: str = "efficientdet-d0"
    """What the model calls itself."""
    image_size: tuple[int, int] = (512, 512)
    """Height and width of the network input, px; any size from 32 up."""
    num_classes: int = 90
    """Outputs of the class head; `train` sets it from the dataset."""
    backbone: BackboneConfig = BackboneConfig()
    feature_channels: int = 64
    """Channels of the feature network and the heads."""
    num_cells: int = 3
    """BiFPN cells."""
    head_repeats: int = 3
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
    anchor_scale: float = 4.0
    """Side of the smallest anchor of a level in strides of that level."""
    num_octaves: int = 3
    """Anchor sizes a level: 2^(o / num_octaves) for o = 0, 1, ..."""
    aspect_ratios: tuple[tuple[float, float], ...] = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))
    """Anchor shapes as (width, height) factors."""
    pixel_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the training pixels, RGB, fraction of 255."""
    pixel_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of the training pixels, RGB, fraction of 255."""
    normalize_twice: bool = False
    """Subtract the mean and divide by the standard deviation once more, as NVIDIA's weights were trained."""
    resize: Resize = "half_pixel"
    """How an image is resampled to the network input, bilinearly; weights remember it. half_pixel: between pixel
    centres; legacy: between top left corners (NVIDIA); antialiased: over all that a smaller one covers (Pillow)."""
    padding: Literal["mean", "black"] = "mean"
    """Colour beside an image that does not fill the network input; black for AdvProp weights."""
    batch_norm_momentum: float | None = None
    """Share of the old value in a running statistic at each step; none: the statistics remember a fiftieth of the
    run's steps, but at least 10 and at most 100 (0.9 to 0.99)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images come from."""

    train: str = ""
    """Converted dataset (folder with dataset.json), glob of TFRecord files, or `synthetic` for generated images."""
    validation: str = ""
    """The same for validation; empty: the validation split of `train`, where it has one. `none`: no validation."""
    source: str = ""
    """Folder of images with annotations in a format of docs/data.md: converted once into a cache, used as `train`."""
    train_split: str = "train"
    """Split of a converted dataset to train on."""
    validation_split: str = "val"
    """Split of a converted dataset to validate on."""
    decode: Decode = "fast"
    """How JPEGs of training images become pixels. fast: only the part that is cut out, shrunk on the way where it is
    needed at half its size or less; exact: whole, as in evaluation and where `augmentation` changes the image first."""
    synthetic_examples: int = 1024
    """Images in an epoch of `synthetic` data."""
    synthetic_classes: int = 6
    """Classes of `synthetic` data, at most 6."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """What happens to a training image (google/automl's and NVIDIA's ranges)."""

    horizontal_flip: bool = True
    """Mirror every second image."""
    scale_min: float = 0.1
    """Smallest scale of an image against the one that just fits the network input."""
    scale_max: float = 2.0
    """Largest scale; beyond 1 a random part of the image is cut out."""
    policy: Policy = "none"
    """Changes of colour and place before that: randaugment, or one of AutoAugment's for detection."""
    randaugment_layers: int = 1
    """Changes of one image by randaugment, one after the other."""
    randaugment_magnitude: float = 15.0
    """Strength of randaugment's changes; the scale was made for 0 to 10."""
    grid_mask: float = 0.0
    """Probability that a grid of grey squares hides a sixth of the image."""
    brightness: float = 0.0
    """Brightness is multiplied by 1 - this to 1 + this."""
    contrast: float = 0.0
    """The same for the distance of all pixels from the mean grey."""
    saturation: float = 0.0
    """The same for the distance of each pixel from its own grey."""
    hue: float = 0.0
    """Hues are turned by up to this fraction of a full turn, either way."""
    mosaic: float = 0.0
    """Probability that an example is made of four images side by side; on, there is room for four times the boxes."""
    mixup: float = 0.0
    """Probability that a second example is laid over an example; on, there is room for twice the boxes."""
    mixup_alpha: float = 8.0
    """Shares of the two are drawn from Beta(alpha, alpha): the larger, the closer to a half."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Targets and losses (RetinaNet, section 3; EfficientDet, section 5.1)."""

    match_iou: float = 0.5
    """An anchor belongs to the box it overlaps most if their IoU is at least this."""
    focal_alpha: float = 0.25
    """Weight of positives; negatives weigh 1 - alpha."""
    focal_gamma: float = 1.5
    """How fast easy examples lose weight."""
    label_smoothing: float = 0.0
    """Moves class targets from 0 and 1 towards 0.5 by this fraction."""
    huber_delta: float = 0.1
    """Box error at which the box loss turns from square to linear."""
    box_weight: float = 50.0
    """Weight of the box loss against the class loss."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """SGD with momentum or Adam, warm-up and cosine (EfficientDet, section 5.1)."""

    method: Method | None = None
    """None: adam for fewer than 10,000 steps, unless from a detector or with a rate given; else sgd, as published."""
    learning_rate: float | None = None
    """Peak. None, sgd: 0.08 * batch_size / 64, below 64 in fewer than 10,000 steps sqrt(10,000 / steps) times that, at
    most 0.08 * sqrt(batch_size / 64). None, adam: 0.02 (behind a backbone 0.008) * sqrt(batch_size / 64)."""
    warmup_learning_rate: float = 1e-4
    """Learning rate of the first step."""
    warmup_epochs: float | None = None
    """Epochs of linear warm-up; none: one, but at least 100 steps, and at most a tenth of the run."""
    schedule_epochs: float = 0.0
    """Epochs after which the learning rate is 0; 0: those of the run. Longer than the run: it stops on the way down."""
    momentum: float = 0.9
    """Share of the old update in the new one; for Adam, decay of the mean of the gradients."""
    square_decay: float = 0.99
    """Adam only: decay of the mean of the squared gradients."""
    clip_norm: float = 10.0
    """Largest norm of each gradient, and then of all together; 0 is off."""
    weight_decay: float = 4e-5
    """L2 on kernels: weight_decay * sum(kernel^2) / 2 is part of the loss."""
    average_decay: float = 0.9998
    """Decay of the weight average; the effective one is min(average_decay, (1 + n) / (10 + n)) after n updates, so that
    it remembers a tenth of them, up to 5,000."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The run."""

    batch_size: int = 64
    """Images of one update, over all devices."""
    accumulate_steps: int = 1
    """Parts of the batch that go through the network one after the other; memory is that of a part. Gradients are those
    of the whole batch, batch statistics those of each part."""
    epochs: float = 300.0
    """Passes over the training images."""
    precision: Precision = "float32"
    """Type of the arithmetic inside the network; outputs and losses are float32 always. tf32: float32, multiplied with
    10 bits of mantissa where the GPU can (NVIDIA, from Ampere on)."""
    devices: int = 0
    """Devices of a machine to train on; 0: all GPUs, or on JAX whatever it finds."""
    join_seconds: float = 300.0
    """How long the processes of a run on several machines wait for each other at the start, s."""
    batch_norm: Literal["global", "per_replica"] = "global"
    """Batch statistics over the whole batch, or of each device's part, averaged (NVIDIA's way: faster)."""
    recalibrate_images: int | None = None
    """Training images, not augmented, on which batch statistics are measured before weights are evaluated and written
    ("precise BN"); 0: those averaged over the steps. None: 640 if fewer than 32 are normalised together, else 0."""
    fixed_statistics: float | None = None
    """Fraction of the steps, at the end, that train with the statistics inference uses: measured once, as above, then
    constant. None: 0.5 if fewer than 32 are normalised together, else 0."""
    freeze: Literal["none", "backbone", "all_but_heads"] = "none"
    """Parts that do not learn; their batch statistics stay as they are."""
    xla: Switch = "auto"
    """Compile with XLA. auto: on a GPU. JAX always does."""
    seed: int = 0
    """Of weights, order and augmentation."""
    deterministic: bool = False
    """The same bits from the same seed on the same machine, also if the run was interrupted; slower."""
    evaluate_every: float = 5.0
    """Epochs between evaluations; 0: only at the end."""
    evaluate_from: float = 0.0
    """No evaluation before this epoch, but for the one at the end."""
    patience: int = 0
    """End after so many evaluations in a row without a better AP; 0: never. The learning rate follows `epochs`."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = 500
    """Steps between checkpoints; one is also written at each evaluation and at the end."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept for resume; that of the best AP stays too."""
    max_bad_steps: int = 50
    """Stop after so many steps in a row without a finite loss and gradient; such steps change nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PostprocessConfig:
    """Raw predictions to detections."""

    max_candidates: int = 5000
    """Best logits of all anchors and classes that enter the suppression."""
    max_detections: int = 100
    """Detections of one image."""
    nms_sigma: float = 0.5
    """Width of the Gaussian of soft-NMS: a neighbour's score is multiplied by exp(-iou^2 / sigma)."""
    score_threshold: float = 0.001
    """A decayed score below this is dropped."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How validation images are evaluated."""

    batch_size: int = 8
    """Images a batch."""
    max_images: int = 0
    """Evaluate only the first so many; 0: all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Where the metrics of a run go, beside metrics.jsonl and TensorBoard."""

    time_log: bool = False
    """Write time_log.txt too, in the format of NVIDIA's DLLogger."""
    wandb: str = ""
    """Project of Weights & Biases that gets metrics, config and images; empty: none. Needs the extra `wandb`;
    WANDB_MODE and its other variables count."""
    mlflow: str = ""
    """Experiment of MLflow that gets the same; empty: none. Needs the extra `mlflow`; MLFLOW_TRACKING_URI and its other
    variables count."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Everything needed to repeat a run."""

    preset: str = "d0"
    """Preset that the values started from."""
    run_dir: str = ""
    """Where the run writes; empty: runs/<preset>. Running again with the same folder resumes."""
    weights: str = ""
    """Start from these weights: a weights file, a run, `coco` or another published name. The class predictor begins
    afresh if the dataset has other classes."""
    backbone: str = ""
    """Start from this backbone: `imagenet`, or a checkpoint of a backbone or a detector."""
    overfit: int = 0
    """Memorize the first so many training images and evaluate on them: AP near 1 proves data and labels. 0: a
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


def to_dict(config: Any) -> dict[str, Any]:
    """Turns a config into plain JSON values."""
    return dataclasses.asdict(config)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns the nested objects of `to_dict` into dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def from_dict(cls: type, values: Any, where: str) -> Any:
    """Rebuilds a config from JSON values; nothing unknown or of another type passes.

    Args:
        cls: one of the dataclasses above.
        values: what `to_dict` gave. A missing field keeps its default.
        where: file (and field) to name in an error.

    Raises:
        UserError: a field is unknown or its value has another type.
    """
    if not isinstance(values, dict):
        raise UserError(f"`{where}` is {_short(values)}; expected an object with fields.")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        near = difflib.get_close_matches(unknown[0], hints, n=1)
        known = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(hints)}."
        raise UserError(f"`{where}` has the unknown field `{unknown[0]}`; {known}")
    return cls(**{name: _coerce(hints[name], value, f"{where}: {name}") for name, value in values.items()})


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
    return from_dict(ExperimentConfig, values, str(path))


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """Turns one JSON value into the type `hint` or raises."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if origin is Literal:
        if value in arguments:
            return value
        raise UserError(f"`{where}` is {_short(value)}; expected one of {', '.join(map(repr, arguments))}.")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _coerce(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple and isinstance(value, list | tuple):
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(inner) == len(value):
            return tuple(_coerce(h, v, where) for h, v in zip(inner, value, strict=True))
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(hint, type) and type(value) is hint:
        return value
    raise UserError(f"`{where}` is {_short(value)}; expected {getattr(hint, '__name__', hint)}.")


def _short(value: Any) -> str:
    """Writes a value of unknown size in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
