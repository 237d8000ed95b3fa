"""The backbone: EfficientNet without its classifier, images -> features P3, P4, P5 (EfficientNet, table 1).

A block is: expand 1 x 1 - depthwise k x k - squeeze-and-excitation - project 1 x 1; each convolution has no bias and is
followed by batch normalization; the block's input is added if the shapes match. Features of level l are the output of
the last block of stride 2^l.
"""

import math
from typing import Any

import keras
from keras import ops

from efficientdet.config import BackboneConfig
from efficientdet.kernels import chains, mixed_precision
from efficientdet.kernels.normalization import activate
from efficientdet.model import architecture, layers, normalization
from efficientdet.structures import Features


def _kernel_initializer(fan_out: float) -> keras.initializers.Initializer:
    """Returns an initializer that draws from N(0, sqrt(2 / fan_out)), as in google/automl."""
    return keras.initializers.RandomNormal(0.0, math.sqrt(2.0 / fan_out))


def _conv(filters: int, kernel: int, stride: int, name: str, dtype: Any, use_bias: bool = False) -> keras.layers.Layer:
    return layers.Conv(
        filters,
        kernel,
        strides=stride,
        use_bias=use_bias,
        kernel_initializer=_kernel_initializer(kernel * kernel * filters),
        name=name,
        dtype=dtype,
    )


class SqueezeExcite(keras.layers.Layer):
    """Scales channels by a sigmoid of their means over the image (EfficientNet, section 4).

    compute_dtype[B, h, w, D] -> the same.
    """

    def __init__(self, filters: int, squeezed: int, activation: str, **kwargs: Any):
        """Creates the layers for `filters` channels with `squeezed` channels in between."""
        super().__init__(**kwargs)
        self.activation = activation
        self.filters = filters
        self.reduce = _conv(squeezed, 1, 1, "reduce", self.dtype_policy, use_bias=True)
        self.expand = _conv(filters, 1, 1, "expand", self.dtype_policy, use_bias=True)

    def build(self, input_shape: Any) -> None:
        """Creates the variables."""
        self.reduce.build(input_shape)
        self.expand.build((*input_shape[:-1], self.reduce.filters))

    def call(self, x: Features, training: bool = False) -> Features:
        """Scales the channels."""
        mean = ops.mean(x, axis=(1, 2), keepdims=True)
        gate = self.expand(activate(self.reduce(mean), self.activation))
        return chains.compute(scale_channels, x, gate) if training else x * ops.sigmoid(gate)


def scale_channels(x: Features, gate: Features) -> Features:
    """Multiplies [B, h, w, D] by the sigmoid of [B, 1, 1, D] in float32, since a gate's gradient sums over pixels."""
    return ops.cast(mixed_precision.widened(x) * ops.sigmoid(mixed_precision.widened(gate)), x.dtype)


