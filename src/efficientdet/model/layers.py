"""Layers shared by backbone, feature network and heads: convolution, separable block, fusion, resampling.

Conventions of the published checkpoints: channels last, TensorFlow's SAME padding (the odd pixel at the bottom and
right), batch normalization with epsilon 1e-3.
"""

import functools
from typing import Any

import keras
import numpy as np
from keras import ops

from efficientdet.config import Upsampling
from efficientdet.kernels import chains, choice, mixed_precision
from efficientdet.kernels.normalization import activate
from efficientdet.model import normalization
from efficientdet.structures import Array, Features

FUSION_EPSILON = 1e-4  # EfficientDet, section 3.3

Dtype = Any  # a Keras dtype policy or its name


def nearest_pixels(size: int, target_size: int) -> np.ndarray:
    """Finds the old pixel at the center of each new one: int32[target_size].

    Computed in float32 like TensorFlow, since some centers are on the border between two pixels.
    """
    scale = np.float32(size) / np.float32(target_size)
    centers = (np.arange(target_size, dtype=np.float32) + np.float32(0.5)) * scale
    return np.minimum(np.floor(centers).astype(np.int32), size - 1)


class Conv(keras.layers.Conv2D):
    """A convolution with SAME padding.

    compute_dtype[B, h, w, C] -> compute_dtype[B, h / stride, w / stride, filters], sizes rounded up
    """

    def __init__(self, filters: int, kernel_size: int, **kwargs: Any):
        """Takes the output channels, the kernel size, and other arguments of Keras's layer."""
        super().__init__(filters, kernel_size, padding="same", **kwargs)
        self.kernels = choice.current()

    def call(self, inputs: Features, training: bool = False) -> Features:
        """Convolves; `training` says whether gradients will be needed."""
        kernel, bias = ops.convert_to_tensor(self.kernel), None
        if self.use_bias:
            bias = ops.convert_to_tensor(self.bias)
        return self.kernels.convolve(inputs, kernel, bias, self.strides[0], training)


class DepthwiseConv(keras.layers.DepthwiseConv2D):
    """A depthwise convolution with SAME padding and no bias.

    compute_dtype[B, h, w, D] -> compute_dtype[B, h / stride, w / stride, D], sizes rounded up
    """

    def __init__(self, kernel_size: int, **kwargs: Any):
        """Takes the kernel size and other arguments of Keras's layer."""
        super().__init__(kernel_size, padding="same", use_bias=False, **kwargs)
        self.kernels = choice.current()

    def call(self, inputs: Features, training: bool = False) -> Features:
        """Convolves; `training` says whether gradients will be needed."""
        return self.kernels.convolve_depthwise(
            inputs, ops.convert_to_tensor(self.kernel), self.strides[0], training=training
        )


class SeparableConv(keras.layers.Layer):
    """Depthwise 3 x 3 without bias, then pointwise 1 x 1 with bias (EfficientDet, section 3.3).

    compute_dtype[B, h, w, D] -> compute_dtype[B, h, w, filters]
    """

    def __init__(
        self,
        filters: int,
        *,
        depthwise_initializer: Any = "glorot_uniform",
        pointwise_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ):
        """Creates the two convolutions; `filters` is the number of output channels."""
        super().__init__(**kwargs)
        self.depthwise = DepthwiseConv(
            3,
            depthwise_initializer=depthwise_initializer,
            name="depthwise",
            dtype=self.dtype_policy,
        )
        self.pointwise = Conv(
            filters,
            1,
            kernel_initializer=pointwise_initializer,
            bias_initializer=bias_initializer,
            name="pointwise",
            dtype=self.dtype_policy,
        )

    def build(self, input_shape: Any) -> None:
        """Creates the variables."""
        self.depthwise.build(input_shape)
        self.pointwise.build(input_shape)

    def call(self, x: Features) -> Features:
        """Applies the depthwise and the pointwise convolution."""
        return self.pointwise(self.depthwise(x))


class Fusion(keras.layers.Layer):
    """Adds feature maps with learned weights (EfficientDet, section 3.3).

    fast_attention: sum_i x_i * relu(w_i) / (sum_j relu(w_j) + 1e-4); attention: softmax over the w_i; sum: plain sum.
    Like google/automl, we divide each term before adding, which matters in float16. NVIDIA's weights were trained
    without the ReLU.

    list of compute_dtype[B, h, w, D] -> compute_dtype[B, h, w, D]
    """

    def __init__(self, method: str, *, relu: bool = True, activation: str | None = None, **kwargs: Any):
        """Takes the method and the activation after it.

        Args:
            method: fast_attention, attention or sum.
            relu: fast_attention only: whether to clip negative weights to 0.
            activation: see `activate`; None: no activation.
            **kwargs: passed to the Keras layer.
        """
        super().__init__(**kwargs)
        self.method, self.relu, self.activation = method, relu, activation

    def build(self, input_shape: list[Any]) -> None:
        """Creates one scalar weight per input, initially 1."""
        self.weights_of_inputs = (
            []
            if self.method == "sum"
            else [
                self.add_weight(shape=(), initializer="ones", name=f"weight_{i}", autocast=False)
                for i in range(len(input_shape))
            ]
        )

    def call(self, inputs: list[Features], training: bool = False) -> Features:
        """Fuses the inputs and applies the activation."""
        weights = [weight.value for weight in self.weights_of_inputs]
        compute = functools.partial(chains.compute, fuse) if training else fuse
        return compute(*inputs, *weights, method=self.method, relu=self.relu, activation=self.activation)


