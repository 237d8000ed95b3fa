"""What backbone, feature network and heads share: convolution, separable block, fusion, resampling, activation.

Conventions of the published checkpoints: channels last, SAME padding as TensorFlow's (the odd pixel at the bottom
and right), batch normalisation with epsilon 1e-3.
"""

import math
from typing import Any

import keras
from keras import ops

BATCH_NORM_EPSILON = 1e-3
FUSION_EPSILON = 1e-4  # EfficientDet, section 3.3

Dtype = Any  # a name of a Keras dtype policy or the policy itself


def activate(x: Any, activation: str) -> Any:
    """Applies `swish` (x * sigmoid(x)) or `relu6` to a tensor of any shape."""
    return ops.relu6(x) if activation == "relu6" else ops.silu(x)


def batch_norm(name: str, momentum: float | None, dtype: Dtype) -> keras.layers.Layer:
    """Makes the batch normalisation that every part uses; a network that does not train needs no momentum."""
    number = math.nan if momentum is None else momentum  # Keras wants one
    return BatchNorm(momentum=number, epsilon=BATCH_NORM_EPSILON, name=name, dtype=dtype)


class BatchNorm(keras.layers.BatchNormalization):
    """Keras's batch normalisation, x * factor + shift, more exact in inference.

    Factor and shift are the same for all pixels, so their rounding does not average out: on TensorFlow they are
    computed in float64 and rounded once. For D0 that halves the distance of the outputs from float64. JAX has no
    float64 unless the whole process does.

    compute_dtype[B, h, w, D] -> the same
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalises: by the batch while training, by the moving statistics otherwise."""
        if training and self.trainable:
            assert not math.isnan(self.momentum), (
                "`batch_norm_momentum` comes from the config, or from `schedule.derive`"
            )
            return super().call(inputs, training=training, mask=mask)
        wide = "float64" if keras.backend.backend() == "tensorflow" else "float32"
        factor = ops.cast(self.gamma, wide) / ops.sqrt(ops.cast(self.moving_variance, wide) + self.epsilon)
        shift = ops.cast(self.beta, wide) - ops.cast(self.moving_mean, wide) * factor
        dtype = keras.backend.result_type(inputs.dtype, "float32")  # float16 would overflow
        outputs = ops.cast(inputs, dtype) * ops.cast(factor, dtype) + ops.cast(shift, dtype)
        return ops.cast(outputs, self.compute_dtype)


class SeparableConv(keras.layers.Layer):
    """Depthwise 3 x 3, then pointwise 1 x 1 with bias; no bias between (EfficientDet, section 3.3).

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
        """Makes the two convolutions; `filters` are the output channels."""
        super().__init__(**kwargs)
        self.depthwise = keras.layers.DepthwiseConv2D(
            3,
            padding="same",
            use_bias=False,
            depthwise_initializer=depthwise_initializer,
            name="depthwise",
            dtype=self.dtype_policy,
        )
        self.pointwise = keras.layers.Conv2D(
            filters,
            1,
            kernel_initializer=pointwise_initializer,
            bias_initializer=bias_initializer,
            name="pointwise",
            dtype=self.dtype_policy,
        )

    def build(self, input_shape: Any) -> None:
        """Makes the variables."""
        self.depthwise.build(input_shape)
        self.pointwise.build(input_shape)

    def call(self, x: Any) -> Any:
        """Convolves."""
        return self.pointwise(self.depthwise(x))


class Fusion(keras.layers.Layer):
    """Adds feature maps with learnt weights (EfficientDet, section 3.3).

    fast_attention: sum_i x_i * relu(w_i) / (sum_j relu(w_j) + 1e-4); attention: softmax over the w_i; sum: plain.
    google/automl divides each term before it adds, which matters in float16; so do we. NVIDIA's weights were
    trained without the ReLU.

    list of compute_dtype[B, h, w, D] -> compute_dtype[B, h, w, D]
    """

    def __init__(self, method: str, *, relu: bool = True, **kwargs: Any):
        """Takes `method`, one of fast_attention, attention, sum; without `relu` fast_attention has no ReLU."""
        super().__init__(**kwargs)
        self.method, self.relu = method, relu

    def build(self, input_shape: list[Any]) -> None:
        """Makes one scalar weight an input, 1 at first."""
        if self.method != "sum":
            self.weights_of_inputs = [
                self.add_weight(shape=(), initializer="ones", name=f"weight_{i}") for i in range(len(input_shape))
            ]

    def call(self, inputs: list[Any]) -> Any:
        """Fuses."""
        if self.method == "sum":
            return sum(inputs[1:], inputs[0])
        weights = [ops.cast(w, self.compute_dtype) for w in self.weights_of_inputs]
        if self.method == "attention":
            shares = ops.unstack(ops.softmax(ops.stack(weights)), len(weights))
            return sum(x * share for x, share in zip(inputs, shares, strict=True))
        if self.relu:
            weights = [ops.relu(w) for w in weights]
        total = sum(weights) + FUSION_EPSILON
        return sum(x * w / total for x, w in zip(inputs, weights, strict=True))


class Resample(keras.layers.Layer):
    """Brings a feature map to the size and the channels of another level (EfficientDet, figure 2 and 3).

    Other channels: 1 x 1 convolution with bias, then batch normalisation, before any pooling. Larger: max-pooling of
    stride s and window s + 1 with s = (in - 1) // out + 1. Smaller: each pixel doubled, the surplus row or column of
    an odd size cut off (google/automl's nearest neighbour, floor(i * in / out), is the same).

    compute_dtype[B, h, w, D] -> compute_dtype[B, target h, target w, filters]
    """

    def __init__(self, filters: int, *, momentum: float | None, **kwargs: Any):
        """Takes the target's channels; its size is given to `call`, since images differ in size."""
        super().__init__(**kwargs)
        self.filters, self.momentum = filters, momentum

    def build(self, input_shape: Any) -> None:
        """Makes convolution and normalisation where the channels differ."""
        self.conv: Any = None
        if input_shape[-1] != self.filters:
            self.conv = keras.layers.Conv2D(self.filters, 1, name="conv", dtype=self.dtype_policy)
            self.norm = batch_norm("norm", self.momentum, self.dtype_policy)
            self.conv.build(input_shape)
            self.norm.build((*input_shape[:-1], self.filters))

    def call(self, x: Any, *, target_size: tuple[int, int], training: bool = False) -> Any:
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
        doubled = ops.repeat(ops.repeat(x, 2, axis=1), 2, axis=2)
        return doubled[:, :target_height, :target_width]


class StochasticDepth(keras.layers.Layer):
    """Drops the branch of a residual block for whole pictures while training (Huang et al. 2016, section 3).

    compute_dtype[B, ...] -> the same, divided by `survival` where kept, 0 where dropped.
    """

    def __init__(self, survival: float, **kwargs: Any):
        """Takes the probability to keep."""
        super().__init__(**kwargs)
        self.survival = survival
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, x: Any, training: bool = False) -> Any:
        """Drops at random if `training`."""
        if not training:
            return x
        draw = keras.random.uniform((ops.shape(x)[0], 1, 1, 1), dtype="float32", seed=self.seed_generator)
        keep = ops.cast(ops.floor(draw + self.survival), x.dtype)
        return x / self.survival * keep