class Block(keras.layers.Layer):
    """An inverted bottleneck (MobileNetV2, figure 4d; EfficientNet, section 4).

    compute_dtype[B, h, w, in_filters] -> compute_dtype[B, h / stride, w / stride, filters]
    """

    def __init__(
        self,
        stage: architecture.Stage,
        stride: int,
        in_filters: int,
        *,
        squeeze_excite: bool,
        activation: str,
        survival: float,
        momentum: float | None,
        **kwargs: Any,
    ):
        """Creates the layers; if `survival` is below 1, the block is dropped at random during training."""
        super().__init__(**kwargs)
        dtype, inner = self.dtype_policy, in_filters * stage.expand
        self.in_filters, self.inner = in_filters, inner
        self.has_skip = stride == 1 and in_filters == stage.filters
        self.expand: Any = None
        self.squeeze: Any = None
        self.drop: Any = None
        if stage.expand != 1:
            self.expand = _conv(inner, 1, 1, "expand", dtype)
            self.expand_norm = normalization.batch_norm("expand_norm", momentum, dtype, activation)
        self.depthwise = layers.DepthwiseConv(
            stage.kernel,
            strides=stride,
            depthwise_initializer=_kernel_initializer(stage.kernel**2),
            name="depthwise",
            dtype=dtype,
        )
        self.depthwise_norm = normalization.batch_norm("depthwise_norm", momentum, dtype, activation)
        if squeeze_excite:
            self.squeeze = SqueezeExcite(
                inner, architecture.squeezed_filters(in_filters), activation, name="squeeze_excite", dtype=dtype
            )
        self.project = _conv(stage.filters, 1, 1, "project", dtype)
        self.project_norm = normalization.batch_norm("project_norm", momentum, dtype)
        if self.has_skip and survival < 1:
            self.drop = layers.StochasticDepth(survival, name="stochastic_depth", dtype=dtype)

    def build(self, input_shape: Any) -> None:
        """Creates the variables."""
        inner_shape = (*input_shape[:-1], self.inner)
        if self.expand is not None:
            self.expand.build(input_shape)
            self.expand_norm.build(inner_shape)
        self.depthwise.build(inner_shape)
        self.depthwise_norm.build(inner_shape)
        if self.squeeze is not None:
            self.squeeze.build(inner_shape)
        self.project.build(inner_shape)
        self.project_norm.build((*input_shape[:-1], self.project.filters))

    def call(self, inputs: Features, training: bool = False) -> Features:
        """Runs the block."""
        x = inputs
        if self.expand is not None:
            x = self.expand_norm(self.expand(x), training=training)
        x = self.depthwise_norm(self.depthwise(x), training=training)
        if self.squeeze is not None:
            x = self.squeeze(x, training=training)
        x = self.project_norm(self.project(x), training=training)
        if self.drop is not None:
            x = self.drop(x, training=training)
        return x + inputs if self.has_skip else x


class EfficientNet(keras.layers.Layer):
    """Computes features of images.

    compute_dtype[B, H, W, 3], normalized -> [P3, P4, P5], compute_dtype[B, H / 2^l, W / 2^l, D_l], sizes rounded up.
    """

    def __init__(self, config: BackboneConfig, *, activation: str, momentum: float | None, **kwargs: Any):
        """Creates stem and blocks."""
        super().__init__(**kwargs)
        filters = architecture.stem_filters(config)
        self.stem = _conv(filters, 3, 2, "stem", self.dtype_policy)
        self.stem_norm = normalization.batch_norm("stem_norm", momentum, self.dtype_policy, activation)
        self.blocks: list[Block] = []
        self.levels: list[int] = []  # the level of each block's output
        scaled, level = architecture.stages(config), 1
        total = sum(stage.repeats for stage in scaled)
        for stage in scaled:
            for repeat in range(stage.repeats):
                stride, number = stage.stride if repeat == 0 else 1, len(self.blocks)
                block = Block(
                    stage,
                    stride,
                    filters,
                    squeeze_excite=config.squeeze_excite,
                    activation=activation,
                    survival=1 - (1 - config.survival) * number / total,
                    momentum=momentum,
                    name=f"block_{number}",
                    dtype=self.dtype_policy,
                )
                level, filters = level + (stride == 2), stage.filters
                self.blocks.append(block)
                self.levels.append(level)

    def build(self, input_shape: Any) -> None:
        """Creates the variables."""
        self.stem.build(input_shape)
        self.stem_norm.build((*input_shape[:-1], self.stem.filters))
        for block in self.blocks:
            block.build((*input_shape[:-1], block.in_filters))

    @property
    def feature_filters(self) -> list[int]:
        """Channels of P3, P4, P5."""
        return [self.blocks[self._last_of(level)].project.filters for level in (3, 4, 5)]

    def _last_of(self, level: int) -> int:
        """Returns the index of the last block of a level."""
        return len(self.levels) - 1 - self.levels[::-1].index(level)

    def call(self, x: Features, training: bool = False) -> list[Features]:
        """Runs the backbone."""
        x = self.stem_norm(self.stem(x), training=training)
        outputs = []
        for block in self.blocks:
            x = block(x, training=training)
            outputs.append(x)
        return [outputs[self._last_of(level)] for level in (3, 4, 5)]