def fuse(*arrays: Array, method: str, relu: bool, activation: str | None) -> Features:
    """Adds feature maps times their weights and applies the activation; see `Fusion`.

    Computed in float32 because the gradient of a weight is a sum over all pixels.

    Args:
        *arrays: n feature maps [B, h, w, D], followed by n weights, float32[] each, unless the method is sum.
        method: fast_attention, attention or sum.
        relu: fast_attention only: whether to clip negative weights to 0.
        activation: see `activate`; None: no activation.

    Returns:
        [B, h, w, D], with the dtype of the feature maps.
    """
    count = len(arrays) if method == "sum" else len(arrays) // 2
    inputs = [mixed_precision.widened(x) for x in arrays[:count]]
    weights = [ops.cast(weight, inputs[0].dtype) for weight in arrays[count:]]
    if method == "sum":
        outputs = sum(inputs[1:], inputs[0])
    elif method == "attention":
        shares = ops.unstack(ops.softmax(ops.stack(weights)), count)
        outputs = sum(x * share for x, share in zip(inputs, shares, strict=True))
    else:
        if relu:
            weights = [ops.relu(w) for w in weights]
        total = sum(weights) + FUSION_EPSILON
        outputs = sum(x * w / total for x, w in zip(inputs, weights, strict=True))
    return ops.cast(activate(outputs, activation), arrays[0].dtype)


class Resample(keras.layers.Layer):
    """Converts a feature map to the size and channels of another level (EfficientDet, figures 2 and 3).

    If the channels differ: 1 x 1 convolution with bias, then batch normalization, before any pooling. If the map is
    larger: max-pooling with stride s and window s + 1 with s = (in - 1) // out + 1. If it is smaller: nearest neighbor;
    pixel i is the old pixel floor(i * in / out) in google/automl (`legacy`) and floor((i + 1/2) * in / out) in NVIDIA's
    network (`half_pixel`). Each old pixel then occurs twice, except that if the new size is odd, one occurs once: the
    last one in google/automl, one in the middle in NVIDIA's network.

    compute_dtype[B, h, w, D] -> compute_dtype[B, target h, target w, filters]
    """

    def __init__(self, filters: int, *, momentum: float | None, upsampling: Upsampling = "legacy", **kwargs: Any):
        """Takes the target's channels; its size is passed to `call`, since images differ in size."""
        super().__init__(**kwargs)
        self.filters, self.momentum, self.upsampling = filters, momentum, upsampling
        self.kernels = choice.current()

    def build(self, input_shape: Any) -> None:
        """Creates convolution and normalization if the channels differ."""
        self.conv: Any = None
        if input_shape[-1] != self.filters:
            with choice.used(self.kernels):
                self.conv = Conv(self.filters, 1, name="conv", dtype=self.dtype_policy)
                self.norm = normalization.batch_norm("norm", self.momentum, self.dtype_policy)
            self.conv.build(input_shape)
            self.norm.build((*input_shape[:-1], self.filters))

    def call(self, x: Features, *, target_size: tuple[int, int], training: bool = False) -> Features:
        """Resamples to `target_size` = (height, width), px of the target level."""
        if self.conv is not None:
            x = self.norm(self.conv(x), training=training)
        height, width = x.shape[1:3]
        target_height, target_width = target_size
        if (height, width) == (target_height, target_width):
            return x
        if height >= target_height and width >= target_width:
            strides = ((height - 1) // target_height + 1, (width - 1) // target_width + 1)
            return ops.max_pool(x, (strides[0] + 1, strides[1] + 1), strides, padding="same")
        if self.upsampling == "half_pixel" and target_size != (2 * height, 2 * width):
            rows, columns = nearest_pixels(height, target_height), nearest_pixels(width, target_width)
            return ops.take(ops.take(x, rows, axis=1), columns, axis=2)
        doubled = ops.repeat(ops.repeat(x, 2, axis=1), 2, axis=2)
        return doubled[:, :target_height, :target_width]


class StochasticDepth(keras.layers.Layer):
    """Drops the branch of a residual block for random images during training (Huang et al. 2016, section 3).

    compute_dtype[B, ...] -> the same, divided by `survival` where kept, 0 where dropped.
    """

    def __init__(self, survival: float, **kwargs: Any):
        """Takes the probability of keeping the branch."""
        super().__init__(**kwargs)
        self.survival = survival
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, x: Features, training: bool = False) -> Features:
        """Drops the branch at random if `training`."""
        if not training:
            return x
        draw = keras.random.uniform((ops.shape(x)[0], 1, 1, 1), dtype="float32", seed=self.seed_generator)
        keep = ops.cast(ops.floor(draw + self.survival), x.dtype)
        return x / self.survival * keep
