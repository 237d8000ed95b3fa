"""The network: images -> RawPredictions (EfficientDet, figure 3)."""

from typing import Any

import keras
from keras import ops

from efficientdet.config import ModelConfig
from efficientdet.kernels import choice
from efficientdet.model import heads
from efficientdet.model.bifpn import BiFPN
from efficientdet.model.efficientnet import EfficientNet
from efficientdet.structures import Array, Features, RawPredictions


class Normalize(keras.layers.Layer):
    """Scales pixels to the network's range, (x - 255 mean) / (255 std); outside the image it puts the padding color.

    Images arrive as uint8, a quarter of the bytes of float32. The reference implementations pad with zeros after
    normalizing, which is the mean color. AdvProp weights were trained with black padding. NVIDIA normalizes in the
    input pipeline and again in the backbone, padding included: x -> (x - mean) / std.

    uint8[B, H, W, 3], int32[B, 2] -> compute_dtype[B, H, W, 3]
    """

    def __init__(self, config: ModelConfig, **kwargs: Any):
        """Stores the config with mean, standard deviation and padding."""
        super().__init__(**kwargs)
        self.config = config

    def build(self, *_: Any, **__: Any) -> None:
        """Has no variables."""

    def call(self, images: Array, valid_size: Array | None = None) -> Features:
        """Normalizes the pixels; without `valid_size` the image fills the whole input."""
        height, width = images.shape[1:3]
        mean = ops.convert_to_tensor([255 * m for m in self.config.pixel_mean], "float32")
        std = ops.convert_to_tensor([255 * s for s in self.config.pixel_std], "float32")
        pixels = (ops.cast(images, "float32") - mean) / std
        if valid_size is not None:
            inside_y = ops.arange(height, dtype="int32")[None, :] < valid_size[:, :1]
            inside_x = ops.arange(width, dtype="int32")[None, :] < valid_size[:, 1:]
            inside = ops.logical_and(inside_y[:, :, None], inside_x[:, None, :])[..., None]
            pixels = ops.where(inside, pixels, -mean / std if self.config.padding == "black" else 0.0)
        if self.config.normalize_twice:
            pixels = (pixels - mean / 255) / (std / 255)
        return ops.cast(pixels, self.compute_dtype)


class EfficientDet(keras.Model):
    """EfficientDet of any size: D0..D7x, Lite and anything else a ModelConfig describes.

    Inputs: {"images": uint8[B, H, W, 3], "valid_size": int32[B, 2]}; `valid_size` is optional.
    Outputs: RawPredictions.
    """

    def __init__(
        self, config: ModelConfig, *, precision: str = "float32", kernels: choice.Kernels | None = None, **kwargs: Any
    ):
        """Creates the network and its variables.

        Args:
            config: the network to build.
            precision: Keras dtype policy for computations; variables and outputs are always float32.
            kernels: how operations are computed; None: `choice.plain()`.
            **kwargs: passed to `keras.Model`.
        """
        super().__init__(name=kwargs.pop("name", "efficientdet"), dtype=precision, **kwargs)
        self.config = config
        momentum = config.batch_norm_momentum
        self.normalize = Normalize(config, name="normalize", dtype=precision)
        with choice.used(kernels or choice.plain()):
            self.backbone = EfficientNet(
                config.backbone, activation=config.activation, momentum=momentum, name="backbone", dtype=precision
            )
            self.feature_network = BiFPN(config, name="feature_network", dtype=precision)
            self.class_head = heads.class_head(config, precision)
            self.box_head = heads.box_head(config, precision)
        self.build(None)

    def build(self, input_shape: Any) -> None:
        """Creates the variables, which do not depend on the image size."""
        del input_shape
        self.backbone.build((None, None, None, 3))
        self.feature_network.build([(None, None, None, filters) for filters in self.backbone.feature_filters])
        self.class_head.build(None)
        self.box_head.build(None)
        self.built = True

    def call(self, inputs: dict[str, Any], training: bool = False) -> RawPredictions:
        """Runs the network."""
        x = self.normalize(inputs["images"], valid_size=inputs.get("valid_size"))
        # A frozen part runs as in inference: moving statistics, no stochastic depth.
        features = self.backbone(x, training=training and self.backbone.trainable)
        features = self.feature_network(features, training=training and self.feature_network.trainable)
        return {
            "class_logits": self.class_head(features, training=training),
            "box_deltas": self.box_head(features, training=training),
        }
